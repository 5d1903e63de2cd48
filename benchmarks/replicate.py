"""Run a few published points again, on a seed of their own, and compare: ten minutes on two cores.

    python -m benchmarks.replicate --published benchmarks/raw --assets data/benchmarks --out runs/replicate

A new seed's number must fall into the 95% prediction interval of the published ones, mean ± t·s·√(1 + 1/n) over their n
seeds. Exit code 1 if one does not; about one in twenty is to be expected outside by chance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.grid import GRID, Point, chosen, folder_of, read_points, run_points
from benchmarks.results import Group, Measured, read_results
from benchmarks.simulate import INSTRUMENT
from benchmarks.tables import shown as in_digits
from benchmarks.tables import table
from soup_verl.method.intervals import Interval, interval

POINTS = ("grpo", "lookahead_age/64")
NUMBERS = ("pass@1", "pass@8", "pass@32", "entropy")
SEED = 1000  # published seeds count from 0
HEADER = ("point", "number", "predicted", "found", "inside")


def prediction(values: Sequence[float], of: int = 1) -> Interval:
    """Where the mean of so many more seeds lies, 95 times of 100: mean ± t·s·√(1/of + 1/n).

    Raises:
        ValueError: fewer than two seeds are published.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} published seeds: expected at least two to predict another from")
    found = interval(values)  # t·s/√n
    return replace(found, half_width=found.half_width * math.sqrt(len(values) / of + 1))


def measured(results: Mapping[Any, Sequence[Measured]], point: Point) -> Measured:
    """The results of a point of the grid.

    Raises:
        ValueError: there are none.
    """
    for result in (result for found in results.values() for result in found):
        if (result.method, result.value) == (point.method, point.value):
            return result
    raise ValueError(f"no published result of {point.task}/{point.name}")


def first_set(results: Mapping[Group, list[Measured]], task: str) -> list[Measured]:
    """The results to compare with: of a task's sets of seeds the first."""
    groups = sorted(group for group in results if (group.task, group.instrument) == (task, INSTRUMENT))
    return results[groups[0]] if groups else []


def compare(published: Measured, found: Measured, numbers: Sequence[str]) -> list[tuple[str, Interval, float]]:
    """(number, predicted, found) of a point, over the seeds found; numbers that either side lacks are left out."""
    seeds, others = sorted(found.by_seed), sorted(published.by_seed)
    return [
        (name, prediction(published.over(others, name), len(seeds)), mean(found.over(seeds, name)))
        for name in numbers
        if None not in [*found.over(seeds, name), *published.over(others, name)]
    ]


def shown(name: str, compared: list[tuple[str, Interval, float]]) -> list[list[str]]:
    """Rows of the table, under `HEADER`."""
    rows = []
    for number, predicted, value in compared:
        inside = predicted.low <= value <= predicted.high
        interval_text = f"{in_digits(predicted.mean)} ± {in_digits(predicted.half_width)}"
        rows.append([name, number, interval_text, in_digits(value), "yes" if inside else "NO"])
    return rows


def outside(rows: Sequence[Sequence[str]]) -> int:
    """How many rows are."""
    return sum(row[-1] == "NO" for row in rows)


def main() -> None:
    """Run the points, compare, exit with 1 if a number is outside."""
    parser = argparse.ArgumentParser(description="Run a few published points again.")
    parser.add_argument("--published", type=Path, required=True, help="folder of result.json files")
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="countdown")
    parser.add_argument("--points", nargs="+", default=POINTS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        points = chosen(read_points(GRID, arguments.task), arguments.points)
        published = first_set(read_results(arguments.published), arguments.task)
        run_points([(point, arguments.seed) for point in points], arguments.assets, arguments.out)
        rows = []
        for point in points:
            found = measured(read_results(folder_of(arguments.out, point, arguments.seed)), point)
            rows += shown(found.name, compare(measured({"": published}, point), found, NUMBERS))
    except (ValueError, OSError) as error:
        sys.exit(f"replicate: {error}")
    print(table(HEADER, rows))
    print(json.dumps({"numbers": len(rows), "outside": outside(rows)}))
    sys.exit(outside(rows) > 0)


if __name__ == "__main__":
    main()
