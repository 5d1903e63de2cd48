"""Reward functions that leave: `sys.exit` in one becomes an error like any other.

In verl's reward workers it ends the event loop, whose process stays: nobody is answered any more, and the run waits.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import ray
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker


def tell_exits(manager: RewardLoopManager) -> None:
    """From now on a response during whose scoring the process is to be left fails, and says why."""
    ray.get([worker.__ray_call__.remote(_tell_exits) for worker in manager.reward_loop_workers])


def _tell_exits(worker: RewardLoopWorker) -> None:
    """In the worker: its own reward manager, of whatever class."""
    run_single = worker.reward_manager.run_single

    @wraps(run_single)
    async def told(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await run_single(*args, **kwargs)
        except SystemExit as left:
            raise RuntimeError(
                f"the reward function called sys.exit({left.code!r}): expected a number for every response, or an error"
            ) from None

    worker.reward_manager.run_single = told
