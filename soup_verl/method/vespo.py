"""VESPO (arXiv 2602.10693): a smooth weight of the whole response's ratio in place of a clip.

    loss = -phi(W) A log pi(y_t),    phi(W) = exp(lambda + k ln W - lambda W), detached
    W = prod_t pi_theta(y_t) / b_t,    (k, lambda) = (2, 3) where A >= 0, (3, 2) where A < 0

W is the product, not divided by the length, its logarithm limited to +-20; phi is 1 at W = 1, largest at W = k / lambda
and 0 at both ends. Read in the authors' code (FloyedShen/VESPO). b is the policy that sampled the token: W is the ratio
of a mixed response to the policies that wrote it.
"""

from __future__ import annotations

import torch
from torch import Tensor

POSITIVE, NEGATIVE = (2.0, 3.0), (3.0, 2.0)
"""(k, lambda), by the sign of the advantage."""


def vespo_weight(log_ratio: Tensor, advantages: Tensor, *, limit: float) -> Tensor:
    """phi(W). Shape (batch, response_length).

    Args:
        log_ratio: (batch, 1), ln W.
        advantages: (batch, response_length).
        limit: largest size of ln W.
    """
    log_w = log_ratio.clamp(-limit, limit)
    positive, negative = (lam + k * log_w - lam * log_w.exp() for k, lam in (POSITIVE, NEGATIVE))
    return torch.where(advantages >= 0, positive, negative).exp()
