"""Which checkpoints of a run stay: the newest, and the best.

In place of verl's rotation, which counts anew in every start of a run, and drops the checkpoint before as soon as the
weights of the next one are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from soup_verl.stack.checkpoint import step_of
from soup_verl.stack.resume import settings_for_verl


class Rotation:
    """The checkpoints that a run has written, in this start and those before.

    Args:
        trainer: `max_actor_ckpt_to_keep` is how many stay besides the best; null: all.
        root: the run's folder.
        until: the step of the run's own checkpoint that it goes on from; 0: it has none. What else is in the folder is
            of another history, and stays. So does what is there by a link.
    """

    def __init__(self, trainer: DictConfig, root: Path, until: int):
        self._trainer, self._keep = trainer, trainer.get("max_actor_ckpt_to_keep")
        found = (c for c in root.glob("global_step_*") if 0 < step_of(c) <= until and not c.is_symlink())
        self._written = sorted(found, key=step_of)

    @contextmanager
    def around_save(self, folder: Path, best: Path | None) -> Iterator[None]:
        """Around writing `folder`. As with verl the oldest goes before, but never the last whole one."""
        if self._keep:
            self._drop_all_but(max(self._keep - 1, 1), best)
        with settings_for_verl(self._trainer, max_actor_ckpt_to_keep=None):
            yield
        self._written = [*(c for c in self._written if c != folder), folder]
        if self._keep:
            self._drop_all_but(self._keep, best)

    def _drop_all_but(self, newest: int, best: Path | None) -> None:
        others = [c for c in self._written if c != best]
        for checkpoint in others[:-newest]:
            shutil.rmtree(checkpoint, ignore_errors=True)
            self._written.remove(checkpoint)
