"""Failures that verl would swallow or trip over, said with their cause; mixed into the trainers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from verl.trainer.ppo.v1 import PPOTrainer

from soup_verl.method.checks import PortableError
from soup_verl.method.config import SoupConfig


class SessionsFailed(PortableError):
    """Sessions of a batch ended with an error; verl itself would go on with what is left of their groups."""

    def __init__(self, errors: list[str], step: int):
        super().__init__(f"{len(errors)} responses failed at step {step}; first: {errors[0]}")


class GradientsNotFinite(PortableError):
    """Step after step an update had to be left out."""

    def __init__(self, steps: int, step: int):
        super().__init__(
            f"the gradient was not finite at step {step} and in {steps} steps in a row: expected less than "
            f"soup.max_skipped_steps={steps}. No such update was made: look at the rewards and log-probs of these "
            "steps, lower the learning rate, or go on from an earlier checkpoint."
        )


class ExplainedFailures(PPOTrainer):
    """Mixin: failed sessions and updates that were left out."""

    _soup: SoupConfig
    _skipped_steps = 0
    """Steps in a row, up to now, in which an update was left out."""

    def _raise_session_errors(self) -> None:
        manager: Any = getattr(self, "agent_loop_manager", None)
        errors = manager.take_errors() if hasattr(manager, "take_errors") else []
        if errors:
            raise SessionsFailed(errors, self.global_steps)

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        """verl leaves the cause of a failed session in a worker's log and stumbles over its absence: say the cause."""
        try:
            yield
        except SessionsFailed:
            raise
        except Exception:
            self._raise_session_errors()
            raise

    def _count_skipped_updates(self, metrics: dict) -> None:
        skipped = max(self.actor_rollout_wg.take_skipped_updates())
        metrics["soup/skipped_updates_total"] = float(skipped)
        self._skipped_steps = self._skipped_steps + 1 if skipped else 0
        if self._skipped_steps >= self._soup.max_skipped_steps:
            raise GradientsNotFinite(self._skipped_steps, self.global_steps)
