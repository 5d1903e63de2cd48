"""Tables and figures from results: `docs/results_tables.md` between its markers, one figure a task and instrument.

    python -m benchmarks.analyse --results runs/sim --document docs/results_tables.md --figures docs/figures

Everything is paired: a difference is taken seed by seed, and its interval is Student's t over the seeds that every
point of a task has. `frontier.gain` says how a point is compared with the rivals' frontier.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks import by_prefix_kl, methods_page, per_token
from benchmarks.figures import draw_frontier, draw_learning
from benchmarks.frontier import XY, gain
from benchmarks.grid import GRID, NEIGHBOR, SIDES, read_grid
from benchmarks.results import STOPPED, Group, Measured, common_seeds, grpo_of, learning, read_results
from benchmarks.tables import COLUMNS, difference, mean_of, rewrite, shown, shown_interval, table


def values_table(points: Sequence[Measured], seeds: Sequence[int]) -> str:
    """Every point's means over seeds, of what some point has."""
    means = {key: [mean_of(point, seeds, key) for point in points] for key in COLUMNS}
    known = {key: values for key, values in means.items() if any(value is not None for value in values)}
    rows = [[p.name, *(shown(values[place]) for values in known.values())] for place, p in enumerate(points)]
    return table(["point", *(COLUMNS[key] for key in known)], rows)


def xy(point: Measured, seeds: Sequence[int], k: int) -> list[XY]:
    """(pass@1, pass@k) a seed."""
    return list(zip(point.over(seeds, "pass@1"), point.over(seeds, f"pass@{k}"), strict=True))


def nearest_in_entropy(point: Measured, others: Sequence[Measured], seeds: Sequence[int]) -> Measured:
    """The point whose mean entropy on validation is nearest."""
    wanted = mean(point.over(seeds, "entropy"))
    return min(others, key=lambda other: abs(mean(other.over(seeds, "entropy")) - wanted))


def comparison_table(points: Sequence[Measured], seeds: Sequence[int], k: int) -> str:
    """Differences to GRPO, to GRPO at the nearest entropy, and to the rivals' frontiers."""
    grpo = grpo_of(points)
    rivals = [p for p in points if p.side in ("grpo", "rival")]
    variants = [p for p in points if p.side == "variant"]
    warmer = [p for p in points if p.method in ("grpo", "temperature")]
    rows = []
    for point in points:
        if point.side not in ("soup", "variant"):
            continue
        found, place = gain(xy(point, seeds, k), [xy(r, seeds, k) for r in rivals])
        others = [*rivals, *(v for v in variants if v.name != point.name)]
        found_all, _ = gain(xy(point, seeds, k), [xy(r, seeds, k) for r in others])
        match = nearest_in_entropy(point, warmer, seeds)
        between = dict.fromkeys((rivals[place.left].name, rivals[place.right].name))
        rows.append(
            [
                point.name,
                shown_interval(difference(point, grpo, seeds, "pass@1")),
                shown_interval(difference(point, grpo, seeds, f"pass@{k}")),
                f"{shown_interval(difference(point, match, seeds, f'pass@{k}'))} ({match.name})",
                shown_interval(found),
                found.verdict + (" (end)" if place.beyond else ""),
                " .. ".join(between),
                shown_interval(found_all),
            ]
        )
    header = ["point", "pass@1 − GRPO", f"pass@{k} − GRPO", f"pass@{k} − GRPO of nearest entropy"]
    header += [f"gain: pass@{k} − rivals' frontier", "verdict", "between", "gain, variants among the rivals"]
    return table(header, rows)


LEARNT = ("reward_at_end", "trained_pass@1", "trained_pass@32", "pass@1", "pass@32")


def learning_table(points: Sequence[Measured], seeds: Sequence[int]) -> str:
    """Differences to GRPO in what was learnt, and to the rival that learnt most of the trained questions."""
    grpo, measured = grpo_of(points), [p for p in points if p.side != "grpo"]
    rivals = [p for p in points if p.side in ("grpo", "rival")]
    best = max(rivals, key=lambda p: mean(p.over(seeds, "trained_pass@1")))
    header = ["point", *(f"{COLUMNS[key]} − GRPO" for key in LEARNT), "decode tokens / GRPO's"]
    header += [f"{COLUMNS['trained_pass@1']} − {best.name}"]
    rows = [
        [
            point.name,
            *(shown_interval(difference(point, grpo, seeds, key)) for key in LEARNT),
            f"{mean(point.over(seeds, 'decode_tokens')) / mean(grpo.over(seeds, 'decode_tokens')):.2f}",
            "-" if point is best else shown_interval(difference(point, best, seeds, "trained_pass@1")),
        ]
        for point in measured
    ]
    return table(header, rows)


