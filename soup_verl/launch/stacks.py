"""The processes of a run on this machine: their stacks in one file, and their end."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

ANSWERS = "SOUP_STACKS"
"""Names the file to which processes write their stacks."""
RUN = "SOUP_RUN"
"""Marks the processes of one supervised run."""
AT_START = Path(__file__).with_name("at_start")
"""Belongs on the PYTHONPATH of a run's processes."""
ANSWER_LIMIT, END_LIMIT = 2.0, 60.0
"""Seconds a process may take to write its stacks, and all of them to end."""


class ProcessTree:
    """A process that is about to be forked, and whatever it starts: known by a mark in their environment."""

    def __init__(self) -> None:
        self.mark = uuid4().hex
        descriptor, name = tempfile.mkstemp(prefix="soup-stacks-")
        os.close(descriptor)
        self._answers = Path(name)

    def begin(self) -> None:
        """In the forked process: it is killed when its parent ends, takes signals as a new program does, and writes its
        stacks when it is asked, as will every Python process that it starts. A terminal's Ctrl-C reaches the parent,
        which passes it on."""
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ |= {RUN: self.mark, ANSWERS: str(self._answers)}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(AT_START), os.environ.get("PYTHONPATH")]))
        faulthandler.register(signal.SIGUSR2, file=self._answers.open("a"), all_threads=True)

    def write_stacks(self, first: int, folder: Path) -> str:
        """The stacks of its processes, beginning with `first`, in the next `stacks.N.txt` of a folder; what to say of
        it."""
        processes = [first, *sorted(set(processes_with(f"{RUN}={self.mark}")) - {first})]
        file = folder / f"stacks.{len(list(folder.glob('stacks.*.txt'))) + 1}.txt"
        try:
            write_stacks(processes, self._answers, file)
        except OSError as error:
            return f"no stacks in {file}: {error.strerror}"
        return f"the stacks of its {len(processes)} processes here: {file}"

    def close(self, *, end: bool) -> None:
        """The process has ended; with `end` so does whatever it started."""
        if end:
            end_all(f"{RUN}={self.mark}")
        self._answers.unlink(missing_ok=True)


def processes_with(variable: str) -> list[int]:
    """Ids of the processes in whose environment `NAME=value` stands, this one left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return [process for process in found if process != os.getpid()]


def write_stacks(processes: Sequence[int], answers: Path, file: Path) -> None:
    """Ask one after the other; a stopped process is continued for its answer. What is no Python is named."""
    with file.open("w") as out:
        for process in processes:
            state = _status(process)
            command = _read(process, "cmdline").replace("\0", " ").strip()
            if not state or not command:  # it has ended
                continue
            out.write(f"==== process {process} ({state['State']}): {command[:200]}\n")
            out.write((_asked(process, answers) if _listens(state) else "not a Python process of this run") + "\n\n")
            if state["State"].startswith("T"):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)


def end_all(variable: str) -> None:
    """SIGKILL, which a stopped process obeys too, to whatever has `NAME=value` in its environment, until nothing has,
    or for `END_LIMIT`."""
    deadline = time.monotonic() + END_LIMIT
    while (left := processes_with(variable)) and time.monotonic() < deadline:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def _asked(process: int, answers: Path) -> str:
    before = seen = answers.stat().st_size
    try:
        os.kill(process, signal.SIGUSR2)
        os.kill(process, signal.SIGCONT)
    except ProcessLookupError:
        return "it has ended"
    deadline = time.monotonic() + ANSWER_LIMIT
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = answers.stat().st_size
        if now == seen and now > before:
            break
        seen = now
    said = answers.read_bytes()[before:].decode(errors="replace")
    return said.rstrip() or f"no answer within {ANSWER_LIMIT:.0f} s: in the kernel, or on its way out"


def _listens(status: dict[str, str]) -> bool:
    return bool(int(status.get("SigCgt", "0"), 16) >> (signal.SIGUSR2 - 1) & 1)


def _status(process: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(process, "status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(process: int, name: str) -> str:
    try:
        return (Path("/proc") / str(process) / name).read_text(errors="replace")
    except OSError:
        return ""
