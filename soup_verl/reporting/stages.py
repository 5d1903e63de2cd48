"""Seconds of a step by stage, from verl's timers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soup_verl.reporting import compare
from soup_verl.reporting.runs import Run

# Name, title and colour, from the bottom of the stack up. The colours are Paul Tol's "muted", which the
# colour-blind can tell apart, and none of the runs' own.
STAGES = (
    ("gen", "generation", "#88ccee"),
    ("prefix", "prefixes, outside of generation", "#882255"),
    ("reward", "reward", "#999933"),
    ("old_log_prob", "log-probs of the current policy", "#44aa99"),
    ("ref", "log-probs of the reference policy", "#117733"),
    ("values", "values", "#332288"),
    ("adv", "advantages and metrics", "#cc6677"),
    ("update_critic", "critic update", "#aa4499"),
    ("update_actor", "actor update", "#ddcc77"),
    ("update_weights", "weights to the engine", "#6699cc"),
    ("save_checkpoint", "checkpoint", "#661100"),
    ("other", "other", "#bbbbbb"),
)
TIMED = [name for name, _, _ in STAGES if name not in ("prefix", "other")]


def stage_seconds(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Stage -> step -> seconds, mean over the runs; a stage without a timer is left out. Every stage has every step.

    The timer of prefixes runs inside others' too (generation while it awaits them): what no other stage accounts for
    is the prefixes' at most by their timer, and the rest is `other`.
    """
    found = {name: compare.series(run.metrics.get(f"timing_s/{name}", {}) for run in runs) for name in TIMED}
    prefix = _by_step(compare.series(run.metrics.get("timing_s/prefix", {}) for run in runs))
    whole = _by_step(compare.series(compare.first_found(run, compare.STEP_SECONDS) for run in runs))
    timed = {name: _by_step(one) for name, one in found.items() if one.steps}
    if not timed or not whole:
        return {}
    stages = {name: {step: seconds.get(step, 0.0) for step in whole} for name, seconds in timed.items()}
    rest = {step: max(0.0, whole[step] - sum(stage[step] for stage in stages.values())) for step in whole}
    if prefix:
        stages["prefix"] = {step: min(rest[step], prefix.get(step, 0.0)) for step in whole}
        rest = {step: rest[step] - stages["prefix"][step] for step in whole}
    return stages | {"other": rest}


def _by_step(one: compare.Series) -> Mapping[int, float]:
    return {int(step): value for step, value in zip(one.steps, one.mean, strict=True)}
