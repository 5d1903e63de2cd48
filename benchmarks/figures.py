"""The figures of the evidence: every method's pass@1 against pass@k over its own knob, and what some learn by when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.frontier import upper_hull
from benchmarks.results import Measured

COLOURS = {  # of Okabe and Ito: apart for every colour vision; a side's methods differ by marker
    "grpo": ("#000000",),
    "rival": ("#0072B2", "#56B4E9", "#5B5B9F", "#8899AA"),
    "soup": ("#D55E00", "#E69F00", "#B03A2E", "#CC79A7", "#F0A35E", "#7F3C00", "#A0522D"),
    "variant": ("#009E73", "#4C8C4A", "#88B04B"),
}
MARKERS = {"grpo": "*", "rival": "sD^v", "soup": "oPXp8dH", "variant": "<>h"}


def draw_frontier(points: Sequence[Measured], seeds: Sequence[int], ks: Sequence[int], title: str, path: Path) -> None:
    """A panel for each pass@k: means over seeds with standard errors, the knob's value beside each point, the rivals'
    frontier in grey."""
    figure, panels = plt.subplots(1, len(ks), figsize=(6 * len(ks) + 4, 6), layout="constrained", squeeze=False)
    for axes, k in zip(panels[0], ks, strict=True):
        _draw_panel(axes, points, seeds, k)
    figure.suptitle(title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(axes: Axes, points: Sequence[Measured], seeds: Sequence[int], k: int) -> None:
    _draw_hull(axes, [p for p in points if p.side in ("grpo", "rival")], seeds, k)
    places = dict.fromkeys(COLOURS, 0)
    for method in dict.fromkeys(p.method for p in points):
        of_method = [p for p in points if p.method == method]
        side = of_method[0].side
        place, places[side] = places[side], places[side] + 1
        colour, marker = (choices[place % len(choices)] for choices in (COLOURS[side], MARKERS[side]))
        _draw_method(axes, of_method, seeds, k, colour, marker)
    axes.set(xlabel="pass@1 on validation", ylabel=f"pass@{k} on validation")
    axes.grid(alpha=0.3)


def _draw_hull(axes: Axes, rivals: Sequence[Measured], seeds: Sequence[int], k: int) -> None:
    means = [(mean(p.over(seeds, "pass@1")), mean(p.over(seeds, f"pass@{k}"))) for p in rivals]
    corners = [means[i] for i in upper_hull(means)]
    axes.plot(*zip(*corners, strict=True), color="#BBBBBB", linewidth=7, label="rivals' frontier", zorder=0)


def _draw_method(
    axes: Axes, points: Sequence[Measured], seeds: Sequence[int], k: int, colour: str, marker: str
) -> None:
    xs, ys = ([p.over(seeds, key) for p in points] for key in ("pass@1", f"pass@{k}"))
    errors = [[stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values] for values in (xs, ys)]
    means = [[mean(v) for v in values] for values in (xs, ys)]
    size, above = (14, 6) if points[0].side == "grpo" else (8, 3)
    look = {"color": colour, "marker": marker, "markersize": size, "linewidth": 1.2, "elinewidth": 0.8, "alpha": 0.9}
    axes.errorbar(*means, xerr=errors[0], yerr=errors[1], label=points[0].title, zorder=above, **look)
    for x, y, point in zip(*means, points, strict=True):
        if point.value is not None:
            axes.annotate(str(point.value), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=colour)


SHOWN = {"grpo": 1, "rival": 3, "soup": 3, "variant": 2}
"""How many of a side's methods have a curve of learning, each with the point that ends highest."""


def draw_learning(points: Sequence[Measured], seeds: Sequence[int], title: str, path: Path) -> None:
    """Reward of on-policy responses by step and by decoded tokens: means over seeds, the band is the standard error."""
    figure, panels = plt.subplots(1, 2, figsize=(15, 5.5), layout="constrained", sharey=True)
    for side, many in SHOWN.items():
        best = {}
        for point in sorted(points, key=lambda p: mean(p.over(seeds, "reward_at_end"))):
            if point.side == side:
                best[point.method] = point
        highest = sorted(best.values(), key=lambda p: -mean(p.over(seeds, "reward_at_end")))[:many]
        for place, point in enumerate(highest):
            _draw_curve(panels, point, seeds, COLOURS[side][place], dashed=side == "variant")
    panels[0].set(xlabel="training step", ylabel="reward of on-policy responses, 25 steps")
    panels[1].set(xlabel="decoded tokens")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    panels[0].set_title(title, loc="left")  # the figure's own would meet the legend
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_curve(panels: Sequence[Axes], point: Measured, seeds: Sequence[int], colour: str, *, dashed: bool) -> None:
    curves = point.over(seeds, "curve")
    means = [mean(c["reward"] for c in at) for at in zip(*curves, strict=True)]
    errors = [
        stdev(c["reward"] for c in at) / len(at) ** 0.5 if len(at) > 1 else 0.0 for at in zip(*curves, strict=True)
    ]
    label = point.title + ("" if point.value is None else f": {point.value}")
    for axes, key in zip(panels, ("step", "decode_tokens"), strict=True):
        xs = [mean(c[key] for c in at) for at in zip(*curves, strict=True)]
        axes.plot(xs, means, color=colour, linestyle="--" if dashed else "-", label=label)
        low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
