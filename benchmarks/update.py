"""One update of the policy: aggregation as verl's, of the losses of tokens that `method.policy_losses` has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from soup_verl.method import core_algos
from soup_verl.method.policy_losses import ClipRange

Aggregate = Callable[[Tensor, Tensor], Tensor]


def masked_mean(values: Tensor, mask: Tensor, *, scale: float | None = None) -> Tensor:
    """Mean over the tokens of `mask`. Shapes (batch, response_length); `scale` is for another aggregation."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum()


def response_sums_mean(values: Tensor, mask: Tensor, *, scale: float | None = None) -> Tensor:
    """Mean over the responses of a mini-batch of the sum over their tokens of `mask`."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / len(mask)


def scaled_response_sums_mean(values: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """The same divided by `scale`."""
    return response_sums_mean(values, mask) / scale


def response_means_mean(values: Tensor, mask: Tensor, *, scale: float | None = None) -> Tensor:
    """Mean over the responses of a mini-batch of the mean over their tokens of `mask`, 0 where there are none."""
    sums = torch.where(mask, values, torch.zeros_like(values)).sum(dim=-1)
    return (sums / mask.sum(dim=-1).clamp(min=1)).sum() / len(mask)


AGGREGATIONS: dict[str, Callable[..., Tensor]] = {
    "token-mean": masked_mean,
    "seq-mean-token-sum": response_sums_mean,
    "seq-mean-token-sum-norm": scaled_response_sums_mean,
    "seq-mean-token-mean": response_means_mean,
}
"""verl's `loss_agg_mode` -> what it does."""


@dataclass(frozen=True)
class LossSettings:
    """verl's names and defaults.

    Args:
        clip_ratio_low, clip_ratio_high, clip_ratio_c: clip range and dual clip.
        entropy_coeff: weight of the entropy bonus.
        kl_loss_coef: weight of the KL to the initial policy (verl's `low_var_kl`, which is k3).
        loss_agg_mode: how the tokens' losses become one, a key of `AGGREGATIONS`; None: the mean over tokens, and for
            losses that are squares the sum over a response.
        loss_scale_factor: what `seq-mean-token-sum-norm` divides by.
        actor: of a loss of verl's own, in verl's names: `policy_loss.loss_mode` and what that loss reads besides.
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float = 3.0
    entropy_coeff: float = 0.0
    kl_loss_coef: float = 0.0
    loss_agg_mode: str | None = None
    loss_scale_factor: float | None = None
    actor: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.loss_agg_mode is not None and self.loss_agg_mode not in AGGREGATIONS:
            raise ValueError(f"loss.loss_agg_mode={self.loss_agg_mode}: expected one of {', '.join(AGGREGATIONS)}")
        if self.loss_agg_mode == "seq-mean-token-sum-norm" and self.loss_scale_factor is None:
            raise ValueError(f"loss.loss_scale_factor=None: expected a number with loss_agg_mode={self.loss_agg_mode}")

    @property
    def mode(self) -> str | None:
        """The loss of verl's own that is trained on; None: one of `method.policy_losses`, `vanilla` among them."""
        return (self.actor or {}).get("policy_loss", {}).get("loss_mode")

    def aggregate(self, *, squared: bool) -> Aggregate:
        """Of values (batch, response_length) and a mask of them one number."""
        mode = self.loss_agg_mode or ("seq-mean-token-sum" if squared else "token-mean")
        return partial(AGGREGATIONS[mode], scale=self.loss_scale_factor)

    @property
    def clip(self) -> ClipRange:
        return ClipRange(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)


def token_scores(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens and entropy, both (batch, response_length), in nats at the sampling temperature."""
    scores = torch.log_softmax(logits / temperature, dim=-1)
    return scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -(scores.exp() * scores).sum(dim=-1)


@dataclass(frozen=True)
class LossTensors:
    """What the loss reads, all (batch, response_length).

    Args:
        old_log_probs: what ratios are taken against.
        advantages: of each token, weights included.
        mask: boolean, tokens that count in the loss and in its denominator.
        reference_log_probs: of the initial policy; None without `kl_loss_coef`.
    """

    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    reference_log_probs: Tensor | None = None

    def rows(self, some: slice) -> LossTensors:
        """A part of the batch."""
        reference = None if self.reference_log_probs is None else self.reference_log_probs[some]
        return LossTensors(self.old_log_probs[some], self.advantages[some], self.mask[some], reference)


def with_bonuses(
    loss: Tensor,
    log_probs: Tensor,
    entropy: Tensor,
    tokens: LossTensors,
    settings: LossSettings,
    aggregate: Aggregate,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the policy with entropy bonus and reference KL, and what verl's actor logs of it.

    Args:
        loss: aggregated.
        log_probs, entropy: (batch, response_length), of the policy being updated.
        aggregate: of the two others.
    """
    mean_entropy = aggregate(entropy, tokens.mask)
    metrics = {"actor/pg_loss": loss.item(), "actor/entropy": mean_entropy.item()}
    if settings.entropy_coeff:
        loss = loss - settings.entropy_coeff * mean_entropy
    if tokens.reference_log_probs is not None:
        kl = aggregate(core_algos.kl_k3(tokens.reference_log_probs, log_probs), tokens.mask)
        metrics["actor/kl_loss"] = kl.item()
        loss = loss + settings.kl_loss_coef * kl
    return loss, metrics
