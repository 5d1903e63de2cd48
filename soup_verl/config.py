"""The `soup:` section of a run's configuration, and every rule within it.

Plain Python: no torch, no Hydra, no verl. `SoupConfig.parse` builds the section from a mapping and refuses unknown
keys. `run_rules.py` has the rules between `soup.*` and the rest of a run. Both run before Ray starts.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCES = ("lookahead", "snapshot", "replay")
POSITIONS = ("prefix", "middle", "suffix")
GATES = ("always", "unsolved", "saturated")
PREFIX_OBJECTIVES = ("behavior", "decoupled", "masked", "shaped")
PREFIX_CORRECTIONS = ("none", "min_prefix")
BASELINES = ("shared", "split")
BEHAVIOR_LOG_PROBS = ("rollout", "actor")
LENGTH_DISTRIBUTIONS = ("fixed", "uniform")
LENGTH_UNITS = ("tokens", "share")
SCHEDULE_SHAPES = ("constant", "linear", "cosine")
SNAPSHOT_CHOICES = ("uniform", "oldest", "latest", "auto")
DEFAULT_LONGEST_PREFIX = 1024
"""Tokens; just under half of the response budget where that is shorter."""
REPLAY_CHOICES = ("uniform", "latest", "best_reward", "worst_reward", "entropy")


class PortableError(ValueError):
    """An error that keeps its message on the way out of a Ray process, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_error, (type(self), str(self))


def _rebuild_error(cls: type[PortableError], message: str) -> PortableError:
    error = cls.__new__(cls)
    error.args = (message,)
    return error


class ConfigError(PortableError):
    """A setting that cannot work: names the full key, the value seen, what is expected and what to do."""

    def __init__(self, key: str, value: Any, expected: str, remedy: str = ""):
        super().__init__(f"{key}={value!r}: expected {expected}." + (f" {remedy}" if remedy else ""))


def require(ok: bool, key: str, value: Any, expected: str, remedy: str = "") -> None:
    """Raise ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(key, value, expected, remedy)


def _require_one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_int(key: str, value: Any, *, minimum: int) -> None:
    require(_is_int(value) and value >= minimum, key, value, f"an integer of at least {minimum}")


def _require_above_0(key: str, value: Any) -> None:
    require(_is_number(value) and value > 0, key, value, "a number above 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How a value moves over training: from its own setting at step 1 to `final` at step `steps`, then it stays."""

    shape: str = "constant"
    final: float | None = None
    steps: int | None = None  # None: the run's last step

    def check(self, path: str) -> None:
        """Raises ConfigError; `path` is the section's own key."""
        _require_one_of(f"{path}.shape", self.shape, SCHEDULE_SHAPES)
        if self.shape == "constant":
            require(self.final is None, f"{path}.final", self.final, "null with shape=constant")
        else:
            require(_is_number(self.final), f"{path}.final", self.final, f"a number, because {path}.shape={self.shape}")
        if self.steps is not None:
            _require_int(f"{path}.steps", self.steps, minimum=1)


