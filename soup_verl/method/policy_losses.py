"""The loss of each token, by `soup.policy_loss.name`; for verl's actor and for the search instrument alike.

To clip prefix tokens otherwise, add a row to `POLICY_LOSSES` and its name to `sections.POLICY_LOSSES`: a loss knows
which tokens are prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from soup_verl.method import core_algos
from soup_verl.method.exo import centred_band, exo_loss, in_tail
from soup_verl.method.oapl import oapl_loss, paired_advantage, soft_value_advantage
from soup_verl.method.sections import PolicyLossConfig
from soup_verl.method.vespo import vespo_weight

Groups = Sequence[Hashable]


@dataclass(frozen=True)
class LossTokens:
    """What a loss reads, each (batch, response_length).

    Args:
        log_probs: of the policy being updated; the only ones with a gradient.
        old_log_probs: what the ratio is taken against, as `step.trained_tokens` and `step.moved_with_policy` left it.
        advantages: of each token, weights included.
        trained: boolean, tokens that count in the loss.
        prefix_mask: boolean, tokens that a historical policy sampled.
        behavior_log_probs: of the policy that sampled the token; read on prefix tokens only.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    trained: Tensor
    prefix_mask: Tensor
    behavior_log_probs: Tensor

    @property
    def sampled(self) -> Tensor:
        """Every token that a policy generated: of those, only prefix tokens are ever left out of `trained`."""
        return self.trained | self.prefix_mask

    @property
    def log_ratio(self) -> Tensor:
        """Of a whole response to what its ratio is taken against, cut tokens included: (batch, 1), detached."""
        return (self.log_probs.detach() - self.old_log_probs).sum(dim=-1, keepdim=True)

    def without_padding(self) -> LossTokens:
        """0 outside of the response, whatever stood there."""
        return LossTokens(**{f.name: torch.where(self.sampled, getattr(self, f.name), 0) for f in fields(self)})


@dataclass(frozen=True)
class ClipRange:
    """verl's `clip_ratio_low`, `clip_ratio_high` and `clip_ratio_c`."""

    low: float
    high: float
    c: float


@dataclass(frozen=True)
class TokenLoss:
    """The loss of each token, and what is reported of it.

    Args:
        loss: (batch, response_length), 0 on tokens that are not trained.
        measured: noun -> (batch, response_length); its mean over the trained tokens of each segment is reported.
    """

    loss: Tensor
    measured: dict[str, Tensor]


def _clip(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    loss = core_algos.clipped_loss(
        tokens.log_probs,
        tokens.old_log_probs,
        tokens.advantages,
        clip_ratio_low=clip.low,
        clip_ratio_high=clip.high,
        clip_ratio_c=clip.c,
    )
    return TokenLoss(loss, {})


def _exo(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    """The band is around 1, where old_log_probs are those of the policy that sampled the token."""
    one = torch.ones_like(tokens.old_log_probs)
    ratio = core_algos.token_ratio(tokens.log_probs, tokens.old_log_probs)
    return _beyond(tokens, ratio, one * (1 - clip.low), one * (1 + clip.high), settings, clip)


def _exo_centred(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    """The band is around pi_old / pi_h, where old_log_probs are pi_old's on every token."""
    sampler = core_algos.join_log_probs(
        prefix_mask=tokens.prefix_mask,
        prefix_log_probs=tokens.behavior_log_probs,
        other_log_probs=tokens.old_log_probs,
    )
    lower, upper = centred_band(
        tokens.old_log_probs,
        sampler,
        prefix_mask=tokens.prefix_mask,
        low=clip.low,
        high=clip.high,
        limit=core_algos.LOG_RATIO_LIMIT,
    )
    return _beyond(tokens, core_algos.token_ratio(tokens.log_probs, sampler), lower, upper, settings, clip)


def _beyond(
    tokens: LossTokens, ratio: Tensor, lower: Tensor, upper: Tensor, settings: PolicyLossConfig, clip: ClipRange
) -> TokenLoss:
    loss = exo_loss(ratio, tokens.advantages, lower=lower, upper=upper, k=settings.exo_k, c=clip.c)
    return TokenLoss(loss, {"exo_tail_share": in_tail(ratio, tokens.advantages, lower=lower, upper=upper)})


def _oapl(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    b2, s = settings.oapl_b2, tokens.log_ratio
    loss = oapl_loss(tokens.log_probs, tokens.advantages, log_ratio=s, trained=tokens.trained, b2=b2)
    size, residual = s.abs().expand_as(loss), (b2 * s - tokens.advantages).abs()
    return TokenLoss(loss, {"oapl_log_ratio": size, "oapl_residual": residual})


def _vespo(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    weight = vespo_weight(tokens.log_ratio, tokens.advantages, limit=core_algos.LOG_RATIO_LIMIT)
    return TokenLoss(-weight * tokens.advantages * tokens.log_probs, {"vespo_weight": weight})


def _soft_value(rewards: Tensor, groups: Groups, settings: PolicyLossConfig, *, counted: Any, log_ratio: Any) -> Tensor:
    return soft_value_advantage(rewards, groups, b1=settings.oapl_b1, counted=counted)


def _paired(rewards: Tensor, groups: Groups, settings: PolicyLossConfig, *, counted: Any, log_ratio: Any) -> Tensor:
    return paired_advantage(rewards, groups, log_ratio=log_ratio, b2=settings.oapl_b2, counted=counted)


@dataclass(frozen=True)
class PolicyLoss:
    """One loss.

    Args:
        of_tokens: the loss of each token.
        keeps_old: reads pi_old's log-probs on prefix tokens too, not those of the policy that sampled them.
        advantage: of each response, (batch,), in place of GRPO's; called as `_paired` is.
    """

    of_tokens: Callable[[LossTokens, PolicyLossConfig, ClipRange], TokenLoss]
    keeps_old: bool = False
    advantage: Callable[..., Tensor] | None = None


POLICY_LOSSES: dict[str | None, PolicyLoss] = {
    None: PolicyLoss(_clip),
    "exo": PolicyLoss(_exo),
    "exo_centred": PolicyLoss(_exo_centred, keeps_old=True),
    "oapl": PolicyLoss(_oapl, advantage=_soft_value),
    "oapl_paired": PolicyLoss(_oapl, advantage=_paired),
    "vespo": PolicyLoss(_vespo),
}
"""`soup.policy_loss.name` -> the loss; None is verl's `vanilla`, for what runs without verl."""


def loss_of_tokens(tokens: LossTokens, settings: PolicyLossConfig, clip: ClipRange) -> TokenLoss:
    """The loss of each token. Values outside of the response are never read, NaN included, and get no gradient."""
    found = POLICY_LOSSES[settings.name].of_tokens(tokens.without_padding(), settings, clip)
    zero: Any = torch.zeros_like(found.loss)
    return TokenLoss(torch.where(tokens.trained, found.loss, zero), found.measured)
