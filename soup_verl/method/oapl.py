"""OAPL (arXiv 2602.19362): the log-ratio of a whole response is regressed on its advantage; no ratio, no clip.

    V = b1 ln( mean_G exp(R / b1) ),    A = R - V               the soft value of the policy that sampled the group
    L = mean over responses of (b2 s - A)^2,    s = sum_t [log pi_theta(y_t) - log b_t]

b is the policy that sampled the token, so a response with a historical prefix has its own. Known to us from secondary
documents; the paper's text and an official code were not available to us.

`oapl_paired` is our analogue, for outcome rewards, of what the coverage paper asks (arXiv 2601.08421, whose own formula
was not available to us). Every pair of a group is compared, R_i - R_j with b2 (s_i - s_j):

    sum_{i<j} [b2 (s_i - s_j) - (R_i - R_j)]^2 = G sum_i (d_i - mean_G d)^2,    d = b2 s - R

which is OAPL's loss with V = -mean_G d, times G: as every response weighs the same here, a pair weighs 1 / G.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from soup_verl.method.core_algos import rows_of_groups


def soft_value_advantage(
    rewards: Tensor, groups: Sequence[Hashable], *, b1: float, counted: Tensor | None = None
) -> Tensor:
    """A = R - b1 ln mean_G exp(R / b1); 0 for a response alone in its group.

    Args:
        rewards: (batch,).
        groups: of each row.
        b1: above 0; towards infinity V is the group's mean, towards 0 its maximum.
        counted: (batch,) boolean, rows that enter V; all by default.

    Returns:
        (batch,), also for rows that do not count.
    """
    advantages = torch.empty_like(rewards)
    for rows, counting in rows_of_groups(groups, counted):
        value = b1 * (torch.logsumexp(rewards[counting] / b1, dim=0) - math.log(len(counting)))
        advantages[rows] = rewards[rows] - value
    return advantages


def paired_advantage(
    rewards: Tensor, groups: Sequence[Hashable], *, log_ratio: Tensor, b2: float, counted: Tensor | None = None
) -> Tensor:
    """A = R + mean_G (b2 s - R), with s as it is before the step's first update.

    A group's responses may fall into different micro-batches, which cannot know each other's s. So the mean is taken
    once: exact in the first update, and `launch/run_rules.py` lets a step have no other.

    Args:
        log_ratio: (batch,), s of each response before the update.

    The others and the result are as in `soft_value_advantage`.
    """
    residual = b2 * log_ratio - rewards
    advantages = torch.empty_like(rewards)
    for rows, counting in rows_of_groups(groups, counted):
        advantages[rows] = rewards[rows] + residual[counting].mean()
    return advantages


def oapl_loss(log_probs: Tensor, advantages: Tensor, *, log_ratio: Tensor, trained: Tensor, b2: float) -> Tensor:
    """Terms whose sum over a response is (b2 s - A)^2 and whose gradient is the square's, to be summed in a response.

    The square's slope in every log pi(y_t) is 2 b2 (b2 s - A): a detached factor, so that tokens which are cut from the
    loss count in s all the same.

    Args:
        log_probs, advantages: (batch, response_length); the advantage is one number a row.
        log_ratio: (batch, 1), s, detached.
        trained: (batch, response_length) boolean.
    """
    residual = b2 * log_ratio - advantages
    share = residual**2 / trained.sum(dim=-1, keepdim=True).clamp(min=1)
    return share + 2 * b2 * residual * (log_probs - log_probs.detach())
