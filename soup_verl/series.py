"""Several runs, one after the other, on the processes of the first: starting verl, vLLM and Ray costs a minute or more
a run, and here it is paid once.

    run_series           checks and preflights every run, then starts processes for those that can share them
      SeriesTaskRunner   verl's task runner; what it fits is a Series
        Series.fit       the first run as it would be alone; each further one with its own trainer on the same workers

A run in a series trains as it would alone: initial weights, a new optimizer, its own data, history, folder and log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from soup_verl import run_log
from soup_verl.config import ConfigError, require

FINISHED = "finished.json"
"""In the folder of a run that came to its end: the end that its settings ask for, as in `end_asked_for`."""

TAKEN_UP = (
    "soup.",
    "algorithm.",
    "critic.",  # there is none: it repeats the actor's settings
    "distillation.teacher_models.teacher_model.inference.temperature",  # the same; there is no teacher
    "data.seed",
    "data.shuffle",
    "data.train_batch_size",
    "data.train_files",
    "data.val_files",
    "trainer.",
    "actor_rollout_ref.actor.clip_ratio",
    "actor_rollout_ref.actor.data_loader_seed",
    "actor_rollout_ref.actor.entropy_coeff",
    "actor_rollout_ref.actor.kl_loss_",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.loss_scale_factor",
    "actor_rollout_ref.actor.optim.",
    "actor_rollout_ref.actor.policy_loss.",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.rollout_n",
    "actor_rollout_ref.ref.rollout_n",
    "actor_rollout_ref.actor.tis_imp_ratio_cap",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.trace.experiment_name",
    "actor_rollout_ref.rollout.val_kwargs.",
)
"""Settings, by how their names begin, that a running stack can take up. Any other difference needs one of its own."""
FIXED = ("algorithm.use_kl_in_reward", "trainer.device", "trainer.nnodes", "trainer.n_gpus_per_node")
"""Exceptions from `TAKEN_UP`."""
MANAGER = "soup_verl.rollout.SoupAgentLoopManager"
"""The agent loop manager that can take up another run's settings."""


def run_series(configs: Sequence[DictConfig]) -> None:
    """Train every run that has not finished yet, in this order; a failure ends the series as it would end the run.

    Args:
        configs: composed configurations, each with a `trainer.default_local_dir` of its own, all for one platform.
    """
    from soup_verl import run as single

    try:
        check_together(configs)
    except ConfigError as error:
        sys.exit(f"error: {type(error).__name__}: {error}")
    todo = [config for config in configs if not is_finished(config)]
    for config in todo[:1]:
        single.use_platform(config)
    for config in todo:
        single.prepare(config)
    for stack in stacks(todo):
        single.train(stack[0], further=stack[1:])


def check_together(configs: Sequence[DictConfig]) -> None:
    """What must hold of runs in one series, whichever of them have finished.

    Raises:
        ConfigError: two runs have one folder, or a run (named by its folder) asks for another platform than the first:
            the processes of a series inherit one.
    """
    device_of: dict[str, str] = {}
    for folder, device in ((config.trainer.default_local_dir, config.trainer.device) for config in configs):
        require(folder not in device_of, "trainer.default_local_dir", folder, "a folder of its own for every run")
        device_of[folder] = device
        first, its = next(iter(device_of.items()))
        expected = f"{its!r} in {folder!r}, as in {first!r}: the runs of a series have one platform"
        require(device == its, "trainer.device", device, expected, "Start a series for each.")


def is_finished(config: DictConfig) -> bool:
    """Whether the run came to the end that its settings ask for."""
    file = Path(config.trainer.default_local_dir) / FINISHED
    return file.exists() and json.loads(file.read_text()) == end_asked_for(config)


def end_asked_for(config: DictConfig) -> dict[str, int | None]:
    """verl's trainer ends at whichever comes first; without a number of steps (None) the epochs alone decide."""
    return {"steps": config.trainer.total_training_steps, "epochs": config.trainer.total_epochs}


def stacks(configs: Iterable[DictConfig]) -> list[list[DictConfig]]:
    """Runs in order, together where one set of processes can serve them."""
    groups: list[list[DictConfig]] = []
    for config in configs:
        group = next((g for g in groups if can_share(g[0], config)), None)
        if group is None:
            groups.append([config])
        else:
            group.append(config)
    return groups


def can_share(a: DictConfig, b: DictConfig) -> bool:
    """Whether `b` can run on the processes that were started for `a`."""
    rollout = a.actor_rollout_ref.rollout
    if rollout.agent.agent_loop_manager_class != MANAGER or rollout.trace.backend is not None:  # traces have one name
        return False
    changed = differences(*(OmegaConf.to_container(c, resolve=True) for c in (a, b)))
    return all(key.startswith(TAKEN_UP) and not key.startswith(FIXED) for key in changed)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y, f"{path}{key}.")
        elif x != y:
            found.append(f"{path}{key}")
    return found


class Series:
    """Stands in for the trainer in verl's task runner.

    Args:
        first: the trainer of the first run, set up.
        further: configurations of the runs after it.
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
            self.trainer = on_processes_of(first, config)
            self.trainer.init()
            manager.take_up(config)
            self._fit(manager)

    def _fit(self, manager: Any) -> None:
        self.trainer.fit(manager)
        config = self.trainer.config
        file = Path(config.trainer.default_local_dir) / FINISHED
        file.write_text(json.dumps(end_asked_for(config)))


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
