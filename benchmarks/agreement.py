"""Do the instruments agree? Points that both have run, with the same settings and number of steps.

    python -m benchmarks.grid       --assets data/benchmarks --out runs/agreement/search --tasks countdown \\
        --points grpo replay/6 lookahead_age/64 --first-seed 100 --set steps=200 samples=32 evaluate_every=200
    python -m benchmarks.real_stack --assets data/benchmarks --out runs/agreement/real --tasks countdown --seeds 1 \\
        --points grpo replay/6 lookahead_age/64 --first-seed 100 --set steps=200 samples=32 evaluate_every=200
    python -m benchmarks.agreement --search runs/agreement/search --real runs/agreement/real

The mean over the real stack's seeds must lie in the 95% prediction interval of the search instrument's. Order of the
questions and random numbers differ, so seeds are not paired. About one number in twenty is outside by chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.replicate import HEADER, compare, outside, shown
from benchmarks.results import STOPPED, Group, Measured, read_results
from benchmarks.tables import table

NUMBERS: tuple[str, ...]
NUMBERS = ("pass@1", "pass@8", "pass@32", "distinct_valid@32", "train_reward", "train_entropy", "response_length")
NUMBERS += ("prefix_tokens_share", "prefix_kl", "prefix_gradient_lost", "decode_tokens", "reward_at_end")


def by_task(results: dict[Group, list[Measured]]) -> dict[tuple[str, str], Measured]:
    """(task, point) -> what was measured.

    Raises:
        ValueError: one point has results of two instruments, or of several sets of seeds.
    """
    found: dict[tuple[str, str], Measured] = {}
    for group, points in results.items():
        for point in points:
            if (group.task, point.name) in found:
                raise ValueError(f"{group.title}: {point.name} is there twice; expected one set of seeds")
            found[group.task, point.name] = point
    return found


def rows_of(search: dict[tuple[str, str], Measured], real: dict[tuple[str, str], Measured]) -> list[list[str]]:
    """Rows of the table, for points that both have.

    Raises:
        ValueError: there is none, or the search instrument has fewer than two seeds.
    """
    shared = [key for key in real if key in search and search[key].method != STOPPED]
    if not shared:
        raise ValueError("no point was run on both instruments")
    return [row for key in shared for row in shown(" ".join(key), compare(search[key], real[key], NUMBERS))]


def main() -> None:
    """Print the table; exit with 1 if a number is outside."""
    parser = argparse.ArgumentParser(description="Compare the instruments on the points that both have run.")
    parser.add_argument("--search", type=Path, required=True, help="folder of result.json files")
    parser.add_argument("--real", type=Path, required=True, help="folder of result.json files")
    arguments = parser.parse_args()
    try:
        rows = rows_of(by_task(read_results(arguments.search)), by_task(read_results(arguments.real)))
    except (ValueError, OSError) as error:
        sys.exit(f"agreement: {error}")
    print(table(HEADER, rows))
    print(json.dumps({"numbers": len(rows), "outside": outside(rows)}))
    sys.exit(outside(rows) > 0)


if __name__ == "__main__":
    main()
