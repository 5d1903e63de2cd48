"""SOUP's math as pure functions of tensors.

Notation (paper arXiv 2601.21476, and the project's README):
    log_probs           log pi_theta(y_i), the policy being updated
    old_log_probs       log pi_old(y_i), the current policy at the start of the step
    behavior_log_probs  b_i, log-prob of the token under the policy that sampled it, at the sampling temperature
    prefix_mask         m_i, 1 on tokens that a historical policy sampled
All are (batch, response_length). Masks are boolean or 0/1; values where a mask is 0 are never read, NaN included.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # verl's: keeps exp() finite in float32


def token_ratio(log_probs: Tensor, behavior_log_probs: Tensor) -> Tensor:
    """r_i = exp(log pi_theta(y_i) - b_i): every token answers to the policy that generated it (arXiv 2601.21476).

    The exponent is limited to +-20, as verl's policy losses do. Shape (batch, response_length).
    """
    return torch.exp((log_probs - behavior_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def join_log_probs(*, prefix_mask: Tensor, prefix_log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """`prefix_log_probs` on prefix tokens, `other_log_probs` elsewhere. Shape (batch, response_length)."""
    return torch.where(prefix_mask.bool(), prefix_log_probs, other_log_probs)


def group_relative_advantage(
    rewards: Tensor,
    groups: Sequence[Hashable],
    *,
    counted: Tensor | None = None,
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
) -> Tensor:
    """A_g = (R_g - mean_G R) / (std_G R + epsilon), GRPO (arXiv 2402.03300, eq. 3).

    Without `norm_by_std` the division is left out (Dr. GRPO, arXiv 2503.20783). A group in which one response counts
    keeps its reward: mean 0, std 1, as in verl.

    Args:
        rewards: (batch,), one scalar a response.
        groups: the group of each row.
        counted: (batch,) boolean; rows that enter mean and std. All by default.
        epsilon: added to the standard deviation (unbiased, n - 1).

    Returns:
        (batch,) advantages, also for rows that do not count.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    advantages = torch.empty_like(rewards)
    for rows in rows_of.values():
        statistic_rows = rows if counted is None else [r for r in rows if counted[r]]
        scores = rewards[statistic_rows]
        single = len(statistic_rows) < 2
        mean = torch.zeros_like(rewards[0]) if single else scores.mean()
        std = torch.ones_like(rewards[0]) if single else scores.std()
        centred = rewards[rows] - mean
        advantages[rows] = centred / (std + epsilon) if norm_by_std else centred
    return advantages


def shared_groups(uids: Sequence[Hashable], is_mixed: Tensor) -> list[Hashable]:
    """Baseline `shared`: all responses of a prompt form one group."""
    return list(uids)


def split_groups(uids: Sequence[Hashable], is_mixed: Tensor) -> list[Hashable]:
    """Baseline `split`: a prompt's mixed and on-policy responses form a group each (RePO, arXiv 2506.09340)."""
    return list(zip(uids, is_mixed.bool().tolist(), strict=True))


GROUPINGS: dict[str, Callable[[Sequence[Hashable], Tensor], list[Hashable]]] = {
    "shared": shared_groups,
    "split": split_groups,
}


def unit_weight(old_log_probs: Tensor, behavior_log_probs: Tensor, *, cap: float) -> Tensor:
    """Weight 1 on every prefix token."""
    return torch.ones_like(old_log_probs)


def zero_weight(old_log_probs: Tensor, behavior_log_probs: Tensor, *, cap: float) -> Tensor:
    """Weight 0 on every prefix token."""
    return torch.zeros_like(old_log_probs)


def truncated_weight(old_log_probs: Tensor, behavior_log_probs: Tensor, *, cap: float) -> Tensor:
    """w_i = min(pi_old(y_i) / pi_h(y_i), cap), detached: truncated importance sampling.

    Decoupled PPO (arXiv 2110.00641) with the behaviour weight truncated as in IMPALA (arXiv 1802.01561).
    """
    return token_ratio(old_log_probs, behavior_log_probs).clamp(max=cap).detach()


@dataclass(frozen=True)
class PrefixObjective:
    """How a prefix token enters the clipped objective; a continuation token is always plain PPO.

    Args:
        anchor_is_behavior: the ratio is taken against b_i, else against pi_old.
        weight: factor on the advantage of a prefix token.
        trained: whether prefix tokens count in the loss and in its denominator.
    """

    anchor_is_behavior: bool
    weight: Callable[..., Tensor]
    trained: bool


PREFIX_OBJECTIVES: dict[str, PrefixObjective] = {
    "behavior": PrefixObjective(anchor_is_behavior=True, weight=unit_weight, trained=True),
    "decoupled": PrefixObjective(anchor_is_behavior=False, weight=truncated_weight, trained=True),
    "masked": PrefixObjective(anchor_is_behavior=True, weight=zero_weight, trained=False),
    "shaped": PrefixObjective(anchor_is_behavior=True, weight=unit_weight, trained=True),  # and `shaped_tokens`
}


# ---- inside the loss: what depends on pi_theta while it moves ----


