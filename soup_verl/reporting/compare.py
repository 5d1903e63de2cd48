"""Which runs differ only in their seeds, in which settings the others differ, and where each group stands."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.records.settings import setting_of
from soup_verl.reporting.runs import Run

ABSENT = "not set"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    Args:
        name: of the run, or what the names of the runs have in common.
        number: its place, which is its colour in every figure.
        runs: at least one.
    """

    name: str
    number: int
    runs: Sequence[Run]


@dataclass(frozen=True)
class Difference:
    """A setting and its value in each group, as text."""

    key: str
    values: Sequence[str]


@dataclass(frozen=True)
class Series:
    """A metric of a group over steps: mean, lowest and highest over the `n` runs that have the step."""

    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]


@dataclass(frozen=True)
class Standing:
    """Where a group stands at its end; None where the metric was not logged.

    Args:
        steps: last step, lowest and highest over the runs.
        reward: mean over the last tenth of the steps.
        validation: the last one, mean over data sets.
        step_seconds: median.
        decode_tokens: in all, mean over the runs.
    """

    group: Group
    steps: tuple[int, int]
    reward: float | None
    validation: float | None
    step_seconds: float | None
    decode_tokens: float | None


def group_by_seed(runs: Sequence[Run], baseline: Path | None = None) -> list[Group]:
    """Groups in the order of their first runs, that of `baseline` first. A run without settings is its own group."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(signature(run), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: not any(_same(run.folder, baseline) for run in group))
    names = _group_names(ordered)
    return [Group(name, number, group) for number, (name, group) in enumerate(zip(names, ordered, strict=True))]


def signature(run: Run) -> str:
    """The same for runs that compute the same but for their seeds."""
    if run.settings is None:
        return f"folder {run.folder.resolve()}"
    return json.dumps(compared(run), sort_keys=True, default=str)


def compared(run: Run) -> dict[str, Any]:
    """The run's settings less seeds and names; its own folder's name stands as `<run>` wherever it occurs."""
    settings = run.settings or {}
    own = settings.get("trainer.default_local_dir")
    kept = {key: value for key, value in settings.items() if not is_seed(key) and setting_of(key).kind != "name"}
    return {key: _without_folder(value, own) for key, value in kept.items()}


def is_seed(key: str) -> bool:
    """Whether a setting is a random seed."""
    last = key.rpartition(".")[2]
    return last == "seed" or last.endswith("_seed")


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Settings that are not the same in all groups that recorded theirs; those of `soup` first."""
    recorded = [compared(group.runs[0]) if group.runs[0].settings is not None else None for group in groups]
    keys = {key for settings in recorded if settings for key in settings}
    rows = [Difference(key, [_text(settings, key) for settings in recorded]) for key in sorted(keys, key=_order)]
    rows += _code_differences(groups)
    return [row for row in rows if len({value for value in row.values if value != "not recorded"}) > 1]


