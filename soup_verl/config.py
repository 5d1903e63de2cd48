"""The `soup:` section of a run's configuration, and every rule it must obey.

Plain Python: no torch, no Hydra, no verl. `SoupConfig.parse` builds the section from a mapping and refuses unknown
keys; `check_run` checks the rules between `soup.*` and the rest of a run's configuration. Both run before Ray starts.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOURCES = ("lookahead", "snapshot")
PREFIX_OBJECTIVES = ("behavior", "decoupled", "masked")
BASELINES = ("shared", "split")
LENGTH_DISTRIBUTIONS = ("fixed", "uniform")
SNAPSHOT_CHOICES = ("uniform", "oldest", "latest")


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


def _require(ok: bool, key: str, value: Any, expected: str, remedy: str = "") -> None:
    if not ok:
        raise ConfigError(key, value, expected, remedy)


def _require_one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, f"one of {', '.join(choices)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_int(key: str, value: Any, *, minimum: int) -> None:
    _require(_is_int(value) and value >= minimum, key, value, f"an integer of at least {minimum}")


@dataclass(frozen=True)
class PrefixLengthConfig:
    """How many tokens a prefix has: drawn for each response, seeded, both ends included."""

    distribution: str = "uniform"
    low: int = 1
    high: int | None = None  # None: half of the response budget

    def __post_init__(self) -> None:
        _require_one_of("soup.prefix_length.distribution", self.distribution, LENGTH_DISTRIBUTIONS)
        _require_int("soup.prefix_length.low", self.low, minimum=1)
        if self.high is not None:
            _require_int("soup.prefix_length.high", self.high, minimum=1)
            _require(
                self.low <= self.high,
                "soup.prefix_length.low",
                self.low,
                f"at most soup.prefix_length.high={self.high}",
            )
        if self.distribution == "fixed":
            _require(
                self.high is not None and self.low == self.high,
                "soup.prefix_length.high",
                self.high,
                f"the same as soup.prefix_length.low={self.low} when the distribution is fixed",
                "Set both to the one length, or use distribution=uniform.",
            )

    def bounds(self, response_length: int) -> tuple[int, int]:
        """Lowest and highest length in tokens for a response budget of `response_length` tokens."""
        return self.low, self.high if self.high is not None else max(self.low, response_length // 2)


@dataclass(frozen=True)
class LookaheadConfig:
    """Prefixes of step t + age are sampled by the policy of step t."""

    age: int = 4

    def __post_init__(self) -> None:
        _require(
            _is_int(self.age) and self.age >= 1,
            "soup.lookahead.age",
            self.age,
            "a whole number of steps, at least 1",
            "An age of 0 is the current policy; for plain GRPO set soup.mixed_fraction=0.",
        )


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
class SoupConfig:
    """Everything SOUP adds to a verl run; see `recipe/soup/config/soup_trainer.yaml` for each key's meaning."""

    mixed_fraction: float = 0.5
    source: str = "lookahead"
    prefix_length: PrefixLengthConfig = field(default_factory=PrefixLengthConfig)
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    prefix_objective: str = "behavior"
    decoupled_weight_cap: float = 2.0
    baseline: str = "shared"
    seed: int = 0
    sampling_seed: int | None = None

    def __post_init__(self) -> None:
        _require(
            isinstance(self.mixed_fraction, (int, float))
            and not isinstance(self.mixed_fraction, bool)
            and 0 <= self.mixed_fraction <= 1,
            "soup.mixed_fraction",
            self.mixed_fraction,
            "a number from 0 to 1",
            "It is the share of each prompt's responses that start with a historical prefix; 0 is plain GRPO.",
        )
        _require_one_of("soup.source", self.source, SOURCES)
        _require_one_of("soup.prefix_objective", self.prefix_objective, PREFIX_OBJECTIVES)
        _require_one_of("soup.baseline", self.baseline, BASELINES)
        _require(
            isinstance(self.decoupled_weight_cap, (int, float)) and self.decoupled_weight_cap > 0,
            "soup.decoupled_weight_cap",
            self.decoupled_weight_cap,
            "a number above 0",
        )
        _require_int("soup.seed", self.seed, minimum=0)
        if self.sampling_seed is not None:
            _require_int("soup.sampling_seed", self.sampling_seed, minimum=0)

    @property
    def mixing(self) -> bool:
        """Whether any response can be mixed; False is GRPO, number for number."""
        return self.mixed_fraction > 0

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> SoupConfig:
        """Build from the `soup:` section.

        Raises:
            ConfigError: an unknown key or a value out of range, named in full.
        """
        return _parse(cls, section, "soup")


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
            _check_type(f"{path}.{key}", value, hint)
            values[key] = value
    return cls(**values)


def _check_type(key: str, value: Any, hint: Any) -> None:
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
    _require(isinstance(value, allowed) and not isinstance(value, bool), key, value, f"a value of type {names}")


