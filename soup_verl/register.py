"""SOUP's advantage estimator in verl's registry; the trainer imports it.

The agent loop `soup_agent` is registered by `soup_verl.rollout`, the trainer `soup` by `soup_verl.trainer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from soup_verl import core_algos


@dataclass(frozen=True)
class Segments:
    """What the estimator needs of a batch and verl does not pass on; rows as in the batch.

    Args:
        counted: (batch,) boolean, rows that enter a group's statistics.
        is_mixed: (batch,) boolean.
        prefix_mask, prefix_weight: (batch, response_length); None where nothing can be mixed.
        baseline: `shared` or `split`.
        norm_by_std: divide by the group's standard deviation.
    """

    counted: Tensor
    is_mixed: Tensor
    prefix_mask: Tensor | None
    prefix_weight: Tensor | None
    baseline: str
    norm_by_std: bool


_segments: ContextVar[Segments] = ContextVar("soup_segments")


@contextmanager
def batch_segments(segments: Segments) -> Iterator[None]:
    """Inside the block the estimator `soup` reads `segments`: verl hands an estimator rewards, mask and uid only."""
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


@register_adv_est("soup")
def compute_soup_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[str], config: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator `soup`: group-relative, per token, prefix tokens carry their weight.

    Args:
        token_level_rewards, response_mask: (batch, response_length).
        index: (batch,) prompt uid of each row.

    Returns:
        Advantages and returns, the same tensor, (batch, response_length).
    """
    segments = _segments.get(None)
    if segments is None:
        raise ValueError("algorithm.adv_estimator=soup needs trainer.v1.trainer_mode=soup (or soup_cpu).")
    advantages = core_algos.group_relative_advantage(
        token_level_rewards.sum(dim=-1),
        core_algos.GROUPINGS[segments.baseline](list(index), segments.is_mixed),
        counted=segments.counted,
        norm_by_std=segments.norm_by_std,
    )
    spread = core_algos.token_advantages(
        advantages,
        response_mask=response_mask,
        prefix_mask=segments.prefix_mask,
        prefix_weight=segments.prefix_weight,
    )
    return spread, spread
