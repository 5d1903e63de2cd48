"""One update of the policy: verl's aggregation of the loss of each token, which is `method.policy_losses`'."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from soup_verl.method import core_algos
from soup_verl.method.policy_losses import ClipRange


@dataclass(frozen=True)
class LossSettings:
    """verl's names and defaults.

    Args:
        clip_ratio_low, clip_ratio_high, clip_ratio_c: clip range and dual clip.
        entropy_coeff: weight of the entropy bonus.
        kl_loss_coef: weight of the KL to the initial policy (verl's `low_var_kl`, which is k3).
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float = 3.0
    entropy_coeff: float = 0.0
    kl_loss_coef: float = 0.0

    @property
    def clip(self) -> ClipRange:
        return ClipRange(self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of `mask`: verl's `token-mean`. Shapes (batch, response_length)."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum()


def response_sums_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over responses of the sum over their tokens of `mask`: verl's `seq-mean-token-sum`, of one mini-batch."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / len(mask)


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
        parts = (getattr(self, f.name) for f in fields(self))
        return LossTensors(*(None if part is None else part[some] for part in parts))


def policy_loss(
    of_tokens: Tensor,
    log_probs: Tensor,
    entropy: Tensor,
    tokens: LossTensors,
    settings: LossSettings,
    *,
    summed: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """The loss from that of each token, and what verl's actor logs of it; `summed`: a response's terms are added."""
    aggregate = response_sums_mean if summed else masked_mean
    loss = aggregate(of_tokens, tokens.mask)
    mean_entropy = aggregate(entropy, tokens.mask)
    metrics = {"actor/pg_loss": loss.item(), "actor/entropy": mean_entropy.item()}
    if settings.entropy_coeff:
        loss = loss - settings.entropy_coeff * mean_entropy
    if tokens.reference_log_probs is not None:
        kl = aggregate(core_algos.kl_k3(tokens.reference_log_probs, log_probs), tokens.mask)
        metrics["actor/kl_loss"] = kl.item()
        loss = loss + settings.kl_loss_coef * kl
    return loss, metrics
