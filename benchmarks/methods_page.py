"""All methods on one page: each at its best knob, found on search seeds and shown on fresh ones, against GRPO.

Written by `benchmarks.analyse`; the points of a task that are worth fresh seeds, for `benchmarks.grid --points`:

    python -m benchmarks.methods_page --results runs/evidence/sim --task countdown
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.figures import draw_differences
from benchmarks.grid import GRID, SIDES, not_here
from benchmarks.results import (
    HOW_IT_BEGINS,
    SEEDS_A_SET,
    STOPPED,
    Group,
    Measured,
    grpo_of,
    of_one_instrument,
    pooled,
    read_results,
)
from benchmarks.tables import difference, mean_of, shown, shown_interval, table

CHOSEN_BY = "pass@8"
"""What a method's best knob has most of: between pass@1 and pass@32, which its knob often trades for each other."""
SHOWN = ("pass@1", "pass@8", "pass@32")
HEADER = ("method", "side", "knob", "seeds", *(f"{key} − GRPO" for key in SHOWN))
HEADER += ("reward, last 50 steps (GRPO's)", "decoded tokens / GRPO's")


@dataclass(frozen=True)
class Row:
    """A method at its best knob.

    Args:
        point: the best one.
        seeds: those that it and GRPO share, and that it is shown on.
        fresh: they are not those by which it was chosen.
        values: how many of its knob's values were compared.
    """

    point: Measured
    seeds: list[int]
    fresh: bool
    values: int

    @property
    def note(self) -> str:
        """The seeds, and what the reader must know of them."""
        said = stretches(self.seeds)
        if self.fresh:
            return said
        if self.seeds[0] >= SEEDS_A_SET:
            return f"{said}, which chose the knob"
        return f"{said}: no fresh seeds"


def stretches(seeds: Sequence[int]) -> str:
    """ "0, 100 to 104" for ascending seeds."""
    found: list[list[int]] = []
    for seed in seeds:
        if found and seed == found[-1][-1] + 1:
            found[-1].append(seed)
        else:
            found.append([seed])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in found)


def rows_of(points: Sequence[Measured]) -> list[Row]:
    """A row a method, GRPO's first; of a side the method of highest `CHOSEN_BY` first.

    Args:
        points: of a task, all sets of seeds together.
    """
    grpo = grpo_of(points)
    found = [_row(list(of_method), grpo) for of_method in _by_method(points)]
    rows = [row for row in found if row is not None]
    order = {side: place for place, side in enumerate(SIDES)}
    return sorted(
        rows, key=lambda row: (order[row.point.side], -difference(row.point, grpo, row.seeds, CHOSEN_BY).mean)
    )


def _by_method(points: Sequence[Measured]) -> Iterator[list[Measured]]:
    methods = dict.fromkeys(point.method for point in points if point.method != STOPPED)
    for method in methods:
        yield sorted((p for p in points if p.method == method), key=lambda p: str(p.value))


def _row(of_method: list[Measured], grpo: Measured) -> Row | None:
    """None where no seed is shared with GRPO."""
    searched = {p.name: [s for s in _shared(p, grpo) if s < SEEDS_A_SET] for p in of_method}
    fresh = {p.name: [s for s in _shared(p, grpo) if s >= SEEDS_A_SET] for p in of_method}
    chosen_on = searched if any(searched.values()) else fresh
    compared = [p for p in of_method if chosen_on[p.name]]
    if not compared:
        return None
    best = max(compared, key=lambda p: difference(p, grpo, chosen_on[p.name], CHOSEN_BY).mean)
    chosen = chosen_on is searched or len(of_method) == 1
    is_fresh = chosen and bool(fresh[best.name])
    return Row(best, fresh[best.name] or chosen_on[best.name], is_fresh, len(compared))


def _shared(point: Measured, grpo: Measured) -> list[int]:
    return sorted(set(point.by_seed) & set(grpo.by_seed))


def cells(row: Row, grpo: Measured) -> list[str]:
    """A line of the table under `HEADER`."""
    point, seeds = row.point, row.seeds
    knob = "-" if point.knob is None else f"{point.knob}={point.value}"
    tokens = mean(point.over(seeds, "decode_tokens")) / mean(grpo.over(seeds, "decode_tokens"))
    differences = ["-" if point is grpo else shown_interval(difference(point, grpo, seeds, key)) for key in SHOWN]
    at_end, of_grpo = (shown(mean_of(p, seeds, "reward_at_end")) for p in (point, grpo))
    at_end += "" if point is grpo or at_end == "-" else f" ({of_grpo})"
    return [point.method, point.side, knob, row.note, *differences, at_end, f"{tokens:.2f}"]


def section(group: Group, points: Sequence[Measured], figures: Path) -> str:
    """The Markdown of one task on one instrument; draws its figure."""
    grpo, rows = grpo_of(points), rows_of(points)
    figure = figures / f"methods_{group.slug}.png"
    title = f"{group.task}, {group.instrument}"
    others = [row for row in rows if row.point is not grpo]
    if others:
        draw_differences([(row.point, row.seeds, row.fresh) for row in others], grpo, SHOWN, title, figure)
    said = [f"### {title}", f"Points looked at: {sum(row.values for row in rows)}."]
    said += [f"![every method against GRPO on {group.task}](FIGURES/{figure.name})"] * bool(others)
    return "\n\n".join([*said, table(HEADER, [cells(row, grpo) for row in rows])]) + "\n"


def page(results: dict[Group, list[Measured]], tasks: Sequence[str], figures: Path) -> str:
    """Every task's section, and which of the recipe's neighbours are not among them and why."""
    found = pooled(results)
    sections = [
        section(group, points, figures)
        for task in tasks
        for group, points in found.items()
        if group.task == task and any(p.side == "grpo" for p in points)
    ]
    missing = [f"- `{name}`: {why}" for name, why in not_here(GRID).items()]
    return "\n".join([*sections, "### Neighbours that are no rows of their own\n", *missing]) + "\n"


def main() -> None:
    """Print the best point of every method of a task, as `benchmarks.grid --points` takes them."""
    parser = argparse.ArgumentParser(description="The best point of every method, found on search seeds.")
    parser.add_argument("--results", type=Path, required=True, help="folder with result.json files at any depth")
    parser.add_argument("--task", required=True)
    parser.add_argument("--instrument", default="", help=HOW_IT_BEGINS)
    arguments = parser.parse_args()
    try:
        found = pooled(read_results(arguments.results))
        rows = rows_of(of_one_instrument(found, arguments.task, arguments.instrument))
        print(*(row.point.name.replace(" ", "/") for row in rows))
    except (ValueError, OSError) as error:
        sys.exit(f"methods_page: {error}")


if __name__ == "__main__":
    main()
