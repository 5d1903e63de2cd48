"""The results of both instruments, by point and seed.

A result is a `result.json`: task, method, side, title, knob, value, seed, instrument, `start` (the untrained model on
validation), `checkpoints` (a list of {"step", "pass@1", ..}, the last one final) and means over the run, if taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

SEEDS_A_SET = 100
"""Seeds 0 to 99 are a set, 100 to 199 the next: a later set was run after an earlier one had been looked at, to confirm
what was seen there, and they are kept apart."""
SAME_START = 0.005
"""How far pass@1 of the untrained model may lie apart in a group; what another processor's rounding does is less."""
STOPPED = "grpo_stopped"
"""Points made of GRPO's checkpoints: stopping early costs nothing and moves along the same two axes."""
OF_RUN: tuple[str, ...]
OF_RUN = ("prefix_kl", "prefix_gradient_lost", "prefix_tokens_share", "train_reward", "train_entropy", "reward_std")
OF_RUN += ("curve", "reward_at_end", "reward_fall", "response_length", "step_seconds", "seconds", "decode_tokens")

HOW_IT_BEGINS = "how the name of the instrument begins, `search` or `real`; needed where there are results of both"
"""Of a command's --instrument."""


class Group(NamedTuple):
    """Results that are compared with each other: a set of seeds on a task and an instrument."""

    task: str
    instrument: str
    seeds_from: int

    @property
    def title(self) -> str:
        return f"{self.task}, {self.instrument}, seeds from {self.seeds_from}"

    @property
    def slug(self) -> str:
        """Task and instrument in the name of a file."""
        return f"{self.task}_{re.sub(r'[^a-z]+', '_', self.instrument.split('(')[0].strip().lower())}"


@dataclass
class Measured:
    """One point: its name and, by seed, what was measured.

    Args:
        side: `grpo`, `rival`, `soup` or `variant`.
        by_seed: seed -> name -> value; a value that does not exist for the method is None.
    """

    method: str
    side: str
    title: str
    knob: str | None
    value: float | str | None
    by_seed: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.method if self.value is None else f"{self.method} {self.value}"

    def over(self, seeds: Sequence[int], key: str) -> list[Any]:
        """One value a seed."""
        return [self.by_seed[seed].get(key) for seed in seeds]


def read_results(folder: Path) -> dict[Group, list[Measured]]:
    """Group -> points, GRPO's checkpoints among them.

    Raises:
        ValueError: there is none, two results claim the same point and seed, or those of a group do not start alike.
    """
    found: dict[Group, dict[tuple[str, Any], Measured]] = {}
    starts: dict[Group, tuple[Path, float]] = {}
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        group = Group(result["task"], result["instrument"], result["seed"] // SEEDS_A_SET * SEEDS_A_SET)
        first, start = starts.setdefault(group, (path, result["start"]["pass@1"]))
        if abs(result["start"]["pass@1"] - start) > SAME_START:
            raise ValueError(
                f"{path}: its untrained model has pass@1 {result['start']['pass@1']:.4f}, that of {first} {start:.4f}: "
                "they began with different warm starts and cannot be compared; remove one kind"
            )
        points = found.setdefault(group, {})
        for name, value, values in _points_of(result):
            point = points.setdefault((name["method"], value), Measured(**name, value=value))
            if result["seed"] in point.by_seed:
                raise ValueError(f"{path}: seed {result['seed']} of {point.name} is there twice")
            point.by_seed[result["seed"]] = values
    if not found:
        raise ValueError(f"{folder}: no result.json below it; run benchmarks.grid first")
    return {key: list(points.values()) for key, points in found.items()}


def _points_of(result: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float | None, dict[str, Any]]]:
    """The point itself; of GRPO also the points at which it might have been stopped."""
    *earlier, last = result["checkpoints"]
    name = {key: result[key] for key in ("method", "side", "title", "knob")}
    yield name, result["value"], last | {key: result.get(key) for key in OF_RUN}
    if result["method"] == "grpo":
        stopped = {"method": STOPPED, "side": "rival", "title": "GRPO stopped early", "knob": "steps"}
        curve = result.get("curve") or []
        decoded = {at["step"]: at["decode_tokens"] for at in [{"step": 0, "decode_tokens": 0.0}, *curve] if curve}
        for checkpoint in [{"step": 0} | result["start"], *earlier]:
            yield stopped, checkpoint["step"], checkpoint | {"decode_tokens": decoded.get(checkpoint["step"])}


def pooled(results: Mapping[Group, list[Measured]]) -> dict[Group, list[Measured]]:
    """All sets of seeds of a task and an instrument together: what is searched on the first may be shown on others."""
    found: dict[Group, dict[str, Measured]] = {}
    for group, points in results.items():
        together = found.setdefault(Group(group.task, group.instrument, 0), {})
        for point in points:
            by_seed = together[point.name].by_seed if point.name in together else {}
            together[point.name] = replace(point, by_seed=by_seed | point.by_seed)
    return {group: list(points.values()) for group, points in found.items()}


def of_one_instrument(
    results: Mapping[Group, list[Measured]], task: str, instrument: str = "", seeds_from: int = 0
) -> list[Measured]:
    """The points of a task on the instrument whose name begins so: numbers of two instruments are never compared.

    Raises:
        ValueError: there are none, or those of two instruments.
    """
    wanted = {group for group in results if (group.task, group.seeds_from) == (task, seeds_from)}
    found = sorted(group for group in wanted if group.instrument.startswith(instrument))
    if len(found) > 1:
        names = " and ".join(group.instrument for group in found)
        raise ValueError(f"--task {task}: there are results of {names}; choose one with --instrument")
    if not found:
        asked = f"--task {task}" + f" --instrument {instrument}" * bool(instrument)
        raise ValueError(f"{asked}: there are results of {'; '.join(group.title for group in results)}")
    return results[found[0]]


def common_seeds(points: Sequence[Measured]) -> list[int]:
    """Seeds that every point has."""
    seeds = set.intersection(*(set(point.by_seed) for point in points))
    return sorted(seeds)


def learning(points: Sequence[Measured]) -> list[Measured]:
    """The points whose curve of reward was kept: those of results made since it is."""
    return [p for p in points if p.by_seed and all(found.get("curve") for found in p.by_seed.values())]


def by_grid_name(points: Sequence[Measured]) -> dict[str, Measured]:
    """By METHOD or METHOD/VALUE, as the grid calls them; `grpo_stopped/200` is GRPO's checkpoint of step 200."""
    return {point.name.replace(" ", "/"): point for point in points}


def grpo_of(points: Sequence[Measured]) -> Measured:
    """The point all are compared with.

    Raises:
        ValueError: it was not run.
    """
    for point in points:
        if point.side == "grpo":
            return point
    raise ValueError("no result of the method `grpo`, which all others are compared with")
