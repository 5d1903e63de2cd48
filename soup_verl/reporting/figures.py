"""Every figure of the report as plain data for plotly.js: {"data": [...], "layout": {...}} a panel.

A figure is one question; its panels stand side by side where there is room. Runs keep their colour in all of them; text
and grid colours are the page's, which knows light from dark. What has no data is left out, and says which metric it
missed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soup_verl.reporting import captions, compare
from soup_verl.reporting.compare import Group, Series
from soup_verl.reporting.drawing import (
    COLORS,
    DASHES,
    axes,
    color,
    line_and_band,
    padded,
    rounded,
    spans_decades,
    with_gaps,
)
from soup_verl.reporting.runs import AtK, Evaluation, Interval, Run
from soup_verl.reporting.stages import STAGES, stage_seconds

SEGMENTS = {"prefix": "prefix", "continuation": "continuation", "onpolicy": "on-policy responses"}
"""Name within a metric's key -> title."""
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


@dataclass(frozen=True)
class Line:
    """What a panel of lines is of: the metric, by each run's first of `keys`, times `scale`; its noise floor dotted."""

    title: str
    keys: Sequence[str]
    y: str
    scale: float = 1.0
    log: bool = False
    floor: str | None = None


def all_figures(groups: Sequence[Group], evaluated: Sequence[Evaluated]) -> list[Figure]:
    """In the order of the page."""
    return [
        _lines("reward", "Reward in training", captions.REWARD, groups, REWARD),
        _validation(groups),
        _validation_pass_at_k(groups),
        _lines("kinds", "Reward of mixed against on-policy responses", captions.KINDS, groups, KINDS, shared=True),
        _lines(
            "entropy", "Entropy by segment", captions.ENTROPY, groups, by_segment("entropy_mean", "nats a token"), True
        ),
        _lines("kl", "KL", captions.KL, groups, KL),
        _lines("ratio", "Importance ratio by segment", captions.RATIO, groups, RATIO),
        _lines("lost", "Gradient lost to clipping", captions.LOST, groups, LOST, shared=True),
        _lines("age", "Policy age", captions.AGE, groups, AGE, shared=True),
        _lines("length", "Prefix length", captions.LENGTH, groups, LENGTH, shared=True),
        _time_by_stage(groups),
        _decode_tokens(groups),
        _at_k("pass_at_k", "pass@k", captions.PASS, evaluated, lambda e: e.pass_at_k),
        _at_k("maj_at_k", "maj@k", captions.MAJ, evaluated, lambda e: e.maj_at_k),
    ]


def by_segment(noun: str, y: str, scale: float = 1.0, suffix: str = "") -> list[Line]:
    """A panel for each segment of `soup/<segment>_<noun>`."""
    return [Line(title + suffix, (f"soup/{s}_{noun}",), y, scale) for s, title in SEGMENTS.items()]


REWARD = [Line("all responses", compare.REWARD, "mean reward")]
KINDS = [
    Line("mixed", ("soup/mixed_reward_mean",), "mean reward"),
    Line("on-policy", ("soup/onpolicy_reward_mean",), "mean reward"),
]
PREFIX_KL = Line(
    "historical against current policy",
    ("soup/prefix_kl_k3",),
    "k3, nats a token",
    log=True,
    floor="soup/noise_floor_kl_k3",
)
KL = [
    PREFIX_KL,
    *by_segment("update_kl_k3", "k3, nats a token", suffix=", while updating"),
    Line("current against reference policy", ("actor/kl_loss", "actor/reward_kl_penalty"), "nats a token"),
]
RATIO = [*by_segment("ratio_mean", "ratio", suffix=", mean"), *by_segment("ratio_max", "ratio", suffix=", largest")]
LOST = by_segment("gradient_lost_share", "% of the gradient", scale=100.0)
AGE = [
    Line("mean", ("soup/policy_age_mean",), "steps"),
    Line("oldest", ("soup/policy_age_max",), "steps"),
]
LENGTH = [
    Line("mean", ("soup/prefix_length_mean",), "tokens"),
    Line("longest", ("soup/prefix_length_max",), "tokens"),
]


def _lines(
    name: str, title: str, caption: str, groups: Sequence[Group], lines: Iterable[Line], shared: bool = False
) -> Figure:
    """A panel for each of `lines` that has data; `shared`: with one scale."""
    drawn: list[tuple[Line, list[tuple[Group, Series]]]] = []
    missing = []
    for line in lines:
        found = [(group, _scaled(group, line)) for group in groups]
        if data := [(group, one) for group, one in found if one.steps]:
            drawn.append((line, data))
        else:
            missing.append(" or ".join(line.keys))
    every = [one for _, data in drawn for _, one in data]
    scale = padded(v for one in every for v in (*one.low, *one.high)) if shared and every else None
    panels = [_panel(line, data, steps_of(groups), scale) for line, data in drawn]
    return Figure(name, title, caption, panels, missing)


def _scaled(group: Group, line: Line) -> Series:
    runs = (compare.first_found(run, line.keys) for run in group.runs)
    return compare.series({step: value * line.scale for step, value in run.items()} for run in runs)


