"""Which of a prompt's stored responses to take first.

Each choice takes the prompt's responses by version, then insertion, and a seed, and returns the positions of all of
them, best first. Ties go to the newer version, then to the one added last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol


class Candidate(Protocol):
    """What a choice looks at."""

    reward: float
    surprisal: float


def uniform(responses: Sequence[Candidate], seed: int) -> list[int]:
    """Any order, each as likely."""
    return random.Random(seed).sample(range(len(responses)), len(responses))


def latest(responses: Sequence[Candidate], seed: int) -> list[int]:
    """Newest policy version first."""
    return list(reversed(range(len(responses))))


def best_reward(responses: Sequence[Candidate], seed: int) -> list[int]:
    """Highest reward first."""
    return sorted(latest(responses, seed), key=lambda i: -responses[i].reward)


def worst_reward(responses: Sequence[Candidate], seed: int) -> list[int]:
    """Lowest reward first."""
    return sorted(latest(responses, seed), key=lambda i: responses[i].reward)


def entropy(responses: Sequence[Candidate], seed: int) -> list[int]:
    """Highest mean of -log_prob over the response's tokens first: a one-sample estimate of its policy's entropy."""
    return sorted(latest(responses, seed), key=lambda i: -responses[i].surprisal)


CHOICES: dict[str, Callable[[Sequence[Candidate], int], list[int]]] = {
    f.__name__: f for f in (uniform, latest, best_reward, worst_reward, entropy)
}
