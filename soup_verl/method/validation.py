"""Metrics of validation, from whether each response solved its problem: pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean
from typing import Any

from soup_verl.method.estimators import pass_at_k, powers_of_two


def is_solved(acc: Any, reward: float) -> bool:
    """Whether a response is right, in training, validation and evaluation.

    Args:
        acc: what the reward function reports under this name; None: nothing.
        reward: of the response.
    """
    return bool(acc > 0.5) if acc is not None else reward > 0


def pass_at_k_metrics(
    data_sources: Sequence[str], uids: Sequence[Hashable], solved: Sequence[bool]
) -> dict[str, float]:
    """`val-soup/<data source>/pass@k` for k = 1, 2, 4, .. and the most responses a prompt has.

    Mean over the data source's prompts of the unbiased estimate. A prompt with fewer than k responses says nothing of
    pass@k and is left out of that mean.

    Args:
        data_sources: of each response.
        uids: the prompt of each response; the same text in two rows of the data is two prompts.
        solved: of each response.
    """
    prompts: defaultdict[str, defaultdict[Hashable, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for source, uid, right in zip(data_sources, uids, solved, strict=True):
        prompts[source][uid].append(right)
    return {
        f"val-soup/{source}/pass@{k}": fmean(
            pass_at_k(n=len(rights), correct=sum(rights), k=k) for rights in of_source.values() if len(rights) >= k
        )
        for source, of_source in prompts.items()
        for k in powers_of_two(max(map(len, of_source.values())))
    }
