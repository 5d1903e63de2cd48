"""Two points with each other, seed by seed: what the tables, which compare with GRPO and the frontier, do not show.

    python -m benchmarks.compare --task countdown_96 --seeds-from 100 lookahead_age/64 masked/64

First minus second, over the seeds that both have, with a 95% Student t interval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import HOW_IT_BEGINS, Measured, by_grid_name, common_seeds, of_one_instrument, read_results
from benchmarks.tables import COLUMNS, difference, mean_of, shown, shown_interval, table

HEADER = ("number", "first", "second", "first − second", "verdict")


def named(points: Sequence[Measured], name: str) -> Measured:
    """The point of this name, see `by_grid_name`.

    Raises:
        ValueError: it is not among them.
    """
    names = by_grid_name(points)
    if name not in names:
        raise ValueError(f"no results of {name!r}; there are {', '.join(sorted(names))}")
    return names[name]


def rows_of(first: Measured, second: Measured) -> list[list[str]]:
    """Rows of the table, for the numbers that both have.

    Raises:
        ValueError: no seed is shared.
    """
    seeds = common_seeds([first, second])
    if not seeds:
        raise ValueError(f"{first.name} and {second.name} share no seed")
    rows = []
    for key, title in COLUMNS.items():
        means = mean_of(first, seeds, key), mean_of(second, seeds, key)
        if None not in means:
            found = difference(first, second, seeds, key)
            rows.append([title, *map(shown, means), shown_interval(found), found.verdict])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare two points seed by seed.")
    parser.add_argument("points", nargs=2, metavar="METHOD/VALUE")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/raw"), help="folder of result.json files")
    parser.add_argument("--task", required=True)
    parser.add_argument("--instrument", default="", help=HOW_IT_BEGINS)
    parser.add_argument("--seeds-from", type=int, default=0, help="the set of seeds: 0, 100, 300")
    arguments = parser.parse_args()
    try:
        found = read_results(arguments.results)
        points = of_one_instrument(found, arguments.task, arguments.instrument, arguments.seeds_from)
        print(table(HEADER, rows_of(*(named(points, name) for name in arguments.points))))
    except (ValueError, OSError) as error:
        sys.exit(f"compare: {error}")


if __name__ == "__main__":
    main()
