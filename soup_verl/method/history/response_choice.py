"""Which of a prompt's stored responses to take first. A new one: a row here, a name in `sections.REPLAY_CHOICES`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from soup_verl.method.history.prefixes import PolicyResponse


def _log_prob(r: PolicyResponse) -> float:
    """Mean over the tokens; its negative is a one-sample estimate of the policy's entropy."""
    return float(r.log_probs.mean(dtype=np.float64))


SMALLEST_FIRST: dict[str, Callable[[PolicyResponse], float | None]] = {
    "latest": lambda r: -r.policy_version,
    "best_reward": lambda r: -r.reward,
    "worst_reward": lambda r: r.reward,
    "entropy": _log_prob,  # the highest first
    "latest_right": lambda r: -r.policy_version if r.right else None,
    "latest_wrong": lambda r: None if r.right else -r.policy_version,
    "surest_right": lambda r: -_log_prob(r) if r.right else None,
}
"""Choice -> what responses are ordered by; None: never taken."""
CHOICES = ("uniform", *SMALLEST_FIRST)


def order(responses: Sequence[PolicyResponse], choice: str, seed: int) -> list[int]:
    """The positions of those of a prompt's responses that may be taken, the first choice first.

    They come by version, then insertion. Ties go to the newer version, then to the one added last. `uniform` is any
    order, each as likely.
    """
    if choice == "uniform":
        return random.Random(seed).sample(range(len(responses)), len(responses))
    places = {i: place for i, r in enumerate(responses) if (place := SMALLEST_FIRST[choice](r)) is not None}
    return sorted(places, key=lambda i: (places[i], -i))
