"""The sections of `soup:` in a configuration, each checked where it is made, and the names that keys may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from soup_verl.method.checks import (
    is_int,
    is_number,
    require,
    require_above_0,
    require_int,
    require_one_of,
)
from soup_verl.method.down_sampling import CHOICES as DOWN_SAMPLING_CHOICES
from soup_verl.method.mixing import SHAPES

PLANNED_SOURCES = ("lookahead", "snapshot", "replay", "forget")
"""Hand over prefixes that the mixing plan asks for."""
SOURCES = (*PLANNED_SOURCES, "inflight")
POSITIONS = ("prefix", "middle", "suffix", "whole")
PREFIX_OBJECTIVES = ("behavior", "decoupled", "masked", "shaped", "shaped_ratio")
PREFIX_CORRECTIONS = ("none", "min_prefix", "cumulative", "cumulative_unclipped")
BASELINES = ("shared", "split", "sampler", "min_variance")
POLICY_LOSSES = ("exo", "exo_centred", "oapl", "oapl_paired", "vespo")
SQUARED_LOSSES = ("oapl", "oapl_paired")
"""With an advantage of their own; a response's terms are summed."""
RESPONSE_LOSSES = (*SQUARED_LOSSES, "vespo")
"""Read the ratio of the whole response."""
SINGLE_TURN = ("soup_agent", "single_turn_agent")
"""Names of verl's single-turn agent loop: `soup_agent` is the one that our configurations have."""
NEEDS_ONE_TURN = "That needs a single turn: for others take soup.position=prefix and another source."
"""What is said of a setting whose historical policy would have to call tools, or that was not tried with them."""
OF_PLANS = ("when", "start_at_solved_rate", "warm_start", "position", "mixed_fraction_schedule", "prefix_length")
"""What only planned prefixes have, besides `mixed_fraction`."""
BEHAVIOR_LOG_PROBS = ("rollout", "actor")
LENGTH_DISTRIBUTIONS = ("fixed", "uniform")
LENGTH_UNITS = ("tokens", "share")
SNAPSHOT_CHOICES = ("uniform", "oldest", "latest", "auto")
STEP_SIZE_RULES = ("none", "sqrt", "linear")
DEFAULT_LONGEST_PREFIX = 1024
"""Tokens; just under half of the response budget where that is shorter."""
REPLAY_CHOICES = (
    "uniform",
    "latest",
    "best_reward",
    "worst_reward",
    "entropy",
    "latest_right",
    "latest_wrong",
    "surest_right",
    "balanced",
)


@dataclass(frozen=True)
class ScheduleConfig:
    """How a value moves over training: from its own setting at step 1 to `final` at step `steps`, then it stays."""

    shape: str = "constant"
    final: float | None = None
    steps: int | None = None  # None: the run's last step

    def check(self, path: str) -> None:
        """Raises ConfigError; `path` is the section's own key."""
        require_one_of(f"{path}.shape", self.shape, SHAPES)
        if self.shape == "constant":
            require(self.final is None, f"{path}.final", self.final, "null with shape=constant")
        else:
            require(is_number(self.final), f"{path}.final", self.final, f"a number, because {path}.shape={self.shape}")
        if self.steps is not None:
            require_int(f"{path}.steps", self.steps, minimum=1)


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
        require_one_of(f"{path}.distribution", self.distribution, LENGTH_DISTRIBUTIONS)
        require_one_of(f"{path}.unit", self.unit, LENGTH_UNITS)
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
            require_int(key, value, minimum=1)
        else:
            require(is_number(value) and 0 < value <= 1, key, value, "a share above 0 and up to 1, because unit=share")

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
            len(self.ages) > 0 and all(is_int(a) and a >= 1 for a in self.ages) and _all_differ(self.ages),
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
        require_int("soup.snapshot.every", self.every, minimum=1)
        require_int("soup.snapshot.capacity", self.capacity, minimum=1)
        require_one_of("soup.snapshot.choice", self.choice, SNAPSHOT_CHOICES)


@dataclass(frozen=True)
class ReplayConfig:
    """A store of responses that earlier policies gave; host memory stays under 10 bytes x `capacity_tokens`."""

    capacity_tokens: int = 64_000_000
    per_prompt: int = 16
    max_policy_age: int | None = None  # None: no limit
    choice: str = "uniform"
    target_pass_rate: float = 0.5  # of choice=balanced

    def __post_init__(self) -> None:
        require_int("soup.replay.capacity_tokens", self.capacity_tokens, minimum=1024)
        require_int("soup.replay.per_prompt", self.per_prompt, minimum=1)
        if self.max_policy_age is not None:
            require_int("soup.replay.max_policy_age", self.max_policy_age, minimum=1)
        require_one_of("soup.replay.choice", self.choice, REPLAY_CHOICES)
        ok = is_number(self.target_pass_rate) and 0 < self.target_pass_rate < 1
        require(ok, "soup.replay.target_pass_rate", self.target_pass_rate, "a rate between 0 and 1, neither of them")


