"""Work in a forked process, with its output in a file, which is ended with whatever it started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from soup_verl.launch.stacks import ProcessTree

GRACE = 60.0
"""Seconds that the work has to end what it started when it is interrupted."""


class Apart:
    """`work()` under way, as a context: what runs of it when the block ends is interrupted, as by Ctrl-C, then killed.
    Within the block SIGTERM is an interrupt, too.

    Fork, so that what is imported here need not be imported again: this process must not have started threads or Ray.

    Args:
        work: its SystemExit is the process's exit code; whatever else it raises makes that 1.
        log: takes what the process and its children write, after what is there.
    """

    def __init__(self, work: Callable[[], object], log: Path):
        self._tree = ProcessTree()
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(work, log))

    def __enter__(self) -> Apart:
        sys.stdout.flush()
        sys.stderr.flush()
        self._process.start()
        self._at_sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running(0) and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGINT)
            self._process.join(GRACE)
            self._process.kill()
            self._process.join()
        signal.signal(signal.SIGTERM, self._at_sigterm)
        self._tree.close(end=bool(self.code))

    def running(self, seconds: float) -> bool:
        """Whether it runs after so many seconds, or has ended before."""
        self._process.join(seconds)
        return self._process.is_alive()

    @property
    def code(self) -> int | None:
        """Its exit code, minus a signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def write_stacks(self, folder: Path) -> str:
        """As `ProcessTree.write_stacks`, its own first."""
        assert self._process.pid is not None, "not started"
        return self._tree.write_stacks(self._process.pid, folder)

    def _run(self, work: Callable[[], object], log: Path) -> None:
        self._tree.begin()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        work()
