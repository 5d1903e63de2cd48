"""The processes of a rehearsal: all of them, Ray's included, carry its folder in their environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from soup_verl.launch.stacks import processes_with

MARK = "SOUP_REHEARSAL"
ELSEWHERE = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "VLLM_PORT",
    "VERL_FILE_LOGGER_PATH",
)
"""Variables that would tie a rehearsal to a cluster, a port or a file of somebody else's."""
PERIOD = 0.2
"""Seconds between two looks at a run."""


class StageFailed(Exception):
    """What is wrong, in one line, and the file that says more."""

    def __init__(self, cause: str, log: Path | None = None):
        super().__init__(" ".join(cause.split()))
        self.log = log


class Processes:
    """Starts commands that belong to the rehearsal in `folder`, and ends what they leave."""

    def __init__(self, folder: Path):
        self._mark = f"{MARK}={folder.absolute()}"

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """The command, under way in a session of its own; its output goes to `log`."""
        kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
        name, _, value = self._mark.partition("=")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            return subprocess.Popen(
                command,
                env=kept | {name: value},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> list[int]:
        return processes_with(self._mark)

    def look(self) -> dict[psutil.Process, str]:
        """Those that run now, with their command lines."""
        found = {}
        for process in map(psutil.Process, self.running()):
            with suppress(psutil.Error):  # it has ended since
                found[process] = " ".join(process.cmdline())
        return found

    def end_all(self) -> None:
        """SIGKILL to whatever runs, until nothing does."""
        while left := self.running():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(PERIOD)


def wait_until(
    seen: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, what: str, limit: float
) -> None:
    """Return as soon as `seen()` is true.

    Raises:
        StageFailed: the process ended, or `limit` seconds passed, without that.
    """
    deadline = time.monotonic() + limit
    while True:
        ended = process.poll() is not None
        if seen():
            return
        if ended:
            raise StageFailed(f"exit code {process.returncode} without {what}: {last_words(log)}", log)
        if time.monotonic() > deadline:
            raise StageFailed(f"no {what} within {limit:.0f} s; last line: {last_words(log)}", log)
        time.sleep(PERIOD)


def last_words(log: Path) -> str:
    """The last line that begins with `error:`, else the last line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")) if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no message"])[-1][:500]
