"""Every figure of the report as plain data for plotly.js: {"data": [...], "layout": {...}} a panel.

A figure is one question; its panels stand side by side where there is room. Runs keep their colour in all of them; text
and grid colours are the page's, which knows light from dark. What has no data is left out, and says which metric it
missed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from soup_verl.reporting import captions, compare
from soup_verl.reporting.at_k import Evaluated, figure_at_k
from soup_verl.reporting.compare import Group
from soup_verl.reporting.drawing import COLORS, DASHES, axes, line_and_band, rounded, with_gaps
from soup_verl.reporting.line_figures import STEP, Figure, Line, Panel, lines_of, panel_of, steps_of
from soup_verl.reporting.runs import Run
from soup_verl.reporting.stages import STAGES, stage_seconds

SEGMENTS = {"prefix": "prefix", "continuation": "continuation", "onpolicy": "on-policy responses"}
"""Name within a metric's key -> title."""
STALE = "wholly stale responses"
"""Title of the segment `stale`, which only runs with `soup.source=inflight` have."""


def all_figures(groups: Sequence[Group], evaluated: Sequence[Evaluated]) -> list[Figure]:
    """In the order of the page."""
    return [
        lines_of("reward", "Reward in training", captions.REWARD, groups, REWARD),
        _validation(groups),
        _validation_pass_at_k(groups),
        lines_of("kinds", "Reward of mixed against on-policy responses", captions.KINDS, groups, KINDS, shared=True),
        lines_of(
            "entropy", "Entropy by segment", captions.ENTROPY, groups, by_segment("entropy_mean", "nats a token"), True
        ),
        lines_of("kl", "KL", captions.KL, groups, KL),
        lines_of("ratio", "Importance ratio by segment", captions.RATIO, groups, RATIO),
        lines_of("lost", "Gradient lost to clipping", captions.LOST, groups, LOST, shared=True),
        lines_of("age", "Policy age", captions.AGE, groups, AGE, shared=True),
        lines_of("length", "Prefix length", captions.LENGTH, groups, LENGTH, shared=True),
        _time_by_stage(groups),
        _decode_tokens(groups),
        figure_at_k("pass_at_k", "pass@k", captions.PASS, evaluated, lambda e: e.pass_at_k),
        figure_at_k("maj_at_k", "maj@k", captions.MAJ, evaluated, lambda e: e.maj_at_k),
    ]


def by_segment(noun: str, y: str, scale: float = 1.0, suffix: str = "") -> list[Line]:
    """A panel for each segment of `soup/<segment>_<noun>`."""
    every = [Line(title + suffix, (f"soup/{s}_{noun}",), y, scale) for s, title in SEGMENTS.items()]
    return [*every, Line(STALE + suffix, (f"soup/stale_{noun}",), y, scale, expected=False)]


REWARD = [Line("all responses", compare.REWARD, "mean reward")]
KINDS = [
    Line("mixed", ("soup/mixed_reward_mean",), "mean reward"),
    Line("on-policy", ("soup/onpolicy_reward_mean",), "mean reward"),
    Line("wholly stale", ("soup/stale_reward_mean",), "mean reward", expected=False),
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
    replace(PREFIX_KL, title=f"the same in {STALE}", keys=("soup/stale_kl_k3",), expected=False),
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


def _metric_names(groups: Sequence[Group]) -> list[str]:
    return sorted({key for group in groups for run in group.runs for key in run.metrics})


def _validation(groups: Sequence[Group]) -> Figure:
    """A panel for each data set; the metrics' names hold the number of responses a prompt."""
    keys: dict[str, list[str]] = {}
    for key in _metric_names(groups):
        if match := compare.VALIDATION.fullmatch(key):
            keys.setdefault(match["data"], []).append(key)
    lines = [Line(data, own, "mean score") for data, own in keys.items()] or [Line("", ("val-core/*/mean@n",), "")]
    return lines_of("validation", "Validation", captions.VALIDATION, groups, lines, shared=True)


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
    whole = lines_of(
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
            panels.append(panel_of(Line(title, (compare.DECODE_TOKENS,), "tokens"), data, steps_of(groups)))
    missing = [] if panels else [compare.DECODE_TOKENS]
    return Figure("tokens", "Decoded tokens", captions.TOKENS, panels, missing)


def _running_sum(run: Run) -> dict[int, float]:
    total, sums = 0.0, {}
    for step, tokens in compare.decode_tokens(run).items():
        total += tokens
        sums[step] = total
    return sums
