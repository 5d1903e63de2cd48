"""Evaluations of two methods, pair by pair: python -m soup_verl.compare A.. --against B..

The first of A is paired with the first of B, and so on: give the same training seed in the same place. With several
pairs the interval is Student's t over them; with one it is the bootstrap over problems, and says nothing about seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.results import judge
from soup_verl.evaluation.samples import RESPONSES, SCORED
from soup_verl.method.estimators import bootstrap_intervals
from soup_verl.method.intervals import interval
from soup_verl.records.files import read_json_lines
from soup_verl.tasks.command_line import Parser

OWN = ("model", "historical", "prefix_tokens", "seed", "device", "vllm")
"""Settings in which evaluations of one side may differ: what was evaluated, and where."""


@dataclass(frozen=True)
class Evaluation:
    """What `soup_verl.evaluate` left in a folder."""

    folder: Path
    settings: dict[str, Any]
    ks: list[int]
    files: dict[str, Any]

    def mean(self, file: str, metric: str) -> float:
        return self.files[file]["metrics"][metric]["mean"]


@dataclass(frozen=True)
class Difference:
    """A metric on a data file: mean of both sides, and of first minus second with its 95% interval, if there is one."""

    metric: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None


def read(folder: Path) -> Evaluation:
    """The evaluation in a folder, or the one in a folder of it, such as a run's.

    Raises:
        EvaluationError: there is none, or there are several.
    """
    found = [file for pattern in ("results.json", "*/results.json") for file in sorted(folder.glob(pattern))]
    if not found or len(found) > 1 and found[0].parent != folder:
        there = ", ".join(str(file.parent) for file in found) or "there is none"
        raise EvaluationError(f"{folder}: expected one evaluation, with results.json: {there}")
    try:
        said = json.loads(found[0].read_text())
        return Evaluation(found[0].parent, said["settings"], said["k"], said["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{found[0]}: not the results of an evaluation ({type(error).__name__})") from None


def check(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> dict[str, tuple[Any, Any]]:
    """The settings besides `OWN` in which the two sides differ, with the values of both.

    Raises:
        EvaluationError: they cannot be paired, are of other problems, or differ within a side.
    """
    if len(first) != len(second):
        expected = f"{len(first)}, as many as before it: they are paired in the order given"
        raise EvaluationError(f"--against: {len(second)} evaluations, expected {expected}")
    for other in second:
        if other.settings.get("data") != first[0].settings.get("data"):
            raise EvaluationError(f"{other.folder}: of other data than {first[0].folder}")
    for side in (first, second):
        for other in side[1:]:
            for key, (expected, value) in _differing(side[0], other).items():
                raise EvaluationError(f"{other.folder}: {key}={value}: expected {expected}, as in {side[0].folder}")
    return _differing(first[0], second[0])


def _differing(one: Evaluation, other: Evaluation) -> dict[str, tuple[Any, Any]]:
    pairs = {k: (one.settings.get(k), other.settings.get(k)) for k in one.settings | other.settings if k not in OWN}
    return {key: values for key, values in pairs.items() if values[0] != values[1]}


def compare(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> dict[str, list[Difference]]:
    """Data file -> the metrics that all evaluations have there.

    Raises:
        EvaluationError: a single pair lacks its samples.
    """
    everyone = [*first, *second]
    found = {}
    for file in first[0].files:
        metrics = [m for m in first[0].files[file]["metrics"] if all(m in e.files[file]["metrics"] for e in everyone)]
        differences = [[a.mean(file, m) - b.mean(file, m) for a, b in zip(first, second, strict=True)] for m in metrics]
        ends = _over_problems(first[0], second[0], file, metrics) if len(first) == 1 else map(_over_seeds, differences)
        found[file] = [
            Difference(m, _mean(e.mean(file, m) for e in first), _mean(e.mean(file, m) for e in second), _mean(d), *end)
            for m, d, end in zip(metrics, differences, ends, strict=True)
        ]
    return found


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _over_seeds(differences: list[float]) -> tuple[float, float]:
    found = interval(differences)
    return found.low, found.high


def _over_problems(
    one: Evaluation, other: Evaluation, file: str, metrics: list[str]
) -> list[tuple[float | None, float | None]]:
    paired = _estimates(one, file, metrics) - _estimates(other, file, metrics)
    return [ends or (None, None) for ends in bootstrap_intervals(paired, seed=0)]


def _estimates(evaluation: Evaluation, file: str, metrics: list[str]) -> np.ndarray:
    """(problems, metrics), from the samples."""
    path = evaluation.folder / SCORED
    if not path.is_file():
        raise EvaluationError(f"{path}: missing; a single pair is compared over problems, which need the samples")
    rows = ({key: row[key] for key in row if key not in RESPONSES} for _, row in read_json_lines(path))
    problems = judge(rows, ks=evaluation.ks)[file]
    return np.array([[problem.estimates[metric] for metric in metrics] for problem in problems])


def as_table(file: str, found: Sequence[Difference], title: str) -> Table:
    """A metric a row."""
    table = Table("", "first", "second", "first − second", "", title=f"{file}: {title}")
    for d in found:
        ends = "" if d.low is None else f"[{d.low:+.4f}, {d.high:+.4f}]"
        table.add_row(d.metric, f"{d.first:.4f}", f"{d.second:.4f}", f"{d.difference:+.4f}", ends)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr; 2 for a command line that cannot be read."""
    parser = Parser(prog="python -m soup_verl.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", nargs="+", type=Path, metavar="A", help="--out of soup_verl.evaluate, a seed each")
    parser.add_argument(
        "--against", required=True, nargs="+", type=Path, metavar="B", help="the same, in the same order"
    )
    arguments = parser.parse_args(argv)
    try:
        first, second = (list(map(read, side)) for side in (arguments.first, arguments.against))
        differing, found = check(first, second), compare(first, second)
    except (EvaluationError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for a, b in zip(first, second, strict=True):
        console.print(f"{a.folder}  −  {b.folder}", highlight=False, markup=False, soft_wrap=True)
    for key, (one, other) in differing.items():
        console.print(f"warning: {key}: {one} in the first, {other} in the second", highlight=False, markup=False)
    over = f"{len(first)} pairs (Student's t)" if len(first) > 1 else "problems (bootstrap; of one pair)"
    for file, differences in found.items():
        console.print(as_table(file, differences, f"95% interval over {over}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
