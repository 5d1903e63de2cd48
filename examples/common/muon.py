"""torch.optim.Muon with its products in float32.

torch multiplies in bfloat16, which a CPU without instructions for it emulates: the quickstart's warm
start, a minute where it has them, took more than ten on one that has only AVX2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of torch.optim.Muon
ITERATIONS = 5


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1, by Newton-Schulz iterations.

    Args:
        matrix: (rows, columns).
    """
    a, b, c = COEFFICIENTS
    flat = len(matrix) <= matrix.shape[1]
    x = matrix if flat else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if flat else x.T


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (https://kellerjordan.github.io/posts/muon); for matrices only."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update, with Nesterov's momentum."""
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalized(weight.grad.lerp(average, group["momentum"]))
                scale = math.sqrt(max(1.0, len(weight) / weight.shape[1]))
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