def shaped_tokens(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, prefix_mask: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """`old_log_probs` and `advantages` that make the clipped loss train prefix tokens by A p / (p + gamma).

    LUFFY (arXiv 2504.14945, policy shaping): p = pi_theta(y_i), pi_h taken as 1, no clip. Its gradient is
    A gamma p / (p + gamma)^2 grad log p; the clipped loss gives exactly that at ratio 1 with the advantage multiplied
    by gamma p / (p + gamma)^2, both detached. The loss's value differs, its gradient does not.

    Returns:
        The two tensors, (batch, response_length), changed on prefix tokens only.
    """
    p = log_probs.detach().exp()
    weight = gamma * p / (p + gamma) ** 2
    prefix = prefix_mask.bool()
    return (
        torch.where(prefix, log_probs.detach(), old_log_probs),
        torch.where(prefix, advantages * weight, advantages),
    )


def min_prefix_weight(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> Tensor:
    """Smallest ratio of the prefix tokens before each token, detached; 1 where none came before.

    MinPRO (arXiv 2601.22718) puts it in place of the product of the preceding ratios, which is what would correct for
    the prefix having led to another distribution of states. Shape (batch, response_length).
    """
    ratio = token_ratio(log_probs.detach(), behavior_log_probs)
    ratio = torch.where(prefix_mask.bool(), ratio, torch.full_like(ratio, torch.inf))
    before = torch.full_like(ratio[..., :1], torch.inf)
    lowest = torch.cummin(torch.cat([before, ratio[..., :-1]], dim=-1), dim=-1).values
    return torch.where(lowest.isinf(), torch.ones_like(lowest), lowest)


# ---- KL control ----


def past_kl_limit(old_log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor, max_kl: float) -> Tensor:
    """Prefix tokens from the first on at which the running mean of k3 over the prefix exceeds `max_kl`.

    Args:
        old_log_probs, behavior_log_probs, prefix_mask: (batch, response_length).
        max_kl: nats a token.

    Returns:
        (batch, response_length) boolean.
    """
    prefix = prefix_mask.bool()
    k3 = torch.where(prefix, kl_k3(old_log_probs, behavior_log_probs), torch.zeros_like(old_log_probs))
    running_mean = k3.cumsum(dim=-1) / prefix.cumsum(dim=-1).clamp(min=1)
    exceeded = torch.cummax((prefix & (running_mean > max_kl)).to(torch.int8), dim=-1).values.bool()
    return prefix & exceeded


def token_advantages(
    advantages: Tensor, *, response_mask: Tensor, prefix_mask: Tensor | None = None, prefix_weight: Tensor | None = None
) -> Tensor:
    """Spread a response's advantage over its tokens; prefix tokens carry their weight.

    Args:
        advantages: (batch,).
        response_mask: (batch, response_length), 1 on tokens that the model generated.
        prefix_mask, prefix_weight: (batch, response_length); left out where there is no prefix.

    Returns:
        (batch, response_length), 0 outside of `response_mask`.
    """
    spread = advantages.unsqueeze(-1).expand(response_mask.shape)
    if prefix_mask is not None and prefix_weight is not None:
        spread = torch.where(prefix_mask.bool(), spread * prefix_weight, spread)
    return torch.where(response_mask.bool(), spread, torch.zeros_like(spread))


def zero_gradient_mask(
    ratio: Tensor, advantages: Tensor, *, clip_ratio_low: float, clip_ratio_high: float, clip_ratio_c: float
) -> Tensor:
    """Tokens whose gradient the clipped objective removes. Boolean, (batch, response_length).

    A > 0 and r > 1 + high, or A < 0 and r < 1 - low (PPO, arXiv 1707.06347), or A < 0 and r > c (dual clip,
    arXiv 1912.09729, which verl applies by default with c = 3).
    """
    upper = (advantages > 0) & (ratio > 1 + clip_ratio_high)
    lower = (advantages < 0) & (ratio < 1 - clip_ratio_low)
    dual = (advantages < 0) & (ratio > clip_ratio_c)
    return upper | lower | dual


def clipped_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float,
) -> Tensor:
    """-min(r A, clip(r) A), at most -c A where A < 0 (PPO, arXiv 1707.06347; dual clip, arXiv 1912.09729).

    verl's `vanilla` loss of each token, for what runs without verl. All (batch, response_length).
    """
    ratio = token_ratio(log_probs, old_log_probs)
    clipped = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * clip_ratio_c), loss)


def kl_k1(log_probs: Tensor, behavior_log_probs: Tensor) -> Tensor:
    """k1 = b - log pi: unbiased per-token estimate of KL(behaviour || pi) in nats (joschu.net/blog/kl-approx.html)."""
    return behavior_log_probs - log_probs


def kl_k3(log_probs: Tensor, behavior_log_probs: Tensor) -> Tensor:
    """k3 = r - 1 - log r with r = pi / behaviour: unbiased, never negative, lower variance. Nats a token."""
    log_ratio = (log_probs - behavior_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio


def effective_sample_share(ratio: Tensor, mask: Tensor) -> Tensor:
    """(sum r)^2 / (N sum r^2) over the N tokens of `mask`: 1 when all ratios are equal, 1/N when one dominates."""
    r = ratio[mask.bool()]
    return r.sum() ** 2 / (r.numel() * (r**2).sum())
