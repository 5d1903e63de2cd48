"""SOUP's math as pure functions of tensors.

Notation (paper arXiv 2601.21476; recipe/soup/README.md maps each equation to its function):
    log_probs           log pi_theta(y_i), the policy being updated
    old_log_probs       log pi_old(y_i), the current policy at the start of the step
    behavior_log_probs  b_i, log-prob of the token under the policy that sampled it, at the sampling temperature
    prefix_mask         m_i, 1 on tokens that a historical policy sampled
All are (batch, response_length). Masks are boolean or 0/1; values where a mask is 0 are never read, NaN included.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG_RATIO_LIMIT = 20.0  # verl's: keeps exp() finite in float32
CUMULATIVE_LOG_LOW, CUMULATIVE_LOG_HIGH = -0.025, 0.05  # CTPO's, times the square root of the number of tokens


def token_ratio(log_probs: Tensor, behavior_log_probs: Tensor) -> Tensor:
    """r_i = exp(log pi_theta(y_i) - b_i): the ratio of each token to the policy that sampled it (arXiv 2601.21476).

    The exponent is limited to +-20, as verl's policy losses do. Shape (batch, response_length).
    """
    return torch.exp((log_probs - behavior_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def join_log_probs(*, prefix_mask: Tensor, prefix_log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """`prefix_log_probs` on prefix tokens, `other_log_probs` elsewhere. Shape (batch, response_length)."""
    return torch.where(prefix_mask.bool(), prefix_log_probs, other_log_probs)


def rows_of_groups(groups: Sequence[Hashable], counted: Tensor | None) -> Iterator[tuple[list[int], list[int]]]:
    """Of each group its rows, and those of them that enter its statistics: all, without `counted` (batch,) boolean."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    for rows in rows_of.values():
        yield rows, rows if counted is None else [row for row in rows if counted[row]]


def group_relative_advantage(
    rewards: Tensor,
    groups: Sequence[Hashable],
    *,
    counted: Tensor | None = None,
    log_weight: Tensor | None = None,
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
) -> Tensor:
    """A_g = (R_g - mean_G R) / (std_G R + epsilon), GRPO (arXiv 2402.03300, eq. 3).

    Without `norm_by_std` the division is left out (Dr. GRPO, arXiv 2503.20783). With `log_weight` the mean is weighted.
    A group in which one response counts keeps its reward: mean 0, std 1, as in verl.

    Args:
        rewards: (batch,), one scalar a response.
        groups: the group of each row.
        counted: (batch,) boolean; rows that enter mean and std. All by default.
        log_weight: (batch,) float64, log of each row's weight in the mean, not in the std. All alike by default.
        epsilon: added to the standard deviation (unbiased, n - 1).

    Returns:
        (batch,) advantages, also for rows that do not count.
    """
    advantages = torch.empty_like(rewards)
    for rows, counting in rows_of_groups(groups, counted):
        scores = rewards[counting]
        single = len(counting) < 2
        mean = torch.zeros_like(rewards[0]) if single else _mean(scores, log_weight, counting)
        std = torch.ones_like(rewards[0]) if single else scores.std()
        centred = rewards[rows] - mean
        advantages[rows] = centred / (std + epsilon) if norm_by_std else centred
    return advantages


def _mean(scores: Tensor, log_weight: Tensor | None, rows: list[int]) -> Tensor:
    if log_weight is None:
        return scores.mean()
    shares = log_weight[rows].softmax(dim=0)  # of the summed weight: no weight is ever computed, so none overflows
    return (shares * scores).sum().to(scores.dtype)


def shared_groups(uids: Sequence[Hashable], versions: Sequence[int]) -> list[Hashable]:
    """Baseline `shared`: all responses of a prompt form one group."""
    return list(uids)


def split_groups(uids: Sequence[Hashable], versions: Sequence[int]) -> list[Hashable]:
    """Baseline `split`: a prompt's mixed and on-policy responses form a group each (RePO, arXiv 2506.09340)."""
    return [(uid, version >= 0) for uid, version in zip(uids, versions, strict=True)]


