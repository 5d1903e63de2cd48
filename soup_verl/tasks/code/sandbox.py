"""Programs run where they can reach nothing: the caller's side. What is done there: `jail.py`, `kernel.py`.

    with Sandbox(program, "stdin", limits, isolation) as sandbox:
        sandbox.run("1 2\\n")  ->  Ended("", "3\\n")

Isolation `required`: namespaces of Linux (processes, mounts, network, IPC, users where the caller is not root), a file
system in memory that ends with the program, no privileges, no environment, a filter of system calls, limits. Where the
machine allows no namespaces that is refused. `limits`, to be asked for by name: all of it but the namespaces.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.tasks.code import remote

ISOLATIONS = ("required", "limits")
_JAIL = Path(__file__).with_name("jail.py")
_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
START_LIMIT_S = 60.0  # for an interpreter to start, on a machine that may be busy
GRACE_S = 10.0
OWN_PROCESSES = 4  # that count beside the program's: keeper, init, tests, the program itself


class Refused(ValueError):
    """The machine does not allow the isolation that is asked for."""


@dataclass(frozen=True)
class Limits:
    """Of one program.

    Args:
        cpu_s: seconds of processor time of a process, for one input, or for all asserts together.
        wall_s: the same by the clock.
        memory: bytes of address space a process.
        processes: processes and threads that it may add to its first.
        file_size, files: bytes of a file, and of all files together.
        output: bytes of standard output that are read.
    """

    cpu_s: int = 5
    wall_s: float = 15.0
    memory: int = 1 << 30
    processes: int = 4
    file_size: int = 16 << 20
    files: int = 64 << 20
    output: int = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a program ended: "", "crashed", "timeout" or "output" (too much); and what it wrote."""

    end: str
    output: str = ""


class Sandbox:
    """One program, until the block ends; then no process and no file of it is left.

    Args:
        program: Python text.
        style: "stdin": `run` it on inputs, afresh each time; "assert": `check` its functions once.

    Raises:
        Refused: on entering.
    """

    def __init__(self, program: str, style: str, limits: Limits, isolation: str = "required"):
        self._isolate = isolation == "required"
        self._job: dict[str, Any] = {"program": program, "style": style, "isolate": self._isolate, "uid": _user()}
        self._limits = limits
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Sandbox:
        _slots().acquire()
        try:
            if not self._isolate:
                self._work = tempfile.TemporaryDirectory(prefix="soup-program-")
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._end()
        finally:
            _slots().release()

    def run(self, text: str) -> Ended:
        """The program with `text` as its standard input."""
        reply = self._ask({"input": text})
        return Ended(reply["end"], reply.get("output", ""))

    def check(self, setup: str, tests: Sequence[str], *, every: bool) -> tuple[str, list[bool]]:
        """How it ended, and which of the tests passed, up to the first that failed unless `every` one is asked for."""
        reply = self._ask({"setup": setup, "tests": list(tests), "all": every})
        return reply["end"], reply.get("passed", [])

    def _start(self) -> None:
        self._socket = _server().connect()
        work = None if self._work is None else self._work.name
        if work is not None and self._job["uid"] is not None:
            _check_readable()
            os.chown(work, self._job["uid"], -1)
        visible, path = _visible()
        limits = vars(self._limits) | {"processes": self._most_processes()}
        self._job |= {"limits": limits, "work": work, "visible": visible}
        reply = self._ask(self._job | {"path": ["/site"] if self._isolate else path}, START_LIMIT_S)
        if "refused" in reply:
            raise Refused(
                f"isolation='required': this machine refuses namespaces ({reply['refused']}). Allow them (in a "
                "container: its seccomp profile, or CAP_SYS_ADMIN), or set isolation=limits for programs you trust"
            )

    def _most_processes(self) -> int | None:
        """The kernel counts those of a user, in a namespace of users; none where it would count the caller's too."""
        alone = self._isolate or self._job["uid"] is not None
        return self._limits.processes + OWN_PROCESSES if alone else None

    def _ask(self, message: dict[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """The reply; {"end": "crashed"} where the sandbox itself ended."""
        assert self._socket is not None
        self._socket.settimeout(limit_s or self._limits.wall_s + GRACE_S)
        try:
            return remote.exchange(self._socket, message)
        except (OSError, remote.Gone):
            return {"end": "crashed", "refused": "its process ended"} if limit_s else {"end": "crashed"}

    def _end(self) -> None:
        if self._socket is not None:
            with self._socket, contextlib.suppress(OSError):
                self._socket.settimeout(GRACE_S)
                self._socket.shutdown(socket.SHUT_WR)  # at which all ends
                while self._socket.recv(1 << 16):
                    pass
        if self._work is not None:
            self._work.cleanup()


class _Server:
    """The process that forks sandboxes; this process's death, too, ends it and them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def connect(self) -> socket.socket:
        """A socket to a new sandbox."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._control is not None
            socket.send_fds(self._control, [b"1"], [theirs.fileno()])
        return ours

    def _start(self) -> None:
        self.close()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-X", "utf8", str(_JAIL), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the run
            )

    def close(self) -> None:
        """End it and all that it started."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _user() -> int | None:
    """A user that owns nothing, for a caller that is root: one of its own for every program where there are enough."""
    if os.geteuid() != 0:
        return None
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    most = max(first + count for first, _, count in ranges)
    for first, last in ((1 << 30, 1 << 31), (60_000, 65_000)):
        if most > last:
            return random.SystemRandom().randrange(first, last)
    return None  # root of a container that has no other user


def _check_readable() -> None:
    """Without a root of its own another user must be able to import Python's library. Raises Refused."""
    library = Path(os.__file__).parent
    for folder in (library, *library.parents):
        if not folder.stat().st_mode & 0o001:
            raise Refused(
                f"isolation='limits' as root: programs run as another user, who cannot read {folder}, where Python's "
                "library is. Use a Python that all can read, or isolation=required"
            )


def _visible() -> tuple[list[tuple[str, str]], list[str]]:
    """What a program sees of the machine, as (path, where): Python, its libraries, numpy; and numpy's own place."""
    library = os.path.dirname(os.__file__)
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", os.path.join(sys.base_prefix, "lib"), library]
    visible = [(folder, folder) for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
    visible += [(f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "random", "urandom")]
    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        return visible, []
    packages = Path(found.origin).parents[1]
    names = [name for name in ("numpy", "numpy.libs") if (packages / name).is_dir()]
    return visible + [(str(packages / name), f"/site/{name}") for name in names], [str(packages)]


_lock = threading.Lock()
_at_once: threading.BoundedSemaphore | None = None
_shared: _Server | None = None


def _slots() -> threading.BoundedSemaphore:
    """As many programs at once as this process has processors."""
    global _at_once
    with _lock:
        if _at_once is None:
            _at_once = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))
        return _at_once


def _server() -> _Server:
    """This process's; it starts with the first program."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = _Server()
            atexit.register(_shared.close)
        return _shared


def _forget() -> None:
    """After a fork the parent's threads hold its slots, and its server is not the child's."""
    global _at_once, _shared, _lock
    if _shared is not None:
        atexit.unregister(_shared.close)
    _at_once, _shared, _lock = None, None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
