"""Train a sweep's runs on this machine, in series: runs in a row share processes where one set can serve them."""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from soup_verl.launch import run as single
from soup_verl.launch import stalls
from soup_verl.launch.apart import Apart
from soup_verl.launch.finished import is_finished
from soup_verl.launch.series import can_share, check_together, run_series
from soup_verl.launch.stalls import StallWatch
from soup_verl.method.sections import StallMinutesConfig
from soup_verl.sweeping import SweepError, say, states

LOCK, LOG = ".lock", "log.txt"
"""In the sweep's folder."""
PERIOD = 0.5
"""Seconds between two looks at the runs."""

Configs = Mapping[str, DictConfig]
"""Run's name -> its configuration, in order."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else trains the sweep in this folder meanwhile, and it can be written to.

    Raises:
        SweepError: somebody does.
        OSError: it cannot.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"{out}: a sweep is under way there. Wait for its end, or give another out.") from None
        yield


def check(configs: Configs) -> None:
    """What can be seen before anything starts: runs that can be in one series, settings and files that can work.

    Raises:
        ConfigError, SweepError: names the run where it is one's.
    """
    check_together(list(configs.values()))
    for name, config in configs.items():
        if not is_finished(config):
            try:
                single.check(config)
            except ValueError as error:
                raise SweepError(f"{name}: {error}") from None


def train(configs: Configs, log: Path, begin: Callable[[Sequence[DictConfig]], object] = run_series) -> list[str]:
    """Train every run that has not finished, in order. One that fails is left out, and the others go on without it.

    Args:
        log: takes what the runs write.
        begin: trains configurations one after the other, and ends with the first that fails.

    Returns:
        The names of those that failed.
    """
    failed: list[str] = []
    while todo := {name: c for name, c in configs.items() if name not in failed and not is_finished(c)}:
        stack = in_a_row(todo)
        before = states.errors(stack)
        for config in stack.values():  # what an earlier call left
            (Path(config.trainer.default_local_dir) / stalls.FILE).unlink(missing_ok=True)
        with Apart(partial(begin, list(stack.values())), log) as process:
            code = _follow(process, stack, configs)
        if left := [name for name, config in stack.items() if not is_finished(config)]:
            after = states.errors(stack)
            failed.append(next((name for name in left if after[name] != before[name]), left[0]))
            say(f"{failed[-1]} failed{_how(code)}: {states.of(Path(stack[failed[-1]].trainer.default_local_dir))}")
    return failed


def in_a_row(configs: Configs) -> Configs:
    """The first runs that one set of processes can serve. Not those after them: the order is seed by seed."""
    (_, first), *_ = configs.items()
    return dict(itertools.takewhile(lambda item: item[1] is first or can_share(first, item[1]), configs.items()))


def _follow(process: Apart, stack: Configs, configs: Configs) -> int | None:
    """Say which run is under way, until the process ends or the run does not move on; the process's exit code."""
    names, said = list(configs), None
    while process.running(PERIOD):
        now = next((name for name, config in stack.items() if not is_finished(config)), said)
        if now is None:
            continue
        folder = Path(stack[now].trainer.default_local_dir)
        if now != said:
            say(f"run {names.index(now) + 1} of {len(names)}: {now}")
            said, watch = now, StallWatch(folder)
        if stall := watch.stalled(partial(_stall_minutes, stack[now])):
            error = f"RunStalled: {stall}; {process.write_stacks(folder)}\n"
            with suppress(OSError):  # as on a full disk
                if not is_finished(stack[now]):
                    (folder / single.ERROR_FILE).write_text(error)
            break
    return process.code


def _stall_minutes(config: DictConfig) -> StallMinutesConfig:
    return single.soup_section(config).stall_minutes


def _how(code: int | None) -> str:
    return f" (its process ended by signal {-code})" if code and code < 0 else ""