def sampler_groups(uids: Sequence[Hashable], versions: Sequence[int]) -> list[Hashable]:
    """Baseline `sampler`: a prompt's responses by the newest historical policy in them, each version apart.

    Exactly one sampler where responses are `whole` or prefixes are of one length; prefixes of one policy that differ in
    length are together all the same, and so is whatever else an interrupted response has tokens of.
    """
    return list(zip(uids, versions, strict=True))


GROUPINGS: dict[str, Callable[[Sequence[Hashable], Sequence[int]], list[Hashable]]] = {
    "shared": shared_groups,
    "split": split_groups,
    "sampler": sampler_groups,
    "min_variance": shared_groups,
}
"""`soup.baseline` -> (prompt of each row, version of its historical policy or -1) -> group of each row."""


def historical_log_ratio(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> Tensor:
    """log w_i = the sum of log pi - b over the historical tokens of a response; 0 without any. (batch,) float64."""
    log_ratio = (log_probs.detach() - behavior_log_probs).double()
    return torch.where(prefix_mask.bool(), log_ratio, 0.0).sum(dim=-1)


def variance_log_weight(response_mask: Tensor, log_ratio: Tensor | None) -> Tensor:
    """log(w_i^2 l_i), l_i the trained tokens: the mean reward weighted like that is a cheap baseline of least variance.

    VCPO (arXiv 2602.17616) weighs by w_i^2 times the squared norm of the response's gradient, which needs a backward
    pass for each response. The length stands in for that norm, as in OPO (arXiv 2505.23585), which this is where
    nothing is mixed: right if the gradients of all tokens are equally large and independent of each other.

    Where one response outweighs its group the baseline is its own reward, and it teaches nothing.

    Args:
        response_mask: (batch, response_length), 1 on tokens that count in the loss.
        log_ratio: (batch,) log w_i, as `historical_log_ratio` gives it; None where nothing can be mixed.

    Returns:
        (batch,) float64; -inf where no token is trained.
    """
    log_length = response_mask.sum(dim=-1).double().log()
    return log_length if log_ratio is None else log_length + 2 * log_ratio


MEAN_WEIGHTS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"min_variance": variance_log_weight}
"""`soup.baseline` -> log of each response's weight in its group's mean; of the others all responses weigh alike."""


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
    return _shaped(log_probs.detach().exp(), log_probs, old_log_probs, advantages, prefix_mask=prefix_mask, gamma=gamma)


