"""Which checkpoints of a run stay: the newest, and the best.

In place of verl's rotation, which counts anew in every start of a run, and drops the checkpoint before as soon as the
weights of the next one are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from soup_verl.stack.resume import settings_for_verl


class Rotation:
    """The checkpoints that a run has written, in this start and those before.

    Args:
        trainer: `max_actor_ckpt_to_keep` is how many stay besides the best; null: all.
        written: those of the starts before, oldest first. What else is in the run's folder is of another history, and
            stays.
    """

    def __init__(self, trainer: DictConfig, written: Sequence[Path]):
        self._trainer, self._keep = trainer, trainer.get("max_actor_ckpt_to_keep")
        self.written = list(written)

    @contextmanager
    def around_save(self, folder: Path, best: Path | None) -> Iterator[None]:
        """Around writing `folder`. As with verl the oldest goes before, but never the last whole one."""
        if self._keep:
            self._drop_all_but(max(self._keep - 1, 1), best)
        with settings_for_verl(self._trainer, max_actor_ckpt_to_keep=None):
            yield
        self.written = [*(c for c in self.written if c != folder), folder]
        if self._keep:
            self._drop_all_but(self._keep, best)

    def _drop_all_but(self, newest: int, best: Path | None) -> None:
        others = [c for c in self.written if c != best]
        for checkpoint in others[:-newest]:
            shutil.rmtree(checkpoint, ignore_errors=True)
            self.written.remove(checkpoint)
