"""ExO-PPO (arXiv 2602.09726): beyond the edges of the clip the gradient decays instead of ending.

    f(r) = r                                     lower <= r <= upper
         = upper + (1 - exp(-k (r - upper))) / k     r > upper
         = lower - (1 - exp(-k (lower - r))) / k     r < lower
    J = min(r A, f(r) A)        the gradient beyond an edge is exp(-k distance) of the unclipped one

The formula is that of the authors' code (HarriWxy/ExO-PPO), which is for Atari and MuJoCo. k -> infinity is the clip
and k -> 0 no clip at all. verl's dual clip applies as it does to the clip: the paper has none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exo_loss(ratio: Tensor, advantages: Tensor, *, lower: Tensor, upper: Tensor, k: float | None, c: float) -> Tensor:
    """-min(r A, f(r) A), at most -c A where A < 0. All (batch, response_length).

    Args:
        ratio: pi_theta / the policy that sampled the token.
        lower, upper: edges of the band.
        k: decay; None is the clip itself, number for number (at an edge, infinity would be 0 times infinity).
        c: dual clip (arXiv 1912.09729).
    """
    inside = ratio.clamp(lower, upper)
    loss = torch.maximum(-advantages * ratio, -advantages * (inside if k is None else inside + _tail(ratio, inside, k)))
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * c), loss)


def _tail(ratio: Tensor, inside: Tensor, k: float) -> Tensor:
    """f(r) less the clipped ratio: 0 within the band, at most 1/k in size beyond."""
    distance = ratio - inside.detach()  # where it is 0, so is the gradient of its sign and size
    return -torch.sign(distance) * torch.expm1(-k * distance.abs()) / k


def centred_band(
    old_log_probs: Tensor, behavior_log_probs: Tensor, *, prefix_mask: Tensor, low: float, high: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Edges around pi_old / pi_h on prefix tokens, around 1 elsewhere: the authors' variant with a recent policy.

    The band is moved, not stretched, as in their code: between `behavior` (around 1) and `decoupled` without its cap,
    whose clip around pi_old is a band of pi_old / pi_h times 1 - low to 1 + high.

    Args:
        old_log_probs: of pi_old.
        behavior_log_probs: of the policy that sampled the token.
        limit: largest size of a log ratio.

    Returns:
        lower, upper, each (batch, response_length).
    """
    one = torch.ones_like(old_log_probs)
    lower, upper = one * (1 - low), one * (1 + high)
    centre = torch.exp((old_log_probs - behavior_log_probs).clamp(-limit, limit))
    prefix = prefix_mask.bool()
    return torch.where(prefix, centre - low, lower), torch.where(prefix, centre + high, upper)


def in_tail(ratio: Tensor, advantages: Tensor, *, lower: Tensor, upper: Tensor) -> Tensor:
    """Tokens whose gradient comes from beyond an edge, where the clip would take it away. Boolean."""
    return ((advantages > 0) & (ratio > upper)) | ((advantages < 0) & (ratio < lower))
