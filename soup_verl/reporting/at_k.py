"""The report's figures of evaluations: pass@k and maj@k over k."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soup_verl.reporting import compare
from soup_verl.reporting.compare import Series
from soup_verl.reporting.drawing import DASHES, axes, color, line_and_band
from soup_verl.reporting.line_figures import Figure, Panel
from soup_verl.reporting.runs import AtK, Evaluation, Interval


@dataclass(frozen=True)
class Evaluated:
    """Evaluations that make one line: of the runs of a group, or one alone.

    Args:
        name: of the line.
        number: of the group whose colour it has.
        style: which of `DASHES`.
        evaluations: at least one.
    """

    name: str
    number: int
    style: int
    evaluations: Sequence[Evaluation]


def figure_at_k(
    name: str,
    title: str,
    caption: str,
    evaluated: Sequence[Evaluated],
    of: Callable[[AtK], Mapping[int, Interval]],
) -> Figure:
    """A panel for each data file, in it a line for each of `evaluated` that has it; the band is its interval, or the
    range over runs where there are several."""
    panels, legend = [], {}
    for file in dict.fromkeys(file for one in evaluated for e in one.evaluations for file in e.files):
        traces: list[dict[str, Any]] = []
        ks: set[float] = set()
        for one in evaluated:
            if found := [intervals for e in one.evaluations if file in e.files and (intervals := of(e.files[file]))]:
                series = _interval_series(found[0]) if len(found) == 1 else compare.series(_means(f) for f in found)
                traces += line_and_band(one.name, one.number, series, style=one.style, interval=len(found) == 1)
                legend[one.name] = (one.name, color(one.number), DASHES[one.style % len(DASHES)])
                ks |= set(series.steps)
        if traces:
            layout = axes("k, responses a problem", title)
            ticks = sorted(k for k in ks if int(k) & (int(k) - 1) == 0) or sorted(ks)
            layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{k:g}" for k in ticks]}
            panels.append(Panel(file.removesuffix(".parquet"), name, {"data": traces, "layout": layout}))
    missing = [] if panels else [f"{name} of an evaluation's results.json"]
    return Figure(name, title, caption, panels, missing, list(legend.values()), False)


def _interval_series(found: Mapping[int, Interval]) -> Series:
    """The interval stands where the range over runs does."""
    of = list(found.values())
    return Series(list(found), [i.mean for i in of], [i.low for i in of], [i.high for i in of], [1] * len(of))


def _means(found: Mapping[int, Interval]) -> dict[int, float]:
    return {k: interval.mean for k, interval in found.items()}
