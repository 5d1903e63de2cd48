"""Whether a run came to its end, and which end that is: a file in its folder says it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from soup_verl.records.files import write_json

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
"""In the folder of a run that came to its end: `steps`, those that were made, and `asked`, as in `end_asked_for`."""


def mark_finished(trainer: Any) -> None:
    """The run came to the end that its settings ask for."""
    config = trainer.config
    # verl goes on to the number of the next step, unless it does nothing but validate.
    made = trainer.global_steps - (0 if config.trainer.get("val_only", False) else 1)
    said = {"steps": made, "asked": end_asked_for(config)}
    write_json(Path(config.trainer.default_local_dir) / FINISHED, said)


def is_finished(config: DictConfig) -> bool:
    """Whether the run came to the end that its settings ask for."""
    file = Path(config.trainer.default_local_dir) / FINISHED
    if not file.exists():
        return False
    said = json.loads(file.read_text())
    return said.get("asked", said) == end_asked_for(config)  # files of earlier versions hold what was asked alone


def end_asked_for(config: DictConfig) -> dict[str, int | None]:
    """verl's trainer ends at whichever comes first; without a number of steps (None) the epochs alone decide."""
    return {"steps": config.trainer.total_training_steps, "epochs": config.trainer.total_epochs}


def end_where_the_epochs_do(trainer: Any) -> None:
    """Make the last step of the epochs the last one, where `trainer.total_training_steps` comes later.

    verl saves and validates at a step that it knows for the last; the step that it waits for would never come.
    """
    last = trainer.steps_per_epoch * trainer.config.trainer.total_epochs
    if trainer.total_training_steps > last:
        logger.warning(
            "the run ends after step %d: trainer.total_epochs=%s of %d batches, before trainer.total_training_steps=%d",
            last,
            trainer.config.trainer.total_epochs,
            trainer.steps_per_epoch,
            trainer.total_training_steps,
        )
        trainer.total_training_steps = last
