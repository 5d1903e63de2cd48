"""Means over seeds of the validation of finished runs, and their differences to the baseline, paired by seed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from soup_verl.method.intervals import Interval, interval
from soup_verl.reporting.compare import VALIDATION, VALIDATION_PASS
from soup_verl.reporting.runs import read_run
from soup_verl.sweeping.plan import Run

Values = Mapping[str, float]
"""Metric -> its last value."""


@dataclass(frozen=True)
class Row:
    """A metric of one method under one choice of settings.

    Args:
        line: method and settings.
        values: seed -> the run's last value.
        mean: over them.
        difference: to the baseline under the same settings, over the seeds that both have; None for the baseline, and
            without such a seed.
    """

    metric: str
    line: str
    values: Mapping[int, float]
    mean: Interval
    difference: Interval | None


def last_validation(folder: Path) -> dict[str, float]:
    """Mean score and pass@k of every data set at the run's last validation.

    Raises:
        ReportError: the folder is not that of a run.
    """
    metrics = read_run(folder, folder.name).metrics
    return {key: steps[max(steps)] for key, steps in metrics.items() if _is_validation(key)}


def _is_validation(key: str) -> bool:
    return bool(VALIDATION.fullmatch(key) or VALIDATION_PASS.fullmatch(key))


def rows(runs: Sequence[Run], found: Mapping[str, Values], baseline: str) -> list[Row]:
    """Every metric of every line, metrics in order of name and k, lines as in the file.

    Args:
        runs: of the sweep.
        found: name of a finished run -> its `last_validation`.
        baseline: a method.
    """
    metrics = sorted({metric for values in found.values() for metric in values}, key=_natural)
    lines = {run.line: run for run in runs}
    made = []
    for metric, (line, run) in itertools.product(metrics, lines.items()):
        values = _by_seed(runs, found, metric, run.method, run.settings)
        if values:
            against = _by_seed(runs, found, metric, baseline, run.settings) if run.method != baseline else {}
            pairs = [values[seed] - against[seed] for seed in values if seed in against]
            difference = interval(pairs) if pairs else None
            made.append(Row(metric, line, values, interval(list(values.values())), difference))
    return made


def _by_seed(
    runs: Sequence[Run], found: Mapping[str, Values], metric: str, method: str, settings: tuple[tuple[str, str], ...]
) -> dict[int, float]:
    own = [run for run in runs if run.method == method and run.settings == settings]
    return {run.seed: found[run.name][metric] for run in own if metric in found.get(run.name, {})}


def _natural(metric: str) -> list[tuple[str, int]]:
    """pass@2 before pass@16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", metric)]


def as_table(found: Sequence[Row], baseline: str) -> Table:
    """A line of a metric a row."""
    table = Table(
        *("metric", "method", "seeds", "mean", "95%"),
        *(f"− {baseline}", "95%", "pairs", ""),
        title="last validation, means over seeds; differences paired by seed (Student's t)",
    )
    for _, of_metric in itertools.groupby(found, lambda row: row.metric):
        for place, row in enumerate(of_metric):
            d = row.difference
            table.add_row(
                "" if place else row.metric,
                row.line,
                str(row.mean.seeds),
                f"{row.mean.mean:.4f}",
                _ends(row.mean, ".4f"),
                *((f"{d.mean:+.4f}", _ends(d, "+.4f"), str(d.seeds), _verdict(d)) if d else ()),
            )
        table.add_section()
    return table


def _ends(of: Interval, form: str) -> str:
    return f"[{of.low:{form}}, {of.high:{form}}]" if math.isfinite(of.half_width) else ""


def _verdict(difference: Interval) -> str:
    return "" if difference.verdict == "open" else difference.verdict


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with the value of every seed; null for the ends of an interval of one seed."""
    return [
        {
            "metric": row.metric,
            "method": row.line,
            "values": dict(row.values),
            "mean": _as_json(row.mean),
            "difference": _as_json(row.difference) if row.difference else None,
        }
        for row in found
    ]


def _as_json(of: Interval) -> dict[str, Any]:
    bounded = math.isfinite(of.half_width)
    ends = {"low": of.low if bounded else None, "high": of.high if bounded else None}
    return {"mean": of.mean, **ends, "seeds": of.seeds}
