"""Figures of lines over the steps: what a panel of them is of, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soup_verl.reporting import compare
from soup_verl.reporting.compare import Group, Series
from soup_verl.reporting.drawing import DASHES, axes, line_and_band, padded, spans_decades, with_gaps

STEP = "training step"


@dataclass(frozen=True)
class Panel:
    """One set of axes: `plot` is what plotly.js draws, `keys` the metrics it is of."""

    title: str
    keys: str
    plot: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """Panels that answer one question.

    Args:
        name: identifier within the page.
        title, caption: what it shows; what to look for.
        panels: none if there are no data.
        missing: metrics that no run has logged, of the panels left out.
        legend: what the panels have besides the runs' lines, label, colour and dash of each ("" for an area).
        of_runs: whether they have the runs' lines.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    missing: Sequence[str]
    legend: Sequence[tuple[str, str, str]] = ()
    of_runs: bool = True


@dataclass(frozen=True)
class Line:
    """What a panel of lines is of: the metric, by each run's first of `keys`, times `scale`; its noise floor dotted.
    One that is not `expected` is not missed where no run has it."""

    title: str
    keys: Sequence[str]
    y: str
    scale: float = 1.0
    log: bool = False
    floor: str | None = None
    expected: bool = True


def lines_of(
    name: str, title: str, caption: str, groups: Sequence[Group], lines: Iterable[Line], shared: bool = False
) -> Figure:
    """A panel for each of `lines` that has data; `shared`: with one scale."""
    drawn: list[tuple[Line, list[tuple[Group, Series]]]] = []
    missing = []
    for line in lines:
        found = [(group, _scaled(group, line)) for group in groups]
        if data := [(group, one) for group, one in found if one.steps]:
            drawn.append((line, data))
        elif line.expected:
            missing.append(" or ".join(line.keys))
    every = [one for _, data in drawn for _, one in data]
    scale = padded(v for one in every for v in (*one.low, *one.high)) if shared and every else None
    panels = [panel_of(line, data, steps_of(groups), scale) for line, data in drawn]
    return Figure(name, title, caption, panels, missing)


def _scaled(group: Group, line: Line) -> Series:
    runs = (compare.first_found(run, line.keys) for run in group.runs)
    return compare.series({step: value * line.scale for step, value in run.items()} for run in runs)


def steps_of(groups: Sequence[Group]) -> list[float]:
    """First and last step of all runs, a little apart from the frame: every axis of steps has this range."""
    steps = [step for group in groups for run in group.runs for found in run.metrics.values() for step in found]
    return padded(steps or [0], share=0.02)


def panel_of(
    line: Line, data: Sequence[tuple[Group, Series]], x_range: Sequence[float], y_range: Sequence[float] | None = None
) -> Panel:
    traces = [trace for group, one in data for trace in line_and_band(group.name, group.number, with_gaps(one))]
    for group, one in _floors(line, data):
        traces += line_and_band(f"{group.name}, noise floor", group.number, with_gaps(one), style=DASHES.index("dot"))
    layout = axes(STEP, line.y, x_range)
    if line.log and spans_decades([one for _, one in data]):
        layout["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    elif y_range is not None:
        layout["yaxis"]["range"] = y_range
    return Panel(line.title, " or ".join(line.keys), {"data": traces, "layout": layout})


def _floors(line: Line, data: Sequence[tuple[Group, Series]]) -> list[tuple[Group, Series]]:
    """Noise floors that are high enough to matter; the others would only stretch the axis."""
    if line.floor is None:
        return []
    lowest = min(value for _, one in data for value in one.low)
    found = [(group, _scaled(group, replace(line, keys=(line.floor,)))) for group, _ in data]
    return [(group, one) for group, one in found if one.steps and max(one.high) > lowest / 100]
