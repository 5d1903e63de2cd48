"""verl's task runner, with our trainers registered before it looks one up; it may go on with further runs."""

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
from omegaconf import DictConfig, OmegaConf
from verl.trainer.main_ppo import TaskRunnerV1

from soup_verl.launch import stacks, stalls
from soup_verl.launch.finished import end_where_the_epochs_do, mark_finished
from soup_verl.launch.watch import end_when_a_process_dies
from soup_verl.records import run_log

_TaskRunner: Any = TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__

HAVE_A_CPU_TRAINER = ("soup", "soup_colocate_async", "soup_separate_async")
"""Names of trainers that have a counterpart on the CPU, so that an example can name its trainer for both platforms."""


def take_the_platforms_trainer(config: DictConfig) -> None:
    """On a CPU, the counterpart of the trainer that `config` names."""
    if config.trainer.device == "cpu" and config.trainer.v1.trainer_mode in HAVE_A_CPU_TRAINER:
        config.trainer.v1.trainer_mode += "_cpu"


class SoupTaskRunner(_TaskRunner):
    """The run it is given, then `further` ones on its processes."""

    trainer: Any

    def __init__(self, further: Sequence[DictConfig] = ()):
        super().__init__()
        self._further = further

    def run(self, config: DictConfig) -> None:
        """Register our trainers (on a CPU those for it, too), import the modules in SOUP_IMPORT, then run.

        With verl's `file` logger the metrics go to `metrics.jsonl` in `trainer.default_local_dir`, unless
        VERL_FILE_LOGGER_PATH says otherwise.
        """
        _show_our_log()
        if "VERL_FILE_LOGGER_PATH" not in os.environ:
            run_log.open_in(Path(config.trainer.default_local_dir).absolute())

        import soup_verl.stack.inflight_trainer  # noqa: F401

        if config.trainer.device == "cpu":
            import soup_verl.stack.cpu.training  # noqa: F401
        take_the_platforms_trainer(config)
        for module in filter(None, os.environ.get("SOUP_IMPORT", "").split(",")):
            importlib.import_module(module)
        with end_when_a_process_dies():
            super().run(config)

    def init_agent_loop_manager(self) -> None:
        super().init_agent_loop_manager()
        end_where_the_epochs_do(self.trainer)
        self.trainer = Series(self.trainer, self._further)


class Series:
    """Stands in for the trainer in verl's task runner; notes of each run that it came to its end.

    Args:
        first: the trainer of the first run, set up.
        further: configurations of the runs after it; mostly none.
    """

    def __init__(self, first: Any, further: Sequence[DictConfig]):
        self.trainer = first
        self._further = further

    @property
    def logger(self) -> Any:
        """Of the run under way."""
        return getattr(self.trainer, "logger", None)

    def fit(self, manager: Any) -> None:
        first = self.trainer
        self._fit(manager)
        for config in self._further:
            self.logger.finish(exit_code=0)
            OmegaConf.resolve(config)
            run_log.open_in(Path(config.trainer.default_local_dir))
            stalls.begin(config)
            self.trainer = on_processes_of(first, config)
            self.trainer.init()
            end_where_the_epochs_do(self.trainer)
            manager.take_up(config)
            self._fit(manager)

    def _fit(self, manager: Any) -> None:
        if stacks.RUN in os.environ:  # somebody looks
            stalls.report_stages(self.trainer, Path(self.trainer.config.trainer.default_local_dir).absolute())
        self.trainer.fit(manager)
        mark_finished(self.trainer)


_OF_THE_PROCESSES = (
    "actor_rollout_wg",
    "checkpoint_manager",
    "distillation_config",
    "llm_server_manager",
    "ref_in_actor",
    "ref_policy_wg",
    "resource_pool_manager",
    "reward_loop_manager",
    "teacher_model_manager",
)
"""What verl's `PPOTrainer._setup` starts."""


def on_processes_of(first: Any, config: DictConfig) -> Any:
    """A trainer of the class that `config` asks for, on the workers and engines of another."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    class OnProcesses(get_trainer_cls(config.trainer.v1.trainer_mode)):  # type: ignore[misc]
        def _setup(self) -> None:
            self._init_tokenizer()
            self._init_dataloader()
            self._init_dump_executor()
            for name in _OF_THE_PROCESSES:
                if hasattr(first, name):
                    setattr(self, name, getattr(first, name))
            self.actor_rollout_wg.start_anew(self.config.actor_rollout_ref)
            self.checkpoint_manager.sleep_replicas()
            self._load_checkpoint()

    return OnProcesses(config)


def task_runner(further: Sequence[DictConfig]) -> Any:
    """What verl's `run_ppo` takes for a Ray actor class: its `remote()` makes a SoupTaskRunner."""
    return SimpleNamespace(remote=partial(ray.remote(SoupTaskRunner).remote, further))


def _show_our_log() -> None:
    """verl shows its own logger only; show ours in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    logger = logging.getLogger("soup_verl")
    logger.handlers = [handler]
    logger.setLevel(os.getenv("SOUP_LOGGING_LEVEL", "INFO"))
    logger.propagate = False
