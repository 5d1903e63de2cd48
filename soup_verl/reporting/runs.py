"""What the folder of a run holds, as plain data, also while the run goes on: half a last line is passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast, where libyaml is there
except ImportError:
    from yaml import SafeLoader

from soup_verl.records import run_log, sample_log
from soup_verl.records.settings import flatten

CONFIG_FILE, RUN_FILE, RESULTS_FILE = "config.yaml", "run.json", "results.json"
ALL = "all"
"""What `soup_verl.evaluate` calls its data files together: unlike problems, so it is in no figure."""


class ReportError(ValueError):
    """What was given cannot be reported on: names the path and what is expected there."""


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class AtK:
    """What an evaluation found on a data file: k -> interval."""

    pass_at_k: Mapping[int, Interval]
    maj_at_k: Mapping[int, Interval]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found on each data file, and under which settings."""

    folder: Path
    files: Mapping[str, AtK]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        folder: as it was given.
        name: the shortest end of the folder's path that no other run shares.
        metrics: key -> step -> finite value.
        settings: resolved settings by their dotted keys; None if the run did not record them.
        facts: `run.json`: when, where and from which code it was started; empty if not recorded.
        samples: the responses of the last step that recorded any.
        evaluations: those found in the folder.
    """

    folder: Path
    name: str
    metrics: Mapping[str, Mapping[int, float]]
    settings: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]

    @property
    def last_step(self) -> int | None:
        """The last step with a metric; None before the first."""
        return max((max(steps) for steps in self.metrics.values()), default=None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each folder once.

    Raises:
        ReportError: a folder is not that of a run.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    names = unique_names([folder.resolve() for folder in unique])
    return [read_run(folder, name) for folder, name in zip(unique, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """One run, under a name.

    Raises:
        ReportError: the folder is not that of a run.
    """
    started = (folder / RUN_FILE).is_file()
    try:
        steps = run_log.read(folder)
    except FileNotFoundError:
        if not started:
            raise ReportError(
                f"{folder}: expected the folder of a run, with {run_log.FILE} or {RUN_FILE}; it is "
                + ("another folder." if folder.is_dir() else "no folder.")
                + " Give what the run has as trainer.default_local_dir."
            ) from None
        steps = {}
    samples = sample_log.read(folder)
    return Run(
        folder=folder,
        name=name,
        metrics=_by_key(steps),
        settings=_read_settings(folder / CONFIG_FILE),
        facts=_read_object(folder / RUN_FILE) if started else {},
        samples=samples[max(samples)] if samples else (),
        evaluations=[read_evaluation(file.parent) for file in find_results(folder)],
    )


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell each from all others."""
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def find_results(folder: Path) -> list[Path]:
    """Evaluation results in `folder` and up to two levels under it, each once, although the link `best` leads to some
    twice; other files of that name are passed over."""
    files = (file for depth in ("", "*/", "*/*/") for file in folder.glob(depth + RESULTS_FILE))
    once = {file.resolve(): file for file in sorted(files)}  # `global_step_N` comes after `best`
    return sorted(file for file in once.values() if _is_evaluation(file))


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation whose `results.json` lies in `folder`.

    Raises:
        ReportError: there is none, or it holds something else.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ReportError(f"{folder}: expected the folder of an evaluation, with {RESULTS_FILE}; there is none.")
    results = _read_object(path)
    files = {name: _at_k(found, path) for name, found in _expect_mapping(results.get("files"), path).items()}
    return Evaluation(
        folder, {name: at_k for name, at_k in files.items() if name != ALL}, results.get("settings") or {}
    )


def _is_evaluation(path: Path) -> bool:
    try:
        return isinstance(_read_object(path).get("files"), dict)
    except ReportError:
        return False


def _at_k(found: Any, path: Path) -> AtK:
    metrics = _expect_mapping(_expect_mapping(found, path).get("metrics"), path)
    return AtK(_intervals(metrics, "pass@", path), _intervals(metrics, "maj@", path))


def _by_key(steps: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    metrics: dict[str, dict[int, float]] = {}
    for step, values in steps.items():
        for key, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                metrics.setdefault(key, {})[step] = float(value)
    return metrics


def _read_settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    return flatten(_expect_mapping(settings, path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return _expect_mapping(json.loads(path.read_text(encoding="utf-8")), path)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ReportError(f"{path}: expected JSON: {error}") from None


def _expect_mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReportError(f"{path}: expected keys and values, found {type(value).__name__}.")
    return value


def _intervals(metrics: Mapping[str, Any], name: str, path: Path) -> dict[int, Interval]:
    found = {key.removeprefix(name): entry for key, entry in metrics.items() if key.startswith(name)}
    try:
        intervals = {int(k): _interval(entry) for k, entry in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f'"{name}K": {{{", ".join(f"{part!r}: NUMBER" for part in _PARTS)}}}'
        raise ReportError(f"{path}: expected {expected} ({type(error).__name__}: {error})") from None
    return {k: v for k, v in sorted(intervals.items()) if _all_finite(v.mean, v.low, v.high)}


def _interval(entry: Mapping[str, Any]) -> Interval:
    """One problem alone has no interval: its ends are null."""
    mean, low, high = (entry[part] for part in _PARTS)
    return Interval(float(mean), float(mean if low is None else low), float(mean if high is None else high))


_PARTS = ("mean", "low", "high")


def _all_finite(*values: float) -> bool:
    return all(map(math.isfinite, values))


def total_steps(runs: Iterable[Run]) -> int | None:
    """The number of steps the runs were asked for, where their settings say one and agree."""
    asked = {(run.settings or {}).get("trainer.total_training_steps") for run in runs}
    (only,) = asked if len(asked) == 1 else {None}
    return only if isinstance(only, int) else None
