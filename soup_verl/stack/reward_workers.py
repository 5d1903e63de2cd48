"""Reward functions that leave: `sys.exit` in one becomes an error like any other.

In verl's reward workers it ends the event loop, whose process stays: nobody is answered any more, and the run waits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import ray
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker


def tell_exits(manager: RewardLoopManager) -> None:
    """From now on a response during whose scoring the process is to be left fails, and says why."""
    ray.get([worker.__ray_call__.remote(_tell_exits) for worker in manager.reward_loop_workers])


def _tell_exits(worker: RewardLoopWorker) -> None:
    """In the worker, for a reward manager of any class; the function is awaited, or called in a thread."""
    score = worker.reward_manager.compute_score
    worker.reward_manager.compute_score = _awaited(score) if inspect.iscoroutinefunction(score) else _called(score)


def _awaited(score: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(score)
    async def told(*args: Any, **kwargs: Any) -> Any:
        with _exits_are_errors():
            return await score(*args, **kwargs)

    return told


def _called(score: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(score)
    def told(*args: Any, **kwargs: Any) -> Any:
        with _exits_are_errors():
            return score(*args, **kwargs)

    return told


@contextmanager
def _exits_are_errors() -> Iterator[None]:
    try:
        yield
    except SystemExit as left:
        raise RuntimeError(
            f"the reward function called sys.exit({left.code!r}): expected a number for every response, or an error"
        ) from None
