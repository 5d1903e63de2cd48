"""What a batch says about the history: metrics, solved rates, prefix KL by age, a collapse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from soup_verl.method import metrics
from soup_verl.method.config import SoupConfig
from soup_verl.method.history import CollapseWatch, NoiseWatch, PolicyResponse, PrefixSource
from soup_verl.method.mixing import MixingPlanner, SolvedRates
from soup_verl.method.step_batch import StepBatch


@dataclass
class History:
    """What a run remembers of its batches, and the source that it tells of them.

    Args:
        soup, planner: settings and plan of the run.
        source: of its prefixes; None before there is one, and where nothing is mixed.
        solved: how often each prompt was solved at its last visit.
        collapse, noise: watch the prefix KL.
    """

    soup: SoupConfig
    planner: MixingPlanner
    source: PrefixSource | None = None
    solved: SolvedRates = field(init=False)
    collapse: CollapseWatch = field(init=False)
    noise: NoiseWatch = field(init=False)
    _discarded: list[bool] = field(init=False, default_factory=list)
    """Whether each response that `discard` was told of in this step was right."""

    def __post_init__(self) -> None:
        self.solved = SolvedRates(self.soup.when, self.soup.start_at_solved_rate)
        self.collapse = CollapseWatch(self.soup.kl_control.min_prefix_kl, self.soup.kl_control.patience)
        self.noise = NoiseWatch(self.soup)

    def observe(
        self,
        batch: StepBatch,
        *,
        key_of_uid: Mapping[Any, str],
        responses: Callable[[], Sequence[PolicyResponse]],
        sampled: StepBatch | None = None,
    ) -> tuple[dict[str, float], list[str]]:
        """Take in a batch whose rewards are known, before the update.

        Args:
            batch: the responses that are trained on, without padding rows.
            key_of_uid: prompt key of each uid.
            responses: gives every on-policy response to its prompts, for a source that stores them.
            sampled: every response to its prompts, where not all are trained on. Of the others neither old_log_probs
                nor entropy are known.

        Returns:
            Every `soup/*` metric that is known by now, and what is to be said to the user, a line each.
        """
        sampled = batch if sampled is None else sampled
        found = metrics.step_metrics(batch, sampled)
        warnings = [self.noise.warning(found)]
        found["soup/decode_tokens_total"] = self._decoded_tokens(sampled)
        if self.soup.down_sampling.train_on is not None:
            found |= metrics.dropped(batch, sampled)
        if self.source:
            self._observe_prompts(batch, sampled, key_of_uid, responses)
            self.solved.record_batch(fmean([*batch.solved.tolist(), *self._discarded]))
            self._discarded = []
            warnings.append(self._observe_kl(batch, found))
            step = batch.current_version + 1
            found |= self.source.metrics() | {
                "soup/mixed_fraction": self.planner.mixed_fraction.at(step),
                "soup/prefix_length_limit": float(self.planner.longest(step)),
            }
        elif self.soup.interrupted:
            warnings.append(self._observe_kl(batch, found))
        return found, [warning for warning in warnings if warning]

    def discard(
        self, batch: StepBatch, *, key_of_uid: Mapping[Any, str], responses: Callable[[], Sequence[PolicyResponse]]
    ) -> None:
        """Take in groups of a step that dynamic sampling drops: they say as much of their prompts as the others.

        Args:
            batch: their responses.
            key_of_uid, responses: as for `observe`.
        """
        self._observe_prompts(batch, batch, key_of_uid, responses)
        self._discarded += batch.solved.tolist()

    def _observe_prompts(
        self,
        batch: StepBatch,
        sampled: StepBatch,
        key_of_uid: Mapping[Any, str],
        responses: Callable[[], Sequence[PolicyResponse]],
    ) -> None:
        """Tell the gate and the source how often prompts were solved, and the source what was answered."""
        assert self.source is not None
        for uid, rate in metrics.solved_rates(sampled).items():
            self.solved.record(key_of_uid[uid], rate)
        onpolicy, mixed = (metrics.solved_rates(batch, among=rows) for rows in (~batch.is_mixed, batch.is_mixed))
        self.source.observe_solved(
            {key_of_uid[uid]: rate for uid, rate in onpolicy.items()},
            {key_of_uid[uid]: rate for uid, rate in mixed.items()},
        )
        if self.source.wants_responses:
            self.source.observe_responses(responses())

    def _decoded_tokens(self, batch: StepBatch) -> float:
        """Tokens that were sampled for these responses."""
        decoded = batch.response_mask.bool()
        if self.source and not self.source.decodes_prefixes:
            decoded = decoded & ~batch.prefix_mask.bool()
        return float(decoded.sum())

    def _observe_kl(self, batch: StepBatch, found: dict[str, float]) -> str | None:
        """Add what is reported of the prefix KL to `found`; returns what is to be said of a collapse."""
        by_age = metrics.prefix_kl_by_age(batch)
        warning = None
        if by_age:
            tokens = sum(n for _, n in by_age.values())
            warning = self.collapse.observe(sum(kl * n for kl, n in by_age.values()) / tokens)
        if self.source:
            self.source.observe_kl({age: kl for age, (kl, _) in by_age.items()}, collapsed=self.collapse.collapsed)
        found |= metrics.prefix_kl_metrics(by_age)
        found["soup/prefix_kl_low_steps"] = float(self.collapse.low_steps)
        return warning