def _get(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return default if node is None else node


def check_run(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """Check the rules between `soup` and the rest of the run.

    Args:
        soup: the parsed section.
        config: the whole resolved configuration as plain mappings.

    Raises:
        ConfigError: the first rule that is broken.
    """
    if not soup.mixing:
        return
    _check_mixing_possible(soup, config)
    _check_prefix_fits(soup, config)
    _check_behavior_log_probs(config)
    _check_objective(soup, config)
    _check_prompt_order(soup, config)


def _check_mixing_possible(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    n = _get(config, "actor_rollout_ref.rollout.n", 1)
    _require(
        round(soup.mixed_fraction * n) >= 1,
        "soup.mixed_fraction",
        soup.mixed_fraction,
        f"a share that makes at least one of actor_rollout_ref.rollout.n={n} responses mixed",
        "Raise it, raise rollout.n, or set it to 0 for plain GRPO.",
    )
    estimator = _get(config, "algorithm.adv_estimator")
    _require(
        estimator == "soup",
        "algorithm.adv_estimator",
        estimator,
        "soup, because soup.mixed_fraction is above 0",
        "Set algorithm.adv_estimator=soup, or soup.mixed_fraction=0.",
    )
    agent = _get(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    _require(
        agent == "soup_agent",
        "actor_rollout_ref.rollout.agent.default_agent_loop",
        agent,
        "soup_agent, the agent loop that can continue a prefix",
        "Other agent loops run with soup.mixed_fraction=0.",
    )
    manager = _get(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class")
    _require(
        manager == "soup_verl.rollout.SoupAgentLoopManager",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
        manager,
        "soup_verl.rollout.SoupAgentLoopManager, because soup.mixed_fraction is above 0",
    )


def _check_prefix_fits(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    budget = _get(config, "actor_rollout_ref.rollout.response_length", 0)
    low, high = soup.prefix_length.bounds(budget)
    key = "soup.prefix_length.high" if soup.prefix_length.high is not None else "soup.prefix_length.low"
    _require(
        high < budget,
        key,
        max(low, high),
        f"less than the response budget data.max_response_length={budget} tokens",
        "A prefix must leave room for a continuation.",
    )


def _check_behavior_log_probs(config: Mapping[str, Any]) -> None:
    rollout = "actor_rollout_ref.rollout"
    _require(
        bool(_get(config, f"{rollout}.calculate_log_probs", False)),
        f"{rollout}.calculate_log_probs",
        False,
        "true: the rollout engine's log-probs are the behaviour log-probs of the prefix",
    )
    temperature = _get(config, f"{rollout}.temperature", 1.0)
    _require(temperature > 0, f"{rollout}.temperature", temperature, "above 0: a greedy prefix has no probability")
    mode = _get(config, f"{rollout}.logprobs_mode", "processed_logprobs")
    _require(
        mode == "processed_logprobs",
        f"{rollout}.logprobs_mode",
        mode,
        "processed_logprobs, log-probs at the sampling temperature",
    )
    for name, neutral in (("top_p", 1.0), ("top_k", -1)):
        value = _get(config, f"{rollout}.{name}", neutral)
        _require(
            value == neutral,
            f"{rollout}.{name}",
            value,
            f"{neutral}: truncated sampling has other log-probs than the trainer's full softmax",
            "Truncate in validation (rollout.val_kwargs) instead.",
        )


def _check_objective(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    if soup.prefix_objective != "decoupled":
        return
    correction = "algorithm.rollout_correction"
    _require(
        not _get(config, f"{correction}.bypass_mode", False),
        f"{correction}.bypass_mode",
        True,
        "false with soup.prefix_objective=decoupled, which clips around the recomputed old_log_probs",
    )
    for name in ("rollout_is", "rollout_rs"):
        value = _get(config, f"{correction}.{name}")
        _require(
            value is None,
            f"{correction}.{name}",
            value,
            "null with soup.prefix_objective=decoupled, which already weights prefix tokens",
            "Both together would correct them twice.",
        )


def _check_prompt_order(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    _require(
        not _get(config, "algorithm.filter_groups.enable", False),
        "algorithm.filter_groups.enable",
        True,
        "false when soup.mixed_fraction is above 0: refilled prompts have no prefix planned",
    )
    refill = "trainer.v1.sampler.sync_refill_failed_groups"
    _require(not _get(config, refill, False), refill, True, "false when soup.mixed_fraction is above 0")
    total = _get(config, "trainer.total_training_steps")
    if soup.source == "lookahead" and total is not None:
        _require(
            soup.lookahead.age < total,
            "soup.lookahead.age",
            soup.lookahead.age,
            f"less than trainer.total_training_steps={total}",
            "Otherwise the run ends before the first prefix is used.",
        )
