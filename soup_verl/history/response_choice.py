"""Which of a prompt's stored responses to take first."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from soup_verl.history.base import PolicyResponse

SMALLEST_FIRST: dict[str, Callable[[PolicyResponse], float]] = {
    "latest": lambda r: -r.policy_version,
    "best_reward": lambda r: -r.reward,
    "worst_reward": lambda r: r.reward,
    # highest mean of -log_prob over the response's tokens: a one-sample estimate of its policy's entropy
    "entropy": lambda r: float(r.log_probs.mean(dtype=np.float64)),
}
CHOICES = ("uniform", *SMALLEST_FIRST)


def order(responses: Sequence[PolicyResponse], choice: str, seed: int) -> list[int]:
    """The positions of all of a prompt's responses, which come by version, then insertion; the first choice first.

    Ties go to the newer version, then to the one added last. `uniform` is any order, each as likely.
    """
    if choice == "uniform":
        return random.Random(seed).sample(range(len(responses)), len(responses))
    return sorted(range(len(responses)), key=lambda i: (SMALLEST_FIRST[choice](responses[i]), -i))
