"""A run in a process of its own, and another that looks after it: ends it when it does not move on, and starts it again
when it died or stalled.

    main_soup = supervisor ── fork ──► driver ──► Ray, and in it the task runner, which says where it is (stalls.py)
        ▲  StallWatch                                                                              │
        └────────────────────────────── progress.json ◄────────────────────────────────────────────┘

The supervisor computes nothing and starts nothing else, so that it can fork again and again. When it dies, so does the
driver, and with it what the driver started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from soup_verl.launch import run, stalls
from soup_verl.launch.finished import FINISHED, is_finished
from soup_verl.launch.preflight.provenance import RUN_FILE
from soup_verl.launch.stacks import ProcessTree
from soup_verl.launch.stalls import StallWatch
from soup_verl.method.config import SoupConfig
from soup_verl.records.files import write_json
from soup_verl.stack import checkpoint

PERIOD = 0.5
"""Seconds between two looks."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds before a restart: they double from one to the next, unless the run has made a checkpoint since."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM)
REPORTED = 4
"""The driver's own exit code for an error that it has reported and that a restart would only repeat."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: `lost` is what to say of a death or a stall, None if it was neither. The code is 0 if that
    came when the run had finished."""

    code: int
    lost: str | None = None


def run_supervised(config: DictConfig) -> None:
    """`run.run` in a process of its own, again after a death or a stall as often as `soup.restarts` allows."""
    supervisor = Supervisor(config)
    code = supervisor.run()
    if code:
        sys.exit(code)


class Supervisor:
    def __init__(self, config: DictConfig):
        self._config, self._folder = config, Path(config.trainer.default_local_dir).absolute()
        self._driver: int | None = None
        self._stopped_by: int | None = None  # a signal of the user's, or of a queue's
        self._watch = StallWatch(self._folder)  # of the attempt under way
        self._began = time.time()
        self._pause_next, self._newest = FIRST_PAUSE, checkpoint.newest_step(self._folder) or 0

    @cached_property
    def _soup(self) -> SoupConfig:
        return run.soup_section(self._config)

    def run(self) -> int:
        """The exit code."""
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        restarts, stepped = 0, False
        while self._stopped_by is None:
            self._watch = StallWatch(self._folder)
            ended = self._attempt(again=restarts > 0)
            lost = ended.lost
            if ended.code and stepped and not self._watch.stepped:  # what was there before will be there again
                lost = lost or f"RestartFailed: {self._said()}"
            stepped |= self._watch.stepped
            # Before its first step a run would fail again: what it needs is not there.
            if lost is None or not ended.code or not stepped or restarts == self._soup.restarts:
                return 128 + self._stopped_by if ended.code and self._stopped_by else ended.code
            if self._stopped_by is None:
                restarts += 1
                self._pause(restarts, lost)
        return 128 + self._stopped_by

    def _pass_on(self, number: int, frame: Any) -> None:
        self._stopped_by = number
        if self._driver is not None:
            with suppress(ProcessLookupError):
                os.kill(self._driver, number)

    def _attempt(self, *, again: bool) -> Ended:
        with suppress(OSError):
            (self._folder / stalls.FILE).unlink()
        tree = ProcessTree()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal waits until there is a driver to pass it on to, and the driver takes it as its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        driver = os.fork()
        if driver == 0:
            self._be_the_driver(tree, again)
        self._driver, ended = driver, None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        try:
            ended = self._wait(driver, tree)
        finally:
            self._driver = None
            tree.close(end=ended is None or ended.code != 0 or ended.lost is not None)
        return ended

    def _be_the_driver(self, tree: ProcessTree, again: bool) -> None:
        """In the forked process; does not return."""
        tree.begin()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        try:
            run.use_platform(self._config)
            if again:
                self._resume()
            else:
                run.prepare(self._config)
            if not self._config.soup.preflight_only:
                stalls.begin(self._config)
                run.train(self._config)
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:  # Ray makes an exit of it
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            sys.exit(ended.code if ended.code in (None, 0, run.DIED) else REPORTED)
        sys.exit(0)

    def _resume(self) -> None:
        """From the run's own newest checkpoint, whatever it began from; without one it begins as before."""
        if self._wrote(checkpoint.NEWEST):
            self._config.trainer.resume_mode = "auto"

    def _wrote(self, name: str) -> bool:
        """Whether a file in the run's folder is of this run, not of one before it."""
        file = self._folder / name
        return file.exists() and file.stat().st_mtime > self._began

    def _wait(self, driver: int, tree: ProcessTree) -> Ended:
        while True:
            ended, status = os.waitpid(driver, os.WNOHANG)
            if ended:
                return self._ended(driver, os.waitstatus_to_exitcode(status))
            stall = self._watch.stalled(lambda: self._soup.stall_minutes)
            if stall and self._stopped_by is None:
                return self._end_stalled(stall, driver, tree)
            time.sleep(PERIOD)

    def _ended(self, driver: int, code: int) -> Ended:
        if code in (0, REPORTED):
            return Ended(min(code, 1))
        if code == run.DIED:  # it has said so itself
            return self._lost(self._said(), told=True)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code} and without a word"
        return self._lost(f"RunDied: the driver (process {driver}) ended {how}")

    def _said(self) -> str:
        """The error that the driver has reported."""
        try:
            kind, _, said = (self._folder / run.ERROR_FILE).read_text().strip().splitlines()[-1].partition(": ")
        except (OSError, ValueError, IndexError) as error:
            return f"{run.ERROR_FILE} cannot be read: {error}"
        return f"{kind.rpartition('.')[2]}: {said}"

    def _end_stalled(self, stall: str, driver: int, tree: ProcessTree) -> Ended:
        found = tree.write_stacks(driver, self._folder)
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        return self._lost(f"RunStalled: {stall}; {found}")

    def _lost(self, line: str, *, told: bool = False) -> Ended:
        """A death or a stall; `told` if the driver has reported it. The task runner notes the run's end when verl has
        returned, behind the last checkpoint and the last metrics: nothing of the run is lost from there on."""
        if self._wrote(FINISHED) and is_finished(self._config):
            sys.stderr.write(f"soup: the run had finished, its files are whole; then {line}. It is left so\n")
            return Ended(0, line)
        if self._stopped_by is None and not told:
            sys.stderr.write(f"error: {line}\n")
        return Ended(1, line)

    def _pause(self, number: int, lost: str) -> None:
        step = checkpoint.newest_step(self._folder) or 0
        pause = FIRST_PAUSE if step > self._newest else self._pause_next
        self._newest, self._pause_next = step, min(2 * pause, LONGEST_PAUSE)
        sys.stderr.write(f"soup: restart {number} of {self._soup.restarts} in {pause:.0f} s from step {step}\n")
        sys.stderr.flush()
        self._note({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "after": lost, "newest_checkpoint": step})
        deadline = time.monotonic() + pause
        while self._stopped_by is None and time.monotonic() < deadline:
            time.sleep(PERIOD)

    def _note(self, restart: dict[str, Any]) -> None:
        file = self._folder / RUN_FILE
        try:
            said = json.loads(file.read_text())
            said.setdefault("restarts", []).append(restart)
            write_json(file, said)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"soup: {file} does not say so: {error}\n")
