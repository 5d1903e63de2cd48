"""The figures of the evidence: every method's pass@1 against pass@k over its own knob, and what some learn by when."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from math import isinf
from pathlib import Path
from statistics import mean, median, stdev

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks.frontier import upper_hull
from benchmarks.grid import SIDES
from benchmarks.results import Measured, by_grid_name
from benchmarks.tables import difference

COLOURS = {  # of Okabe and Ito: apart for every colour vision; a side's methods differ by marker
    "grpo": ("#000000",),
    "rival": ("#0072B2", "#56B4E9", "#5B5B9F", "#8899AA"),
    "soup": ("#D55E00", "#E69F00", "#B03A2E", "#CC79A7", "#F0A35E", "#7F3C00", "#A0522D"),
    "variant": ("#009E73", "#4C8C4A", "#88B04B"),
}
TOKENS = "decode_tokens"
LABELS = {"trained_pass@1": "pass@1 on trained questions"}
MARKERS = {"grpo": "*", "rival": "sD^v", "soup": "oPXp8dH", "variant": "<>h"}


def draw_frontier(points: Sequence[Measured], seeds: Sequence[int], ks: Sequence[int], title: str, path: Path) -> None:
    """A panel for each pass@k: means over seeds with standard errors, the knob's value beside each point, the rivals'
    frontier in grey."""
    rivals, looks, every = [p for p in points if p.side in ("grpo", "rival")], _looks(points), {p.name for p in points}
    figure, panels = plt.subplots(1, len(ks), figsize=(6 * len(ks) + 4, 6), layout="constrained", squeeze=False)
    for axes, k in zip(panels[0], ks, strict=True):
        _draw_hull(axes, rivals, seeds, k)
        _draw_methods(axes, points, seeds, ("pass@1", f"pass@{k}"), looks, every)
        axes.set(xlabel="pass@1 on validation", ylabel=f"pass@{k} on validation")
    _finish(figure, panels[0], title, path)


def draw_per_token(
    points: Sequence[Measured], seeds: Sequence[int], keys: Sequence[str], title: str, path: Path
) -> None:
    """A panel for each number against the tokens decoded for it; in grey the best that a rival has with no more. Values
    stand beside points that decode less or more than most."""
    tokens = {p.name: mean(p.over(seeds, TOKENS)) for p in points}
    usual, looks = median(tokens.values()), _looks(points)
    apart = {name for name, count in tokens.items() if abs(count - usual) > 0.05 * usual}
    figure, panels = plt.subplots(1, len(keys), figsize=(6 * len(keys) + 4, 6), layout="constrained", squeeze=False)
    for axes, key in zip(panels[0], keys, strict=True):
        known = [p for p in points if None not in p.over(seeds, key)]
        means = sorted((tokens[p.name], mean(p.over(seeds, key))) for p in known if p.side in ("grpo", "rival"))
        spent, values = (list(part) for part in zip(*means, strict=True))
        best = list(accumulate(values, max))
        look = {"color": "#BBBBBB", "linewidth": 7, "label": "best rival of no more tokens", "zorder": 0}
        axes.step([*spent, max(tokens.values())], [*best, best[-1]], where="post", **look)
        _draw_methods(axes, known, seeds, (TOKENS, key), looks, apart)
        axes.set(xlabel="decoded tokens", ylabel=LABELS.get(key, f"{key} on validation"))
        axes.xaxis.set_major_formatter(EngFormatter())
    _finish(figure, panels[0], title, path)


def _finish(figure: Figure, panels: Sequence[Axes], title: str, path: Path) -> None:
    """Title, grid and legend."""
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


Look = tuple[str, str]
"""Colour and marker."""


def _looks(points: Sequence[Measured]) -> dict[str, Look]:
    """Method -> its look: a side's methods go through its colours, and then through them again with other markers."""
    found: dict[str, Look] = {}
    places = dict.fromkeys(COLOURS, 0)
    for method, side in {p.method: p.side for p in points}.items():
        place, places[side] = places[side], places[side] + 1
        colours, markers = COLOURS[side], MARKERS[side]
        found[method] = colours[place % len(colours)], markers[(place + place // len(colours)) % len(markers)]
    return found


def _draw_methods(
    axes: Axes,
    points: Sequence[Measured],
    seeds: Sequence[int],
    keys: tuple[str, str],
    looks: Mapping[str, Look],
    labelled: Collection[str],
) -> None:
    """Every method over its knob by two numbers, with the knob's value beside the points of these names."""
    for method in dict.fromkeys(p.method for p in points):
        of_method = [p for p in points if p.method == method]
        colour, marker = looks[method]
        _draw_method(axes, of_method, seeds, keys, colour, marker)
        for point in of_method:
            if point.value is not None and point.name in labelled:
                place = tuple(mean(point.over(seeds, key)) for key in keys)
                how = {"textcoords": "offset points", "fontsize": 7, "color": colour}
                axes.annotate(str(point.value), place, xytext=(5, 5), **how)


def _draw_hull(axes: Axes, rivals: Sequence[Measured], seeds: Sequence[int], k: int) -> None:
    means = [(mean(p.over(seeds, "pass@1")), mean(p.over(seeds, f"pass@{k}"))) for p in rivals]
    corners = [means[i] for i in upper_hull(means)]
    axes.plot(*zip(*corners, strict=True), color="#BBBBBB", linewidth=7, label="rivals' frontier", zorder=0)


def _draw_method(
    axes: Axes, points: Sequence[Measured], seeds: Sequence[int], keys: tuple[str, str], colour: str, marker: str
) -> None:
    xs, ys = ([p.over(seeds, key) for p in points] for key in keys)
    errors = [[stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values] for values in (xs, ys)]
    means = [[mean(v) for v in values] for values in (xs, ys)]
    size, above = (14, 6) if points[0].side == "grpo" else (8, 3)
    look = {"color": colour, "marker": marker, "markersize": size, "linewidth": 1.2, "elinewidth": 0.8, "alpha": 0.9}
    axes.errorbar(*means, xerr=errors[0], yerr=errors[1], label=points[0].title, zorder=above, **look)


SHOWN = {"grpo": 1, "rival": 3, "soup": 3, "variant": 2}
"""How many of a side's methods have a curve of learning, each with the point that ends highest."""


def draw_learning(
    points: Sequence[Measured], seeds: Sequence[int], title: str, path: Path, labels: Mapping[str, str] | None = None
) -> None:
    """Reward of on-policy responses by step and by decoded tokens: means over seeds, the band is the standard error.

    Args:
        labels: the points to show, by the grid's name, and what they are called; without it `SHOWN` of each side.
    """
    figure, panels = plt.subplots(1, 2, figsize=(12, 6.5), layout="constrained", sharey=True)
    places = dict.fromkeys(SIDES, 0)
    for point, label in _labelled(points, labels) if labels else _best(points, seeds):
        colour = COLOURS[point.side][places[point.side] % len(COLOURS[point.side])]
        places[point.side] += 1
        _draw_curve(panels, point, seeds, colour, label)
    panels[0].set(xlabel="training step", ylabel="reward of on-policy responses, 25 steps")
    panels[1].set(xlabel="decoded tokens")
    panels[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    panels[0].set_title(title, loc="left")
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower left", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _labelled(points: Sequence[Measured], labels: Mapping[str, str]) -> Iterator[tuple[Measured, str]]:
    known = by_grid_name(points)
    return ((known[name], label) for name, label in labels.items() if name in known)


def _best(points: Sequence[Measured], seeds: Sequence[int]) -> Iterator[tuple[Measured, str]]:
    """Of each side the methods that end highest, at their best knobs."""
    for side, many in SHOWN.items():
        best = {}
        for point in sorted(points, key=lambda p: mean(p.over(seeds, "reward_at_end"))):
            if point.side == side:
                best[point.method] = point
        for point in sorted(best.values(), key=lambda p: -mean(p.over(seeds, "reward_at_end")))[:many]:
            yield point, point.title + ("" if point.value is None else f": {point.value}")


def _draw_curve(panels: Sequence[Axes], point: Measured, seeds: Sequence[int], colour: str, label: str) -> None:
    style = "--" if point.side == "variant" else "-"
    curves = point.over(seeds, "curve")
    means = [mean(c["reward"] for c in at) for at in zip(*curves, strict=True)]
    errors = [
        stdev(c["reward"] for c in at) / len(at) ** 0.5 if len(at) > 1 else 0.0 for at in zip(*curves, strict=True)
    ]
    for axes, key in zip(panels, ("step", "decode_tokens"), strict=True):
        xs = [mean(c[key] for c in at) for at in zip(*curves, strict=True)]
        axes.plot(xs, means, color=colour, linestyle=style, label=label)
        low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_differences(
    rows: Sequence[tuple[Measured, Sequence[int], bool]], grpo: Measured, keys: Sequence[str], title: str, path: Path
) -> None:
    """A line a method, a panel a number: the paired difference to GRPO with its 95% interval.

    Args:
        rows: point, seeds, and whether they are others than those that chose it; from the top down.
    """
    size = (3.4 * len(keys) + 3, 0.26 * len(rows) + 1.8)
    figure, panels = plt.subplots(1, len(keys), figsize=size, layout="constrained", sharey=True, squeeze=False)
    places = range(len(rows), 0, -1)
    for axes, key in zip(panels[0], keys, strict=True):
        for place, (point, seeds, fresh) in zip(places, rows, strict=True):
            found, colour = difference(point, grpo, seeds, key), COLOURS[point.side][0]
            width = 0.0 if isinf(found.half_width) else found.half_width
            face = colour if fresh else "white"
            axes.errorbar(found.mean, place, xerr=width, color=colour, marker="o", markerfacecolor=face, capsize=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=f"{key} − GRPO")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    names = [point.method + ("" if point.value is None else f" {point.value}") for point, _, _ in rows]
    panels[0, 0].set_yticks(list(places), names, fontsize=8)
    panels[0, 0].set_ylim(0.3, len(rows) + 0.7)
    figure.suptitle(f"{title}: every method at its best knob, 95% intervals", fontsize=11)
    figure.legend(handles=_sides(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_by_prefix_kl(
    by_task: Mapping[str, Sequence[tuple[Measured, Measured, Sequence[int]]]], keys: Sequence[str], path: Path
) -> None:
    """A panel a number: a point's paired difference to GRPO, with its 95% interval, by its mean prefix KL.

    Args:
        by_task: the points of each task, each with GRPO and the seeds that both have.
    """
    figure, panels = plt.subplots(1, len(keys), figsize=(5.5 * len(keys) + 2, 5), layout="constrained", squeeze=False)
    colours = [colour for side in ("rival", "soup", "variant") for colour in COLOURS[side]]
    for axes, key in zip(panels[0], keys, strict=True):
        for place, (task, of_task) in enumerate(by_task.items()):
            found = [difference(point, grpo, seeds, key) for point, grpo, seeds in of_task]
            distances = [mean(point.over(seeds, "prefix_kl")) for point, _, seeds in of_task]
            colour, marker = colours[place % len(colours)], MARKERS["soup"][place % len(MARKERS["soup"])]
            look = {"color": colour, "marker": marker, "linestyle": "", "alpha": 0.8}
            widths = [its.half_width for its in found]
            axes.errorbar(distances, [its.mean for its in found], yerr=widths, label=task, elinewidth=0.7, **look)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="prefix KL (k3), mean over the run, nats a token", ylabel=f"{key} − GRPO")
    _finish(figure, panels[0], "SOUP's points by how far its prefixes are from the current policy, 95% intervals", path)


def _sides() -> list[Line2D]:
    """The legend of colours, and of hollow dots."""
    look = {"marker": "o", "linestyle": ""}
    said = {"rival": "keeps to on-policy sampling", "soup": "SOUP", "variant": "mixes otherwise"}
    handles = [Line2D([], [], color=COLOURS[side][0], label=text, **look) for side, text in said.items()]
    return [*handles, Line2D([], [], color="grey", markerfacecolor="white", label="the seeds that chose it", **look)]
