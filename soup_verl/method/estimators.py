"""Estimates from n samples a problem: pass@k, maj@k, and intervals over problems. Pure functions, numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

_BLOCK = 1 << 22  # numbers of one block of resampling weights


def pass_at_k(*, n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n samples of which `correct` are.

    1 - C(n - c, k) / C(n, k): the mean over all subsets of k samples, unbiased for 1 - (1 - p)^k (Chen et al. 2021,
    "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, section 2.1).

    Args:
        n: samples of the problem.
        correct: how many of them are right, 0 to n.
        k: samples one may try, 1 to n.
    """
    assert 0 <= correct <= n and 1 <= k <= n, (n, correct, k)
    return 1.0 - comb(n - correct, k) / comb(n, k)


@dataclass(frozen=True)
class Ballot:
    """The answers to one problem.

    Args:
        votes: for each distinct answer, how many samples gave it; at least 1 each.
        merits: for each distinct answer, the share of those samples that were right, 0 to 1.
        abstained: samples without an answer.
    """

    votes: tuple[int, ...]
    merits: tuple[float, ...]
    abstained: int = 0

    @classmethod
    def count(cls, answers: Sequence[str], correct: Sequence[bool]) -> Ballot:
        """Count one problem's samples; an empty answer is none."""
        right: dict[str, list[bool]] = {}
        for answer, is_right in zip(answers, correct, strict=True):
            if answer:
                right.setdefault(answer, []).append(is_right)
        votes = tuple(map(len, right.values()))
        return cls(votes, tuple(sum(r) / len(r) for r in right.values()), len(answers) - sum(votes))

    @property
    def samples(self) -> int:
        return sum(self.votes) + self.abstained


def majority_at(ballot: Ballot, sizes: Sequence[int]) -> list[float]:
    """maj@k for each k in `sizes`: how often the most frequent answer of k samples is right.

    Exact, not resampled: the mean over all subsets of k of the n samples. Samples without an answer do not vote;
    where nobody votes the result is wrong. Answers that tie share the win equally (a fair draw among them).

    The subsets are counted by the votes t of their winners. With ways[k, s] the subsets of size k in which exactly s
    answers have t votes and no answer has more, and merit[k, s] the winners' summed merits over them,

        maj@k = sum over t, s of merit[k, s] / s / C(n, k).

    Args:
        ballot: the answers.
        sizes: values of k, each 1 to n.
    """
    largest = max(sizes)
    assert min(sizes) >= 1 and largest <= ballot.samples, (sizes, ballot)
    merit = np.zeros(largest + 1)
    for winning in range(1, min(largest, max(ballot.votes, default=0)) + 1):
        merit += _merit_of_winners(ballot, winning, largest)
    return [float(merit[k] / comb(ballot.samples, k)) for k in sizes]


def _merit_of_winners(ballot: Ballot, winning: int, largest: int) -> np.ndarray:
    """Summed mean merit of the winners, over the subsets whose winners have `winning` votes; (largest + 1,) by size."""
    ways = np.zeros((largest + 1, largest // winning + 1))  # by size of the subset, by number of winners
    merit = np.zeros_like(ways)
    for silent in range(min(ballot.abstained, largest) + 1):
        ways[silent, 0] = comb(ballot.abstained, silent)
    for votes, worth in zip(ballot.votes, ballot.merits, strict=True):
        next_ways, next_merit = np.zeros_like(ways), np.zeros_like(ways)
        for taken in range(min(votes, winning - 1, largest) + 1):
            next_ways[taken:] += comb(votes, taken) * ways[: largest + 1 - taken]
            next_merit[taken:] += comb(votes, taken) * merit[: largest + 1 - taken]
        if votes >= winning:
            choices = comb(votes, winning)
            next_ways[winning:, 1:] += choices * ways[: largest + 1 - winning, :-1]
            gained = merit[: largest + 1 - winning, :-1] + worth * ways[: largest + 1 - winning, :-1]
            next_merit[winning:, 1:] += choices * gained
        ways, merit = next_ways, next_merit
    return (merit[:, 1:] / np.arange(1, merit.shape[1])).sum(axis=1)


def bootstrap_intervals(
    values: np.ndarray, *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> list[tuple[float, float] | None]:
    """Percentile bootstrap interval of each column's mean, problems resampled with replacement.

    The columns share their resamples, so intervals of different k move together. An interval speaks of other problems
    of the same kind; the samples of a problem are not resampled. With fewer than two problems there is none.

    Args:
        values: (problems, columns), a problem's estimates a row.
        seed: of the resampling.
        resamples: how many.
        level: coverage aimed at, 0 to 1.

    Returns:
        (low, high) a column, or None.
    """
    problems, columns = values.shape
    if problems < 2:
        return [None] * columns
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // problems)
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = [rng.multinomial(problems, np.full(problems, 1 / problems), size=b) @ values / problems for b in blocks]
    ends = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, .. up to n, and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})