@dataclass(frozen=True)
class PrefixLengthConfig:
    """How long a prefix is: drawn for each response, seeded, both ends included."""

    distribution: str = "uniform"
    unit: str = "tokens"
    low: float | None = None  # None: 1 token, or any share
    high: float | None = None  # None: DEFAULT_LONGEST_PREFIX, or the whole source response
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # of `high`

    def __post_init__(self) -> None:
        path = "soup.prefix_length"
        _require_one_of(f"{path}.distribution", self.distribution, LENGTH_DISTRIBUTIONS)
        _require_one_of(f"{path}.unit", self.unit, LENGTH_UNITS)
        for name in ("low", "high"):
            if (value := getattr(self, name)) is not None:
                self._check_length(f"{path}.{name}", value)
        if self.low is not None and self.high is not None:
            require(self.low <= self.high, f"{path}.low", self.low, f"at most {path}.high={self.high}")
        if self.distribution == "fixed":
            require(
                self.high is not None and self.low == self.high,
                f"{path}.high",
                self.high,
                f"the same as {path}.low={self.low} when the distribution is fixed",
                "Set both to the one length, or use distribution=uniform.",
            )
            require(
                self.schedule.shape == "constant",
                f"{path}.schedule.shape",
                self.schedule.shape,
                "constant when the distribution is fixed",
            )
        self.schedule.check(f"{path}.schedule")
        if self.schedule.final is not None:
            self._check_length(f"{path}.schedule.final", self.schedule.final)

    def _check_length(self, key: str, value: Any) -> None:
        if self.unit == "tokens":
            _require_int(key, value, minimum=1)
        else:
            require(_is_number(value) and 0 < value <= 1, key, value, "a share above 0 and up to 1, because unit=share")

    def bounds(self, response_length: int) -> tuple[float, float]:
        """Lowest and highest length, before any schedule: tokens of a budget of `response_length`, or shares."""
        in_tokens = self.unit == "tokens"
        low = self.low if self.low is not None else (1 if in_tokens else 0.0)
        default = min((response_length - 1) // 2, DEFAULT_LONGEST_PREFIX) if in_tokens else 1.0
        return low, self.high if self.high is not None else max(low, default)

    def longest(self, response_length: int) -> tuple[str, float]:
        """The highest length at any step, and the key that it comes from."""
        low, high = self.bounds(response_length)
        found = {"high": high, "schedule.final": self.schedule.final or 0, "low": low}
        name = max(found, key=lambda n: found[n])  # the first of equals
        if name == "high" and self.high is None and self.low is not None and high == low:
            name = "low"  # which pushed the default up
        return f"soup.prefix_length.{name}", found[name]


@dataclass(frozen=True)
class LookaheadConfig:
    """Prefixes of step t + age are sampled by the policy of step t."""

    age: int | list = 4

    def __post_init__(self) -> None:
        require(
            len(self.ages) > 0 and all(_is_int(a) and a >= 1 for a in self.ages) and _all_differ(self.ages),
            "soup.lookahead.age",
            self.age,
            "a whole number of steps, at least 1, or a list of different ones",
            "An age of 0 is the current policy; for plain GRPO set soup.mixed_fraction=0.",
        )

    @property
    def ages(self) -> tuple[int, ...]:
        """Every age, in the order given."""
        return tuple(self.age) if isinstance(self.age, (list, tuple)) else (self.age,)


def _all_differ(values: tuple[Any, ...]) -> bool:
    return len(set(values)) == len(values)


@dataclass(frozen=True)
class SnapshotConfig:
    """A buffer of past weights in host memory."""

    every: int = 1
    capacity: int = 4
    choice: str = "uniform"

    def __post_init__(self) -> None:
        _require_int("soup.snapshot.every", self.every, minimum=1)
        _require_int("soup.snapshot.capacity", self.capacity, minimum=1)
        _require_one_of("soup.snapshot.choice", self.choice, SNAPSHOT_CHOICES)


@dataclass(frozen=True)
class ReplayConfig:
    """A store of responses that earlier policies gave; host memory stays under 10 bytes x `capacity_tokens`."""

    capacity_tokens: int = 64_000_000
    per_prompt: int = 16
    max_policy_age: int | None = None  # None: no limit
    choice: str = "uniform"

    def __post_init__(self) -> None:
        _require_int("soup.replay.capacity_tokens", self.capacity_tokens, minimum=1024)
        _require_int("soup.replay.per_prompt", self.per_prompt, minimum=1)
        if self.max_policy_age is not None:
            _require_int("soup.replay.max_policy_age", self.max_policy_age, minimum=1)
        _require_one_of("soup.replay.choice", self.choice, REPLAY_CHOICES)


@dataclass(frozen=True)
class KlControlConfig:
    """Keeping the historical policies near the current one, but not too near. All in nats a token, k3 estimate."""

    max_prefix_kl: float | None = None
    min_prefix_kl: float | None = None
    patience: int = 10
    target_kl: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_prefix_kl", "min_prefix_kl", "target_kl"):
            if (value := getattr(self, name)) is not None:
                _require_above_0(f"soup.kl_control.{name}", value)
        if self.max_prefix_kl is not None and self.min_prefix_kl is not None:
            require(
                self.min_prefix_kl < self.max_prefix_kl,
                "soup.kl_control.min_prefix_kl",
                self.min_prefix_kl,
                f"less than soup.kl_control.max_prefix_kl={self.max_prefix_kl}",
            )
        _require_int("soup.kl_control.patience", self.patience, minimum=1)


@dataclass(frozen=True)
class LogSamplesConfig:
    """Responses written token by token to `samples.jsonl`; 0 in either key turns it off."""

    every: int = 10
    count: int = 5

    def __post_init__(self) -> None:
        _require_int("soup.log_samples.every", self.every, minimum=0)
        _require_int("soup.log_samples.count", self.count, minimum=0)


@dataclass(frozen=True)
class SoupConfig:
    """Everything SOUP adds to a verl run; see `recipe/soup/config/soup_trainer.yaml` for each key's meaning."""

    mixed_fraction: float = 0.5
    mixed_fraction_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    when: str = "always"
    source: str = "lookahead"
    warm_start: bool = False
    position: str = "prefix"
    prefix_length: PrefixLengthConfig = field(default_factory=PrefixLengthConfig)
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    kl_control: KlControlConfig = field(default_factory=KlControlConfig)
    behavior_log_probs: str = "rollout"
    prefix_objective: str = "behavior"
    decoupled_weight_cap: float = 2.0
    shaped_gamma: float = 0.1
    prefix_correction: str = "none"
    baseline: str = "shared"
    max_skipped_steps: int = 3
    seed: int = 0
    sampling_seed: int | None = None
    log_samples: LogSamplesConfig = field(default_factory=LogSamplesConfig)
    preflight_only: bool = False

    def __post_init__(self) -> None:
        _require_share("soup.mixed_fraction", self.mixed_fraction)
        _require_int("soup.max_skipped_steps", self.max_skipped_steps, minimum=1)
        self.mixed_fraction_schedule.check("soup.mixed_fraction_schedule")
        if self.mixed_fraction_schedule.final is not None:
            _require_share("soup.mixed_fraction_schedule.final", self.mixed_fraction_schedule.final)
        _require_one_of("soup.when", self.when, GATES)
        _require_one_of("soup.source", self.source, SOURCES)
        _require_one_of("soup.position", self.position, POSITIONS)
        _require_one_of("soup.behavior_log_probs", self.behavior_log_probs, BEHAVIOR_LOG_PROBS)
        _require_one_of("soup.prefix_objective", self.prefix_objective, PREFIX_OBJECTIVES)
        _require_one_of("soup.prefix_correction", self.prefix_correction, PREFIX_CORRECTIONS)
        _require_one_of("soup.baseline", self.baseline, BASELINES)
        _require_above_0("soup.decoupled_weight_cap", self.decoupled_weight_cap)
        _require_above_0("soup.shaped_gamma", self.shaped_gamma)
        _require_int("soup.seed", self.seed, minimum=0)
        if self.sampling_seed is not None:
            _require_int("soup.sampling_seed", self.sampling_seed, minimum=0)
        self._check_source_can()

    def _check_source_can(self) -> None:
        """What only one source can do."""
        require(
            self.prefix_length.unit == "tokens" or self.source == "replay",
            "soup.prefix_length.unit",
            self.prefix_length.unit,
            f"tokens with soup.source={self.source}",
            "Only replay knows how long the source response is.",
        )
        require(
            self.position == "prefix" or self.source == "snapshot",
            "soup.position",
            self.position,
            f"prefix with soup.source={self.source}",
            "Historical tokens elsewhere in the response need soup.source=snapshot.",
        )
        require(
            not (self.warm_start and self.source == "replay"),
            "soup.warm_start",
            self.warm_start,
            "false with soup.source=replay, which has nothing before a prompt's second visit",
        )
        require(
            self.source != "snapshot" or self.snapshot.choice != "auto" or self.kl_control.target_kl is not None,
            "soup.kl_control.target_kl",
            None,
            "the prefix KL to aim at, because soup.snapshot.choice=auto",
        )

    @property
    def mixing(self) -> bool:
        """Whether any response can be mixed; False is GRPO, number for number."""
        return self.mixed_fraction > 0 or (self.mixed_fraction_schedule.final or 0) > 0

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> SoupConfig:
        """Build from the `soup:` section.

        Raises:
            ConfigError: an unknown key or a value out of range, named in full.
        """
        return _parse(cls, section, "soup")


def _require_share(key: str, value: Any) -> None:
    require(
        _is_number(value) and 0 <= value <= 1,
        key,
        value,
        "a number from 0 to 1",
        "It is the share of each prompt's responses that start with a historical prefix; 0 is plain GRPO.",
    )


def _parse(cls: Any, section: Any, path: str) -> Any:
    if not isinstance(section, Mapping):
        raise ConfigError(path, section, "a section of keys")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in section:
        if key not in known:
            raise ConfigError(f"{path}.{key}", section[key], f"no such key; {path} has {', '.join(sorted(known))}")
    values = {}
    for key, value in section.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = _parse(hint, value, f"{path}.{key}")
        else:
            if isinstance(value, Sequence) and not isinstance(value, str):
                value = list(value)  # OmegaConf has a list class of its own
            _check_type(f"{path}.{key}", value, hint)
            values[key] = value
    return cls(**values)


def _check_type(key: str, value: Any, hint: Any) -> None:
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
    ok = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
    require(ok, key, value, f"a value of type {names}")