@dataclass(frozen=True)
class ForgetConfig:
    """Unlearning of a copy of the policy; see `method/history/forget.py`."""

    lr: float = 0.03
    steps: int = 1
    clip: float = 0.3

    def __post_init__(self) -> None:
        require_above_0("soup.forget.lr", self.lr)
        require_int("soup.forget.steps", self.steps, minimum=1)
        ok = is_number(self.clip) and 0 < self.clip < 1
        require(ok, "soup.forget.clip", self.clip, "a number between 0 and 1")


@dataclass(frozen=True)
class InflightConfig:
    """Responses that weight updates interrupted; see `stack/inflight.py`."""

    max_policy_age: int | None = None  # None: no limit

    def __post_init__(self) -> None:
        if self.max_policy_age is not None:
            require_int("soup.inflight.max_policy_age", self.max_policy_age, minimum=1)


@dataclass(frozen=True)
class KlControlConfig:
    """Keeping the historical policies near the current one, but not too near. KLs in nats a token, k3 estimate."""

    max_prefix_kl: float | None = None
    max_second_moment: float | None = None
    min_prefix_kl: float | None = None
    patience: int = 10
    target_kl: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_prefix_kl", "max_second_moment", "min_prefix_kl", "target_kl"):
            if (value := getattr(self, name)) is not None:
                require_above_0(f"soup.kl_control.{name}", value)
        if self.max_prefix_kl is not None and self.min_prefix_kl is not None:
            require(
                self.min_prefix_kl < self.max_prefix_kl,
                "soup.kl_control.min_prefix_kl",
                self.min_prefix_kl,
                f"less than soup.kl_control.max_prefix_kl={self.max_prefix_kl}",
            )
        require_int("soup.kl_control.patience", self.patience, minimum=1)


@dataclass(frozen=True)
class StepSizeConfig:
    """A learning rate that shrinks where few mixed responses carry the weight; see `method/step_size.py`."""

    rule: str = "none"
    rho_base: float = 1.0

    def __post_init__(self) -> None:
        require_one_of("soup.step_size.rule", self.rule, STEP_SIZE_RULES)
        ok = is_number(self.rho_base) and 0 < self.rho_base <= 1
        require(ok, "soup.step_size.rho_base", self.rho_base, "a share above 0 and up to 1")


@dataclass(frozen=True)
class PolicyLossConfig:
    """A loss of this project in place of verl's own."""

    name: str | None = None  # None: verl's `actor_rollout_ref.actor.policy_loss.loss_mode`
    exo_k: float | None = 5.0  # None: the clip itself
    oapl_b1: float = 1.0
    oapl_b2: float = 1e-3

    def __post_init__(self) -> None:
        path = "soup.policy_loss"
        if self.name is not None:
            require_one_of(f"{path}.name", self.name, POLICY_LOSSES)
        if self.exo_k is not None:
            require_above_0(f"{path}.exo_k", self.exo_k)
        require_above_0(f"{path}.oapl_b1", self.oapl_b1)
        require_above_0(f"{path}.oapl_b2", self.oapl_b2)


@dataclass(frozen=True)
class DownSamplingConfig:
    """Training on some of a prompt's responses; see `method/down_sampling.py`."""

    train_on: int | None = None  # None: all of them
    choice: str = "max_variance"

    def __post_init__(self) -> None:
        path = "soup.down_sampling"
        if self.train_on is not None:
            require_int(f"{path}.train_on", self.train_on, minimum=2)
        require_one_of(f"{path}.choice", self.choice, DOWN_SAMPLING_CHOICES)


@dataclass(frozen=True)
class LogSamplesConfig:
    """Responses written token by token to `samples.jsonl`; 0 in either key turns it off."""

    every: int = 10
    count: int = 5

    def __post_init__(self) -> None:
        require_int("soup.log_samples.every", self.every, minimum=0)
        require_int("soup.log_samples.count", self.count, minimum=0)


@dataclass(frozen=True)
class StallMinutesConfig:
    """How long a stage may make no progress, in minutes; None: for ever. See `launch/stalls.py`."""

    set_up: float | None = 60.0
    rollout: float | None = 60.0
    update: float | None = 60.0
    weight_sync: float | None = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            ok = value is None or (is_number(value) and value > 0)
            require(ok, f"soup.stall_minutes.{name}", value, "minutes above 0, or null for no limit")