def summary(points: Sequence[Measured], seeds: Sequence[int], k: int) -> str:
    """How many of SOUP's points lie above, below, or not apart from, the rivals' frontier of pass@1 and pass@k."""
    rivals = [xy(p, seeds, k) for p in points if p.side in ("grpo", "rival")]
    found = {p.name: gain(xy(p, seeds, k), rivals)[0] for p in points if p.side == "soup"}
    if not found:
        return "No point of SOUP has been run."
    if len(seeds) < 2:
        return f"{len(found)} points of SOUP, one seed: nothing can be said."
    told = []
    for verdict, words in (("above", "above"), ("below", "below"), ("open", "not apart from it")):
        if names := [name for name, its in found.items() if its.verdict == verdict]:
            told.append(f"{len(names)} {words} ({', '.join(names)})")
    return (
        f"pass@{k}: of SOUP's {len(found)} points, by 95% intervals over {len(seeds)} seeds against the rivals' "
        f"frontier, {'; '.join(told)}. No correction for the number of points: a claim needs fresh seeds."
    )


def section(group: Group, points: list[Measured], figures: Path, ks: Sequence[int]) -> str:
    """The Markdown of one task on one instrument, with a comparison for every pass@k; draws its figure."""
    seeds = common_seeds(points)
    partial = sorted({seed for point in points for seed in point.by_seed} - set(seeds))
    if not seeds:
        return f"### {group.title}\n\nNo seed is complete yet.\n"

    def named(what: str) -> str:
        return f"{what}_{group.slug}_{group.seeds_from}.png"

    figure = figures / named("frontier")
    title = f"{group.title}: {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    draw_frontier(points, seeds, ks, title, figure)
    learnt = []
    if (followed := learning(points)) and grpo_of(points) in followed:
        curves = figures / named("learning")
        draw_learning(followed, seeds, title, curves, read_grid(GRID)["pictured"].get(group.task))
        learnt = [f"![reward by step and by decoded tokens on {group.task}](FIGURES/{curves.name})"]
        learnt += [learning_table(followed, seeds)]
    said = [
        f"### {group.title}",
        f"Seeds {', '.join(map(str, seeds))}" + (f"; incomplete and left out: {partial}." if partial else "."),
        f"![pass@1 against pass@k on {group.task}](FIGURES/{figure.name})",
        *learnt,
        *per_token.section(points, seeds, ks[-1], title, figures / named("tokens")),
        *(part for k in ks for part in (summary(points, seeds, k), comparison_table(points, seeds, k))),
        values_table(points, seeds),
    ]
    return "\n\n".join(said) + "\n"


def selected(points: list[Measured]) -> list[Measured]:
    """By side, method and value; GRPO's early stops after GRPO. Of the recipe's neighbours, those with every seed that
    the other points share: a table is over the seeds that all of its points have, and all neighbours have a page."""
    sides = {side: place for place, side in enumerate(SIDES)}
    others = [point for point in points if not point.method.startswith(NEIGHBOR)]
    shared = set(common_seeds(others)) if others else set()
    points = others + [p for p in points if p not in others and shared and shared <= set(p.by_seed)]
    return sorted(points, key=lambda p: (sides[p.side], p.method != STOPPED, p.method, p.value or 0))


def main() -> None:
    """Parse the command line; rewrite the document's generated part and the figures."""
    parser = argparse.ArgumentParser(description="Tables and figures from results.")
    parser.add_argument("--results", type=Path, required=True, help="folder with result.json files at any depth")
    parser.add_argument("--document", type=Path, required=True, help="rewritten between its markers; made if missing")
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--methods", type=Path, help="a page of all methods at their best knobs, as --document")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32], help="of pass@k on the frontier")
    arguments = parser.parse_args()
    try:
        found = read_results(arguments.results)
        arguments.figures.mkdir(parents=True, exist_ok=True)
        of_tables = {group: kept for group, points in found.items() if (kept := selected(points))}
        sections = [section(group, points, arguments.figures, arguments.k) for group, points in of_tables.items()]
        pages = {arguments.document: "\n".join([*by_prefix_kl.section(of_tables, arguments.figures), *sections])}
        if arguments.methods:
            pages[arguments.methods] = methods_page.page(found, list(read_grid(GRID)["tasks"]), arguments.figures)
        for document, text in pages.items():
            folder = os.path.relpath(arguments.figures, document.parent)
            rewrite(document, text.replace("FIGURES/", f"{folder}/"))
    except (ValueError, OSError) as error:
        sys.exit(f"analyse: {error}")
    print(f"wrote {' and '.join(map(str, pages))}, and their figures to {arguments.figures}")


if __name__ == "__main__":
    main()
