"""verl's task runner, with our trainers registered before it looks one up."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from soup_verl import run_log
from soup_verl.series import Series
from soup_verl.watch import end_when_a_process_dies

_TaskRunner: Any = TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


class SoupTaskRunner(_TaskRunner):
    def run(self, config: DictConfig) -> None:
        """Register `soup` (on a CPU `soup_cpu` and `sync_cpu`, too), import the modules in SOUP_IMPORT, then run.

        With verl's `file` logger the metrics go to `metrics.jsonl` in `trainer.default_local_dir`, unless
        VERL_FILE_LOGGER_PATH says otherwise.
        """
        _show_our_log()
        if "VERL_FILE_LOGGER_PATH" not in os.environ:
            run_log.open_in(Path(config.trainer.default_local_dir).absolute())

        import soup_verl.trainer  # noqa: F401

        if config.trainer.device == "cpu":
            import soup_verl.cpu.training  # noqa: F401
        for module in filter(None, os.environ.get("SOUP_IMPORT", "").split(",")):
            importlib.import_module(module)
        with end_when_a_process_dies():
            super().run(config)


class SeriesTaskRunner(SoupTaskRunner):
    """The run it is given, then `further` ones on its processes."""

    trainer: Any

    def __init__(self, further: Sequence[DictConfig]):
        super().__init__()
        self._further = further

    def init_agent_loop_manager(self) -> None:
        super().init_agent_loop_manager()
        self.trainer = Series(self.trainer, self._further)


def series_task_runner(further: Sequence[DictConfig]) -> Any:
    """What verl's `run_ppo` takes for a Ray actor class: its `remote()` makes a SeriesTaskRunner."""
    return SimpleNamespace(remote=partial(ray.remote(SeriesTaskRunner).remote, further))


def _show_our_log() -> None:
    """verl shows its own logger only; show ours in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    logger = logging.getLogger("soup_verl")
    logger.handlers = [handler]
    logger.setLevel(os.getenv("SOUP_LOGGING_LEVEL", "INFO"))
    logger.propagate = False
