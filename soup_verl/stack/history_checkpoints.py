"""Checkpoints: verl's files, then the history beside them, and which one is the best; mixed into the trainers."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from verl.trainer.ppo.v1 import PPOTrainer

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import PrefixSource, PromptBlocks
from soup_verl.method.observation import History
from soup_verl.stack import checkpoint, resume
from soup_verl.stack.best import BestCheckpoint
from soup_verl.stack.policy_engine import TrainerPolicyEngine
from soup_verl.stack.rotation import Rotation

logger = logging.getLogger(__name__)

SOLVED_RATES = "solved_rates.json"
WRITTEN = "written"
"""In the state: steps of the run's checkpoints before this one that were there when it was written."""


class HistoryCheckpoints(PPOTrainer):
    """Mixin: what a resumed run needs of the history is saved and taken up with verl's checkpoint."""

    _engine: TrainerPolicyEngine
    _history: History
    _settings: dict[str, Any]
    _soup: SoupConfig
    _rotation: Rotation
    _best: BestCheckpoint | None = None
    _blocks: PromptBlocks | None = None
    """Of dynamic sampling with mixing: prompts and their prefixes by ordinal."""

    @property
    def _source(self) -> PrefixSource | None:
        """None where no prefix is planned."""
        return self._history.source

    @property
    def _root(self) -> Path:
        return Path(self.config.trainer.default_local_dir).absolute()

    def _save_checkpoint(self) -> None:
        folder = self._root / f"global_step_{self.global_steps}"
        best = self._best.folder if self._best else None
        try:
            with self._rotation.around_save(folder, best):
                shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)  # of a history that this run has left
                super()._save_checkpoint()
                self._save_history(folder)
        except Exception as error:
            raise checkpoint.CheckpointNotWritten(folder, getattr(error, "cause", None) or error) from error

    def _save_history(self, folder: Path) -> None:
        checkpoint.write(
            folder,
            state={
                "step": self.global_steps,
                "settings": self._settings,
                "low_kl_steps": self._history.collapse.low_steps,
                "mixing_started": self._history.solved.started,
                WRITTEN: [checkpoint.step_of(c) for c in self._rotation.written],
            },
            write_history=self._write_history,
        )

    def _write_history(self, folder: Path) -> None:
        if self._source:
            if self._blocks:
                self._blocks.save(folder, self._source)
            self._source.save(folder)
            (folder / SOLVED_RATES).write_text(json.dumps(self._history.solved.rates))

    def _load_checkpoint(self) -> None:
        if self._source:  # the last part of verl's set-up: its workers exist
            self._engine.workers, self._engine.checkpoint_manager = self.actor_rollout_wg, self.checkpoint_manager
        folder = resume.checkpoint_to_resume(self.config.trainer)
        state = None
        if folder is not None:
            resume.check_weights(folder, self.config)
            state = self._stored_state(folder)
        with resume.only_from(folder, self.config.trainer):
            super()._load_checkpoint()
        if self._soup.keep_best:
            self._best = BestCheckpoint(self._root, self._soup.keep_best, self.global_steps)
        self._rotation = Rotation(self.config.trainer, self._written_until(folder))
        if state is not None:
            self._history.collapse.low_steps = state["low_kl_steps"]
        if folder is not None and state is not None and self._source:
            self._history.solved.started |= state.get("mixing_started", True)  # older ones never waited
            self._history.solved.rates.update(json.loads((folder / checkpoint.FOLDER / SOLVED_RATES).read_text()))
            self._source.load(folder / checkpoint.FOLDER)
            if self._blocks:
                self._blocks.load(folder / checkpoint.FOLDER)

    def _written_until(self, folder: Path | None) -> list[Path]:
        """The checkpoints of this run up to the one that it goes on from; none where that is another run's."""
        if folder is None or folder.resolve().parent != self._root.resolve():
            return []
        has_state = (folder / checkpoint.FOLDER).exists()  # not if verl wrote it alone
        before = checkpoint.read_state(folder).get(WRITTEN, []) if has_state else []
        return [self._root / f"global_step_{step}" for step in (*before, self.global_steps)]

    def _stored_state(self, folder: Path) -> dict[str, Any] | None:
        """What the checkpoint says of its history; None if this run or the checkpoint has none.

        A run that goes on by itself must be the same run; a checkpoint that was asked for by name may start another.
        """
        state = checkpoint.read_state(folder) if (folder / checkpoint.FOLDER).exists() else None
        named = self.config.trainer.resume_mode == "resume_path"
        has_history = state is not None and resume.mixes(state["settings"])
        if state is not None and not (named and (self._source is None or not has_history)):
            resume.check_settings(folder, state["settings"], self._settings, history_only=named)
        if self._source and not has_history:
            logger.warning("%s has no history of SOUP: it starts anew", folder)
        if state is None or not self._soup.mixing or state["settings"].get("soup.source") != self._soup.source:
            return None
        return state