def steps_of(groups: Sequence[Group]) -> list[float]:
    """First and last step of all runs, a little apart from the frame: every axis of steps has this range."""
    steps = [step for group in groups for run in group.runs for found in run.metrics.values() for step in found]
    return padded(steps or [0], share=0.02)


def _panel(
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


def _metric_names(groups: Sequence[Group]) -> list[str]:
    return sorted({key for group in groups for run in group.runs for key in run.metrics})


def _validation(groups: Sequence[Group]) -> Figure:
    """A panel for each data set; the metrics' names hold the number of responses a prompt."""
    keys: dict[str, list[str]] = {}
    for key in _metric_names(groups):
        if match := compare.VALIDATION.fullmatch(key):
            keys.setdefault(match["data"], []).append(key)
    lines = [Line(data, own, "mean score") for data, own in keys.items()] or [Line("", ("val-core/*/mean@n",), "")]
    return _lines("validation", "Validation", captions.VALIDATION, groups, lines, shared=True)


def _validation_pass_at_k(groups: Sequence[Group]) -> Figure:
    """A panel for each data set, in it a line for each group and k: the colour says whose it is, the dash the k."""
    keys: dict[str, dict[int, str]] = {}
    for key in _metric_names(groups):
        if match := compare.VALIDATION_PASS.fullmatch(key):
            keys.setdefault(match["data"], {})[int(match["k"])] = key
    ks = _spread(sorted({k for own in keys.values() for k in own}), len(DASHES))
    panels = []
    for data, own in keys.items():
        traces: list[dict[str, Any]] = []
        for group, (style, k) in itertools.product(groups, enumerate(ks)):
            one = compare.series(run.metrics.get(own.get(k, ""), {}) for run in group.runs)
            if one.steps:
                traces += line_and_band(f"{group.name}, pass@{k}", group.number, with_gaps(one), style=style)
        traces.sort(key=lambda trace: "name" in trace)  # so many bands would hide the lines
        layout = axes(STEP, "pass@k", steps_of(groups))
        panels.append(Panel(data, f"val-soup/{data}/pass@k", {"data": traces, "layout": layout}))
    missing = [] if panels else ["val-soup/*/pass@k"]
    legend = [(f"pass@{k}", COLORS[-1], dash) for k, dash in zip(ks, DASHES, strict=False)]
    title = "pass@k in validation"
    return Figure("validation_pass_at_k", title, captions.VALIDATION_PASS, panels, missing, legend)


def _spread(values: Sequence[int], most: int) -> Sequence[int]:
    """All values, or `most` of them, spread evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _time_by_stage(groups: Sequence[Group]) -> Figure:
    """Seconds a step of every group, then each group's by stage."""
    whole = _lines(
        "time", "Step time by stage", captions.TIME, groups, [Line("whole step", compare.STEP_SECONDS, "seconds")]
    )
    seconds = [(group, stage_seconds(group.runs)) for group in groups]
    used = {name for _, stages in seconds for name in stages}
    sums = [sum(at) for _, stages in seconds for at in zip(*(s.values() for s in stages.values()), strict=True)]
    frame = steps_of(groups), [0, max(sums, default=1.0) * 1.05]
    panels = [_stage_panel(group, stages, *frame) for group, stages in seconds if stages]
    missing = [*whole.missing] if panels else [*whole.missing, "timing_s/gen"]
    legend = [(title, own, "") for name, title, own in STAGES if name in used]
    return Figure(whole.name, whole.title, whole.caption, [*whole.panels, *panels], missing, legend)


def _stage_panel(
    group: Group,
    stages: Mapping[str, Mapping[int, float]],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> Panel:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "stages",
            "name": title,
            "x": list(stages[name]),
            "y": rounded(stages[name].values()),
            "line": {"width": 0.5, "color": own},
            "fillcolor": own,
            "hovertemplate": f"{title}: %{{y:.3~g}} s<extra></extra>",
            "showlegend": False,
        }
        for name, title, own in STAGES
        if name in stages
    ]
    layout = axes(STEP, "seconds", x_range)
    layout["yaxis"]["range"] = y_range
    return Panel(group.name, "timing_s/*", {"data": traces, "layout": layout})


def _decode_tokens(groups: Sequence[Group]) -> Figure:
    """Of each step, and their running sum."""
    panels = []
    for title, of in (("each step", compare.decode_tokens), ("so far", _running_sum)):
        found = [(group, compare.series(of(run) for run in group.runs)) for group in groups]
        if data := [(group, one) for group, one in found if one.steps]:
            panels.append(_panel(Line(title, (compare.DECODE_TOKENS,), "tokens"), data, steps_of(groups)))
    missing = [] if panels else [compare.DECODE_TOKENS]
    return Figure("tokens", "Decoded tokens", captions.TOKENS, panels, missing)


def _running_sum(run: Run) -> dict[int, float]:
    total, sums = 0.0, {}
    for step, tokens in compare.decode_tokens(run).items():
        total += tokens
        sums[step] = total
    return sums


def _at_k(
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
