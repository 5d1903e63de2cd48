"""Several runs, one after the other, on the processes of the first: starting verl, vLLM and Ray costs a minute or more
a run, and here it is paid once.

    run_series           checks and preflights every run, then starts processes for those that can share them
      SoupTaskRunner     verl's task runner (task_runner.py); what it fits is a Series
        Series.fit       the first run as it would be alone; each further one with its own trainer on the same workers

A run in a series trains as it would alone: initial weights, a new optimizer, its own data, history, folder and log.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf

from soup_verl.launch import run as single
from soup_verl.launch import stalls
from soup_verl.launch.finished import is_finished
from soup_verl.method.checks import ConfigError, require
from soup_verl.records.settings import flatten, setting_of

MANAGER = "soup_verl.stack.rollout.SoupAgentLoopManager"
"""The agent loop manager that can take up another run's settings."""


def run_series(configs: Sequence[DictConfig]) -> None:
    """Train every run that has not finished yet, in this order; a failure ends the series as it would end the run.

    Args:
        configs: composed configurations, each with a `trainer.default_local_dir` of its own, all for one platform.
    """
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
        stalls.begin(stack[0])
        single.train(stack[0], further=stack[1:])


def check_together(configs: Sequence[DictConfig]) -> None:
    """What must hold of runs in one series, whichever of them have finished.

    Raises:
        ConfigError: two runs have one folder, or a run (named by its folder) asks for another platform than the first:
            the processes of a series inherit one; or it is to be started again by itself.
    """
    device_of: dict[str, str] = {}
    for folder, device in ((config.trainer.default_local_dir, config.trainer.device) for config in configs):
        require(folder not in device_of, "trainer.default_local_dir", folder, "a folder of its own for every run")
        device_of[folder] = device
        first, its = next(iter(device_of.items()))
        expected = f"{its!r} in {folder!r}, as in {first!r}: the runs of a series have one platform"
        require(device == its, "trainer.device", device, expected, "Start a series for each.")
    for config in configs:
        restarts = OmegaConf.select(config, "soup.restarts", default=0)
        remedy = "Start the same command again: it goes on where it was."
        require(restarts == 0, "soup.restarts", restarts, "0 in a series, which nothing supervises", remedy)


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
    if "_async" in a.trainer.v1.trainer_mode:  # a run ends with responses under way
        return False
    of_a, of_b = (flatten(OmegaConf.to_container(c, resolve=True)) for c in (a, b))
    changed = (key for key in of_a.keys() | of_b.keys() if of_a.get(key) != of_b.get(key))
    return all(setting_of(key).taken_up for key in changed)
