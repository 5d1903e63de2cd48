"""A learning rate that shrinks where the historical tokens have become unlikely: VCPO (arXiv 2602.17616).

A response's weight is the ratio of its historical tokens taken together, w_i = exp(sum_t [log pi_theta - b_t]). Where
few responses carry most of the weight, an update rests on few of them, and its step is made smaller:

    rho = (sum_i w_i)^2 / (B sum_i w_i^2),    lr * min(1, rho / rho_base)^(1/2)

Over the B responses that have historical tokens; the others have w = 1 whatever happened, and would hide how far the
history is off. The same paper's baseline of least variance is `core_algos.variance_log_weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from soup_verl.method.core_algos import historical_log_ratio

RULES: dict[str, Callable[[float], float] | None] = {"none": None, "sqrt": lambda x: x**0.5, "linear": lambda x: x}
"""`soup.step_size.rule` -> factor on the learning rate for rho / rho_base below 1."""
ROUNDING = 1e-9
"""Of a share: equal ratios must leave the learning rate as it is, to the last digit."""


def log_sums(log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor) -> Tensor:
    """log sum w, log sum w^2 and the number of responses with historical tokens: (3,) float64. In logarithms, because
    a ratio over thousands of tokens leaves the range of any float.

    Args:
        log_probs, behavior_log_probs, prefix_mask: (batch, response_length).
    """
    log_weight = historical_log_ratio(log_probs, behavior_log_probs, prefix_mask=prefix_mask)
    mixed = prefix_mask.bool().any(dim=-1)
    nothing = torch.full_like(log_weight, -torch.inf)
    return torch.stack(
        [
            torch.where(mixed, log_weight, nothing).logsumexp(dim=0),
            torch.where(mixed, 2 * log_weight, nothing).logsumexp(dim=0),
            mixed.sum().double(),
        ]
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The `log_sums` of several micro-batches or ranks together."""
    stacked = torch.stack(list(parts))
    return torch.cat([stacked[:, :2].logsumexp(dim=0), stacked[:, 2:].sum(dim=0)])


def effective_share(sums: Tensor) -> float | None:
    """rho: 1 where all weights are equal, 1 / B where one has it all; None without historical tokens."""
    log_sum, log_square_sum, count = sums.tolist()
    if count == 0:
        return None
    return min(1.0, torch.exp(torch.tensor(2 * log_sum - log_square_sum, dtype=torch.float64)).item() / count)


def scale(share: float | None, *, rule: str, rho_base: float) -> float:
    """Factor on the learning rate; exactly 1 without a rule, without historical tokens, and from `rho_base` on."""
    shrink = RULES[rule]
    if shrink is None or share is None or share > rho_base * (1 - ROUNDING):
        return 1.0
    return shrink(share / rho_base)