def shaped_ratio_tokens(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, prefix_mask: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """As `shaped_tokens`, by A w / (w + gamma) with w = pi_theta / pi_h of the token (ExGRPO, arXiv 2510.02245).

    `old_log_probs` holds pi_h's on prefix tokens. The gradient is A gamma w / (w + gamma)^2 grad log pi_theta.
    """
    w = token_ratio(log_probs.detach(), old_log_probs)
    return _shaped(w, log_probs, old_log_probs, advantages, prefix_mask=prefix_mask, gamma=gamma)


def _shaped(
    x: Tensor, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, prefix_mask: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    weight = gamma * x / (x + gamma) ** 2
    prefix = prefix_mask.bool()
    return (
        torch.where(prefix, log_probs.detach(), old_log_probs),
        torch.where(prefix, advantages * weight, advantages),
    )


@dataclass(frozen=True)
class PrefixObjective:
    """How a prefix token enters the clipped objective; a continuation token is always plain PPO.

    Args:
        anchor_is_behavior: the ratio is taken against b_i, else against pi_old.
        weight: factor on the advantage of a prefix token.
        trained: whether prefix tokens count in the loss and in its denominator.
        in_loss: what the loss does to `old_log_probs` and `advantages` because it depends on pi_theta while that moves;
            called as `shaped_tokens` is.
    """

    anchor_is_behavior: bool
    weight: Callable[..., Tensor]
    trained: bool
    in_loss: Callable[..., tuple[Tensor, Tensor]] | None = None


PREFIX_OBJECTIVES: dict[str, PrefixObjective] = {
    "behavior": PrefixObjective(anchor_is_behavior=True, weight=unit_weight, trained=True),
    "decoupled": PrefixObjective(anchor_is_behavior=False, weight=truncated_weight, trained=True),
    "masked": PrefixObjective(anchor_is_behavior=True, weight=zero_weight, trained=False),
    "shaped": PrefixObjective(anchor_is_behavior=True, weight=unit_weight, trained=True, in_loss=shaped_tokens),
    "shaped_ratio": PrefixObjective(
        anchor_is_behavior=True, weight=unit_weight, trained=True, in_loss=shaped_ratio_tokens
    ),
}
"""`soup.prefix_objective` -> what it does."""


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


def _historical_before(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Before each token: the summed log ratio of the historical tokens, detached, and their number.

    In float32, 8192 ratios of some 10% off 1 that are added one by one come out within 6e-5 nats, in torch's order on a
    CPU within 5e-7. Both (batch, response_length).
    """
    prefix = prefix_mask.bool()
    log_ratio = torch.where(prefix, log_probs.detach() - behavior_log_probs, 0.0)
    total, count = (pad(x[..., :-1].cumsum(dim=-1), (1, 0)) for x in (log_ratio, prefix))
    return total, count


def cumulative_weight(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> Tensor:
    """Product of the ratios of the t historical tokens before each token, detached; 1 where none came before.

    Its log is kept within [-0.025 sqrt(t), 0.05 sqrt(t)], the edges of CTPO (arXiv 2605.07331): the log of a product of
    t ratios spreads as sqrt(t). Shape (batch, response_length).
    """
    total, count = _historical_before(log_probs, behavior_log_probs, prefix_mask=prefix_mask)
    edge = count.to(total.dtype).sqrt()
    return torch.exp(total.clamp(CUMULATIVE_LOG_LOW * edge, CUMULATIVE_LOG_HIGH * edge))


def cumulative_unclipped_weight(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> Tensor:
    """The same product without CTPO's edges: unbiased up to e^20 either way, where `LOG_RATIO_LIMIT` bounds its log."""
    total, _ = _historical_before(log_probs, behavior_log_probs, prefix_mask=prefix_mask)
    return torch.exp(total.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


PREFIX_CORRECTIONS: dict[str, Callable[..., Tensor] | None] = {
    "none": None,
    "min_prefix": min_prefix_weight,
    "cumulative": cumulative_weight,
    "cumulative_unclipped": cumulative_unclipped_weight,
}
"""`soup.prefix_correction` -> factor on the advantage of each token, computed in the loss because pi_theta moves."""


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


def past_second_moment(
    old_log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor, response_mask: Tensor, limit: float
) -> tuple[Tensor, float]:
    """M2PO (arXiv 2510.01161): historical tokens of largest (log r)^2, until the mean of the others is below `limit`.

    r = b_i / pi_old, fixed for the batch. The mean is over all trained tokens: r is 1 on those that the current policy
    sampled. One token stays whatever it is, as in AReaL's code.

    Args:
        old_log_probs, behavior_log_probs, prefix_mask: (batch, response_length).
        response_mask: (batch, response_length), 1 on tokens that are trained.
        limit: of the mean, in squared nats.

    Returns:
        Tokens to leave out, (batch, response_length) boolean, and the mean before.
    """
    trained = response_mask.bool()
    historical = trained & prefix_mask.bool()
    moments, order = (behavior_log_probs - old_log_probs)[historical].double().square().sort(stable=True)
    own = int(trained.sum()) - len(moments)
    mean = moments.cumsum(dim=0) / (own + torch.ones_like(moments).cumsum(dim=0))  # of these and all smaller: it grows
    kept = max(int((mean < limit).sum()), 0 if own else 1)
    left_out = torch.zeros_like(moments, dtype=torch.bool).index_fill_(0, order[kept:], True)
    return torch.zeros_like(historical).masked_scatter_(historical, left_out), float(mean[-1]) if len(mean) else 0.0


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


def unlearning_loss(log_probs: Tensor, old_log_probs: Tensor, *, clip: float) -> Tensor:
    """max(r, clip(r, 1 - e, 1 + e)), r = exp(log pi_phi - log pi_theta): the loss of each token that a copy phi of the
    policy theta unlearns, after the surrogate of PROPS (arXiv 2311.08290). Its gradient is that of r down to 1 - e and
    0 below. Shape (batch, response_length).

    Args:
        log_probs: of the copy.
        old_log_probs: of the policy that sampled the tokens.
        clip: e.
    """
    ratio = token_ratio(log_probs, old_log_probs)
    return torch.maximum(ratio, ratio.clamp(1 - clip, 1 + clip))


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
