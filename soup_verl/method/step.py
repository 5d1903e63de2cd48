"""What a training step decides, on plain data; trainer, loss and search instrument fetch, call and put back.

In the order of a step:

    plan_of_run         which responses are mixed, and how long their prefixes are
    trained_rows        in `down_sampling`: which responses are trained on, where not all are
    History.observe     in `observation`: what a batch says about the history
    trained_tokens      what the loss reads of each token: the anchor of its ratio, whether it counts, its weight
    advantages          of each token, weight included
    moved_with_policy   the same inside the loss, for settings that depend on the policy while it moves
    loss_of_tokens      in `policy_losses`: the loss of each token, where it is not verl's own
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from soup_verl.method import core_algos
from soup_verl.method.config import SoupConfig
from soup_verl.method.mixing import MixingPlanner, Schedule
from soup_verl.method.policy_losses import POLICY_LOSSES
from soup_verl.method.sections import PolicyLossConfig, ScheduleConfig, StepSizeConfig
from soup_verl.method.step_batch import StepBatch


def plan_of_run(soup: SoupConfig, *, n: int, response_length: int, last_step: int) -> MixingPlanner:
    """The plan of a run of `last_step` steps with `n` responses a prompt, of at most `response_length` tokens."""

    def schedule(start: float, settings: ScheduleConfig) -> Schedule:
        return Schedule(start, settings.final, settings.steps or last_step, settings.shape)

    low, high = soup.prefix_length.bounds(response_length)
    return MixingPlanner(
        seed=soup.seed,
        n=n,
        mixed_fraction=schedule(soup.mixed_fraction, soup.mixed_fraction_schedule),
        low=low,
        high=schedule(high, soup.prefix_length.schedule),
        in_shares=soup.prefix_length.unit == "share",
        position=soup.position,
        ages=soup.lookahead.ages if soup.source == "lookahead" else (0,),
    )


@dataclass(frozen=True)
class TrainedTokens:
    """What the loss reads of a batch, each (batch, response_length) unless said otherwise.

    Args:
        old_log_probs: what the ratio is taken against; the batch's own tensor where no token's changes.
        response_mask: tokens that count in the loss and in its denominator; the batch's own where all do.
        prefix_weight: factor on the advantage of a prefix token.
        log_ratio: (batch,) float64, log of the product of the ratios of a response's historical tokens.
    """

    old_log_probs: Tensor
    response_mask: Tensor
    prefix_weight: Tensor
    log_ratio: Tensor


def trained_tokens(batch: StepBatch, soup: SoupConfig) -> tuple[TrainedTokens, dict[str, float]]:
    """By `soup.prefix_objective`, `.policy_loss` and the limits of `.kl_control`; and what is reported of it."""
    assert batch.behavior_log_probs is not None, "mixing needs the rollout engine's log-probs"
    objective = core_algos.PREFIX_OBJECTIVES[soup.prefix_objective]
    prefix, old, behavior = batch.prefix_mask.bool(), batch.old_log_probs, batch.behavior_log_probs
    untrained, found, limits = None if objective.trained else prefix, {}, soup.kl_control
    if limits.max_prefix_kl is not None:
        cut = core_algos.past_kl_limit(old, behavior, prefix_mask=prefix, max_kl=limits.max_prefix_kl)
        found["soup/prefix_tokens_cut_share"] = float(cut.sum() / prefix.sum().clamp(min=1))
        untrained = cut if objective.trained else prefix
    anchor, mask = old, batch.response_mask
    if objective.anchor_is_behavior and not POLICY_LOSSES[soup.policy_loss.name].keeps_old:
        anchor = core_algos.join_log_probs(prefix_mask=prefix, prefix_log_probs=behavior, other_log_probs=old)
    if soup.interrupted and soup.inflight.max_policy_age is not None:
        too_old = prefix & (batch.policy_age > soup.inflight.max_policy_age)
        found["soup/too_old_tokens_total"] = float(too_old.sum())
        untrained = too_old if untrained is None else untrained | too_old
    if untrained is not None:
        mask = torch.where(untrained, torch.zeros_like(mask), mask)
    if limits.max_second_moment is not None:
        cut, found["soup/second_moment_mean"] = core_algos.past_second_moment(
            old, behavior, prefix_mask=prefix, response_mask=mask, limit=limits.max_second_moment
        )
        found["soup/second_moment_cut_share"] = float(cut.sum() / prefix.sum().clamp(min=1))
        mask = torch.where(cut, torch.zeros_like(mask), mask)
    weight = objective.weight(old, behavior, cap=soup.decoupled_weight_cap)
    log_ratio = core_algos.historical_log_ratio(old, behavior, prefix_mask=prefix)
    return TrainedTokens(anchor, mask, weight, log_ratio), found


VERLS_LOSS = PolicyLossConfig()


def advantages(
    rewards: Tensor,
    uids: Sequence[Hashable],
    response_mask: Tensor,
    *,
    versions: Sequence[int],
    baseline: str,
    norm_by_std: bool,
    counted: Tensor | None = None,
    prefix_mask: Tensor | None = None,
    prefix_weight: Tensor | None = None,
    log_ratio: Tensor | None = None,
    policy_loss: PolicyLossConfig = VERLS_LOSS,
) -> Tensor:
    """GRPO's advantages or those of the policy loss, per token; prefix tokens carry their weight.

    Args:
        rewards: (batch,).
        uids: prompt of each row.
        response_mask: (batch, response_length), 1 on tokens that count in the loss.
        versions: of each row's historical policy, -1 for an on-policy response.
        baseline: `soup.baseline`.
        norm_by_std: GRPO's are divided by the group's standard deviation.
        counted: (batch,) boolean, rows that enter a group's statistics; all by default.
        prefix_mask, prefix_weight, log_ratio: of `TrainedTokens`; left out where nothing can be mixed.
        policy_loss: some have an advantage of their own.

    Returns:
        (batch, response_length), 0 outside of `response_mask`.
    """
    groups = core_algos.GROUPINGS[baseline](uids, versions)
    own = POLICY_LOSSES[policy_loss.name].advantage
    if own is None:
        weigh = core_algos.MEAN_WEIGHTS.get(baseline)
        log_weight = weigh(response_mask, log_ratio) if weigh else None
        of_rows = core_algos.group_relative_advantage(
            rewards, groups, counted=counted, log_weight=log_weight, norm_by_std=norm_by_std
        )
    else:
        log_ratio = torch.zeros_like(rewards) if log_ratio is None else log_ratio
        of_rows = own(rewards, groups, policy_loss, counted=counted, log_ratio=log_ratio)
    return core_algos.token_advantages(
        of_rows, response_mask=response_mask, prefix_mask=prefix_mask, prefix_weight=prefix_weight
    )


@dataclass(frozen=True)
class InLoss:
    """The settings of `soup` that are read while the policy moves."""

    prefix_objective: str = "behavior"
    prefix_correction: str = "none"
    shaped_gamma: float = 0.1
    step_size: StepSizeConfig = StepSizeConfig()
    policy_loss: PolicyLossConfig = PolicyLossConfig()
    stale_apart: bool = False

    @classmethod
    def of(cls, soup: SoupConfig) -> InLoss:
        if not soup.mixing:
            return cls(policy_loss=soup.policy_loss)
        moving = (soup.prefix_objective, soup.prefix_correction, soup.shaped_gamma, soup.step_size)
        return cls(*moving, soup.policy_loss, stale_apart=soup.interrupted)

    @property
    def changes_nothing(self) -> bool:
        """Whether `moved_with_policy` gives back what it gets."""
        objective = core_algos.PREFIX_OBJECTIVES[self.prefix_objective]
        return objective.in_loss is None and core_algos.PREFIX_CORRECTIONS[self.prefix_correction] is None


class Moved(NamedTuple):
    """What the loss reads at the policy of the moment, each (batch, response_length).

    Args:
        old_log_probs, advantages: changed where a setting follows the policy.
        measured: noun -> its value at each token; the mean over the trained tokens of each segment is reported.
    """

    old_log_probs: Tensor
    advantages: Tensor
    measured: dict[str, Tensor]


def moved_with_policy(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    prefix_mask: Tensor,
    behavior_log_probs: Tensor,
    settings: InLoss,
) -> Moved:
    """`old_log_probs` and `advantages` as the loss is to read them at `log_probs`. All (batch, response_length)."""
    measured: dict[str, Tensor] = {}
    objective = core_algos.PREFIX_OBJECTIVES[settings.prefix_objective]
    correction = core_algos.PREFIX_CORRECTIONS[settings.prefix_correction]
    if correction is not None:
        measured["correction_mean"] = correction(log_probs, behavior_log_probs, prefix_mask=prefix_mask)
        advantages = advantages * measured["correction_mean"]
    if objective.in_loss is not None:
        old_log_probs, advantages = objective.in_loss(
            log_probs, old_log_probs, advantages, prefix_mask=prefix_mask, gamma=settings.shaped_gamma
        )
    return Moved(old_log_probs, advantages, measured)
