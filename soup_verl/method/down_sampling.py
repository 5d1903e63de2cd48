"""Which of a prompt's responses are trained on: `soup.down_sampling`, a pure function of rewards, seed, step and place.

PODS (arXiv 2504.13818) samples n responses to a prompt and trains on the m whose rewards have the largest variance,
with `random` and `max_reward` as its controls. That variance is largest for the i highest and the m - i lowest rewards,
for some i, so m + 1 sets are compared instead of all. A choice by reward is no random sample of the policy's responses:
the gradient of the m estimates another objective than that of the n.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from itertools import accumulate

from soup_verl.method.mixing import stable_seed

Choice = Callable[[Sequence[float], int, random.Random], Sequence[int]]
"""Rewards in ascending order, how many to choose, and what decides between equals -> places of the chosen ones."""


def max_variance(rewards: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """The i highest and `count` - i lowest rewards, for the i at which their variance is largest.

    Sums are exact, so that equal variances are equal; one of them is drawn then.
    """
    values = [Fraction(reward) for reward in rewards]
    sums = [Fraction(0), *accumulate(values)]
    squares = [Fraction(0), *accumulate(value * value for value in values)]

    def spread(highest: int) -> Fraction:  # count^2 times the variance
        low, high = count - highest, len(values) - highest
        total, squared = (s[low] + s[-1] - s[high] for s in (sums, squares))
        return count * squared - total * total

    spreads = [spread(highest) for highest in range(count + 1)]
    best = rng.choice([i for i, value in enumerate(spreads) if value == max(spreads)])
    return [*range(count - best), *range(len(values) - best, len(values))]


def at_random(rewards: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """Any of them, whatever their rewards: the update is as small, the estimate is that of a smaller group."""
    return rng.sample(range(len(rewards)), count)


def max_reward(rewards: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """The highest rewards."""
    return list(range(len(rewards) - count, len(rewards)))


CHOICES: dict[str, Choice] = {"max_variance": max_variance, "random": at_random, "max_reward": max_reward}
"""`soup.down_sampling.choice` -> what it does."""


def trained_rows(
    rewards: Sequence[float], places: Sequence[Hashable], *, train_on: int | None, choice: str, seed: int, step: int
) -> list[int]:
    """The rows that are trained on, in ascending order.

    Args:
        rewards: of each row.
        places: of each row's prompt in its batch.
        train_on, choice: `soup.down_sampling`; None, and as many as a prompt has, are all of them.
        seed: `soup.seed`; with the step and the place it draws between equal rewards, on a resumed run alike.
        step: of training, from 1.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, place in enumerate(places):
        rows_of.setdefault(place, []).append(row)
    chosen: list[int] = []
    for place, rows in rows_of.items():
        rng = random.Random(stable_seed("down_sampling", seed, step, place))
        ascending = sorted(rng.sample(rows, len(rows)), key=lambda row: rewards[row])  # equal ones shuffled
        count = len(rows) if train_on is None else min(train_on, len(rows))
        some = CHOICES[choice]([rewards[row] for row in ascending], count, rng)
        chosen += [ascending[i] for i in some]
    return sorted(chosen)
