"""The `soup:` section of a run's configuration, and every rule within it.

Plain Python: no torch, no Hydra, no verl. `SoupConfig.parse` builds the section from a mapping and refuses unknown
keys. `run_rules.py` has the rules between `soup.*` and the rest of a run. Both run before Ray starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from soup_verl.method.checks import (
    is_number,
    leaves,
    parse_section,
    require,
    require_above_0,
    require_int,
    require_one_of,
    require_share,
)
from soup_verl.method.mixing import GATES
from soup_verl.method.sections import (
    BASELINES,
    BEHAVIOR_LOG_PROBS,
    OF_PLANS,
    PLANNED_SOURCES,
    POSITIONS,
    PREFIX_CORRECTIONS,
    PREFIX_OBJECTIVES,
    RESPONSE_LOSSES,
    SOURCES,
    SQUARED_LOSSES,
    DownSamplingConfig,
    ForgetConfig,
    InflightConfig,
    KlControlConfig,
    LogSamplesConfig,
    LookaheadConfig,
    PolicyLossConfig,
    PrefixLengthConfig,
    ReplayConfig,
    ScheduleConfig,
    SnapshotConfig,
    StallMinutesConfig,
    StepSizeConfig,
)


@dataclass(frozen=True)
class SoupConfig:
    """Everything SOUP adds to a verl run; see `recipe/soup/config/soup_trainer.yaml` for each key's meaning."""

    mixed_fraction: float = 0.5
    mixed_fraction_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    when: str = "always"
    start_at_solved_rate: float | None = None  # None: from the first step on
    source: str = "lookahead"
    warm_start: bool = False
    position: str = "prefix"
    prefix_length: PrefixLengthConfig = field(default_factory=PrefixLengthConfig)
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    forget: ForgetConfig = field(default_factory=ForgetConfig)
    inflight: InflightConfig = field(default_factory=InflightConfig)
    kl_control: KlControlConfig = field(default_factory=KlControlConfig)
    behavior_log_probs: str = "rollout"
    prefix_objective: str = "behavior"
    decoupled_weight_cap: float = 2.0
    shaped_gamma: float = 0.1
    prefix_correction: str = "none"
    baseline: str = "shared"
    down_sampling: DownSamplingConfig = field(default_factory=DownSamplingConfig)
    step_size: StepSizeConfig = field(default_factory=StepSizeConfig)
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    max_skipped_steps: int = 3
    keep_best: str | None = None
    seed: int = 0
    sampling_seed: int | None = None
    log_samples: LogSamplesConfig = field(default_factory=LogSamplesConfig)
    stall_minutes: StallMinutesConfig = field(default_factory=StallMinutesConfig)
    restarts: int = 0
    preflight_only: bool = False

    def __post_init__(self) -> None:
        require_share("soup.mixed_fraction", self.mixed_fraction)
        require_int("soup.max_skipped_steps", self.max_skipped_steps, minimum=1)
        if self.keep_best is not None:
            expected = (
                "a metric of validation, such as val-soup/math-500/pass@4, or a minus and one of which less is better"
            )
            require(self.keep_best.removeprefix("-").startswith("val-"), "soup.keep_best", self.keep_best, expected)
        require_int("soup.restarts", self.restarts, minimum=0)
        self.mixed_fraction_schedule.check("soup.mixed_fraction_schedule")
        if self.mixed_fraction_schedule.final is not None:
            require_share("soup.mixed_fraction_schedule.final", self.mixed_fraction_schedule.final)
        require_one_of("soup.when", self.when, GATES)
        if self.start_at_solved_rate is not None:
            ok = is_number(self.start_at_solved_rate) and 0 <= self.start_at_solved_rate < 1
            require(
                ok, "soup.start_at_solved_rate", self.start_at_solved_rate, "a share from 0 to less than 1, or null"
            )
        require_one_of("soup.source", self.source, SOURCES)
        require_one_of("soup.position", self.position, POSITIONS)
        require_one_of("soup.behavior_log_probs", self.behavior_log_probs, BEHAVIOR_LOG_PROBS)
        require_one_of("soup.prefix_objective", self.prefix_objective, PREFIX_OBJECTIVES)
        require_one_of("soup.prefix_correction", self.prefix_correction, PREFIX_CORRECTIONS)
        require_one_of("soup.baseline", self.baseline, BASELINES)
        require_above_0("soup.decoupled_weight_cap", self.decoupled_weight_cap)
        require_above_0("soup.shaped_gamma", self.shaped_gamma)
        require_int("soup.seed", self.seed, minimum=0)
        if self.sampling_seed is not None:
            require_int("soup.sampling_seed", self.sampling_seed, minimum=0)
        self._check_source_can()
        self._check_inflight()
        self._check_balanced()
        self._check_policy_loss()
        self._check_down_sampling()

    def _check_policy_loss(self) -> None:
        name = self.policy_loss.name
        require(
            name not in ("exo_centred", *RESPONSE_LOSSES) or self.prefix_objective in ("behavior", "masked"),
            "soup.prefix_objective",
            self.prefix_objective,
            f"behavior or masked with soup.policy_loss.name={name}",
            "Its ratio is against the policy that sampled the token, and its weight is 1.",
        )
        require(
            name not in RESPONSE_LOSSES or self.prefix_correction == "none",
            "soup.prefix_correction",
            self.prefix_correction,
            f"none with soup.policy_loss.name={name}, whose ratio is that of the whole response, prefix included",
        )
        require(
            name not in SQUARED_LOSSES or not self.mixing or self.baseline == "sampler",
            "soup.baseline",
            self.baseline,
            f"sampler with soup.policy_loss.name={name}, whose value is that of the policy that sampled",
        )

    def _check_down_sampling(self) -> None:
        some = self.down_sampling.train_on
        require(
            some is None or self.baseline == "shared",
            "soup.baseline",
            self.baseline,
            f"shared with soup.down_sampling.train_on={some}",
            "Of either kind a single response may be left, with nothing to compare it with.",
        )
        require(
            some is None or self.source != "replay" or self.behavior_log_probs == "rollout",
            "soup.behavior_log_probs",
            self.behavior_log_probs,
            f"rollout with soup.source=replay and soup.down_sampling.train_on={some}",
            "All responses are stored, and the trainer has no log-probs of those that it does not train on.",
        )

    def _check_source_can(self) -> None:
        """What only one source can do."""
        require(
            self.prefix_length.unit == "tokens" or self.source == "replay",
            "soup.prefix_length.unit",
            self.prefix_length.unit,
            f"tokens with soup.source={self.source}",
            "Only replay knows how long the source response is.",
        )
        possible = POSITIONS if self.source == "snapshot" else ("prefix", "whole")
        require(
            self.position in possible,
            "soup.position",
            self.position,
            f"{' or '.join(possible)} with soup.source={self.source}",
            "Historical tokens elsewhere in the response need soup.source=snapshot.",
        )
        starts = {"replay": "has nothing before a prompt's second visit", "forget": "needs no history"}
        require(
            not (self.warm_start and self.source in starts),
            "soup.warm_start",
            self.warm_start,
            f"false with soup.source={self.source}, which {starts.get(self.source)}",
        )
        require(
            self.source != "snapshot" or self.snapshot.choice != "auto" or self.kl_control.target_kl is not None,
            "soup.kl_control.target_kl",
            None,
            "the prefix KL to aim at, because soup.snapshot.choice=auto",
        )

    def _check_inflight(self) -> None:
        """Nothing is planned, and there are no old weights."""
        if self.source != "inflight":
            return
        require(
            self.mixed_fraction in (0, 1),
            "soup.mixed_fraction",
            self.mixed_fraction,
            "1 or 0 with soup.source=inflight, where weight updates decide which responses are mixed",
            "1 keeps the policy of every token; 0 is verl's own trainer, number for number.",
        )
        require(
            self.behavior_log_probs == "rollout",
            "soup.behavior_log_probs",
            self.behavior_log_probs,
            "rollout with soup.source=inflight: the weights that sampled a token are gone",
        )
        plain = SoupConfig()
        for name in OF_PLANS:
            ours, default = (leaves(f"soup.{name}", getattr(config, name)) for config in (self, plain))
            for (key, value), (_, expected) in zip(ours, default, strict=True):
                why = "with soup.source=inflight, which plans no prefix"
                require(value == expected, key, value, f"{expected!r}, the default, {why}")

    def _check_balanced(self) -> None:
        if self.replay.choice != "balanced":
            return
        why = "with soup.replay.choice=balanced, which cuts stored responses where its control says"
        for key, value, expected in (
            ("soup.source", self.source, "replay"),
            ("soup.position", self.position, "prefix"),
            ("soup.prefix_length.unit", self.prefix_length.unit, "share"),
            ("soup.prefix_length.schedule.shape", self.prefix_length.schedule.shape, "constant"),
        ):
            require(value == expected, key, value, f"{expected} {why}")

    @property
    def single_turn_setting(self) -> str | None:
        """The setting that needs agent loops of a single turn, as `key=value`; None where any loop will do."""
        if not self.mixing:
            return None
        if self.source in ("forget", "inflight"):
            return f"soup.source={self.source}"
        if self.position in ("suffix", "whole") and self.source != "replay":
            return f"soup.position={self.position}"
        return None

    @property
    def mixing(self) -> bool:
        """Whether any response can be mixed. False is GRPO, number for number, with the defaults of `baseline`,
        `policy_loss` and `down_sampling`."""
        return self.mixed_fraction > 0 or (self.mixed_fraction_schedule.final or 0) > 0

    @property
    def planned(self) -> bool:
        """Whether prefixes are planned, and put before responses."""
        return self.mixing and self.source in PLANNED_SOURCES

    @property
    def interrupted(self) -> bool:
        """Whether the policy of every token is kept, because updates interrupt responses."""
        return self.mixing and self.source == "inflight"

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> SoupConfig:
        """Build from the `soup:` section.

        Raises:
            ConfigError: an unknown key or a value out of range, named in full.
        """
        return parse_section(cls, section, "soup")