def seeds(group: Group) -> dict[str, list[str]]:
    """The seeds in which the runs of a group differ: key -> value of each run."""
    settings = [run.settings or {} for run in group.runs]
    keys = sorted({key for one in settings for key in one if is_seed(key)})
    values = {key: [_text(one, key) for one in settings] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def series(values: Iterable[Mapping[int, float]]) -> Series:
    """Mean and range over runs of a metric of each, step -> value. A step counts the runs that have it."""
    at: dict[int, list[float]] = {}
    for run in values:
        for step, value in run.items():
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    return Series(
        steps=steps,
        mean=[statistics.fmean(at[step]) for step in steps],
        low=[min(at[step]) for step in steps],
        high=[max(at[step]) for step in steps],
        n=[len(at[step]) for step in steps],
    )


def first_found(run: Run, keys: Iterable[str]) -> Mapping[int, float]:
    """The first of these metrics that the run has; empty if none."""
    return next((run.metrics[key] for key in keys if key in run.metrics), {})


REWARD = ("critic/rewards/mean",)
STEP_SECONDS = ("timing_s/step", "perf/time_per_step")
DECODE_TOKENS = "soup/decode_tokens_total"
VALIDATION = re.compile(r"val-core/(?P<data>.+)/(?P<what>[^/]+)/mean@\d+")
VALIDATION_PASS = re.compile(r"val-soup/(?P<data>.+)/pass@(?P<k>\d+)")


def validation_of(run: Run) -> dict[str, Mapping[int, float]]:
    """Data set -> step -> mean score of its validation responses, however many there are a prompt."""
    found = ((VALIDATION.fullmatch(key), steps) for key, steps in run.metrics.items())
    return {match["data"]: steps for match, steps in found if match}


def decode_tokens(run: Run) -> Mapping[int, float]:
    """Step -> tokens decoded for its responses. A run that never has a prefix logs its on-policy tokens only."""
    mixed = any(run.metrics.get("soup/prefix_tokens_total", {}).values())
    return first_found(run, (DECODE_TOKENS,) if mixed else (DECODE_TOKENS, "soup/onpolicy_tokens_total"))


def standing(group: Group) -> Standing:
    """Where a group stands."""
    ends = [run.last_step or 0 for run in group.runs]
    reward = series(first_found(run, REWARD) for run in group.runs).mean
    last = [steps[max(steps)] for run in group.runs for steps in validation_of(run).values()]
    seconds = [s for run in group.runs for s in first_found(run, STEP_SECONDS).values()]
    tokens = [sum(found.values()) for run in group.runs if (found := decode_tokens(run))]
    return Standing(
        group=group,
        steps=(min(ends), max(ends)),
        reward=statistics.fmean(reward[-max(1, len(reward) // 10) :]) if reward else None,
        validation=statistics.fmean(last) if last else None,
        step_seconds=statistics.median(seconds) if seconds else None,
        decode_tokens=statistics.fmean(tokens) if tokens else None,
    )


def _same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    names = [_common_name([run.name for run in runs]) for runs in groups]
    firsts = [runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "") for runs in groups]
    return [name if name and names.count(name) == 1 else first for name, first in zip(names, firsts, strict=True)]


def _common_name(names: Sequence[str]) -> str:
    """`soup` of soup-s1 and soup-s2, and of s1/soup and s2/soup; "" if the names have nothing in common."""
    if len(names) == 1:
        return names[0]
    ends = {name.rpartition("/")[2] for name in names}
    if len(ends) == 1:
        return ends.pop()
    return re.sub(r"([\W_]+(seeds?|s)?|^seeds?)?[\W_]*\d*$", "", os.path.commonprefix(list(names)))


def _without_folder(value: Any, own: Any) -> Any:
    if isinstance(value, str) and isinstance(own, str) and own:
        return value.replace(own, "<run>")
    return value


def _order(key: str) -> tuple[bool, str]:
    return not key.startswith("soup."), key


def _text(settings: Mapping[str, Any] | None, key: str) -> str:
    if settings is None:
        return "not recorded"
    if key not in settings:
        return ABSENT
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _code_differences(groups: Sequence[Group]) -> list[Difference]:
    """Commit and package versions of the groups, every run's."""
    codes = [[_code(run) for run in group.runs] for group in groups]
    keys = sorted({key for group in codes for code in group for key in code})
    return [
        Difference(key, [_joined(code.get(key, "not recorded") for code in group) for group in codes]) for key in keys
    ]


def commit_of(run: Run) -> str:
    """Ten digits of the commit the run was started from, and whether the checkout had changes; "" if not recorded."""
    git = run.facts.get("git") or {}
    return git.get("commit", "")[:10] + (" with changes" if git.get("dirty") else "")


def _code(run: Run) -> dict[str, str]:
    versions = {f"code: {name}": version for name, version in (run.facts.get("versions") or {}).items()}
    commit = commit_of(run)
    return ({"code: commit": commit} if commit else {}) | versions


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
