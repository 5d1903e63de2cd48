"""Verdicts on what a model wrote, by libraries that can take for ever, in processes that can be killed.

Sympy can take minutes and gigabytes over twenty characters, and math-verify's own limit is a signal, which works in the
main thread only. Here a check has a limit by the wall clock and one on memory, whatever the thread:

    checks ──► CheckPool ──► an idle worker, or a new fork (milliseconds)  ──► verdict
                   │                   └─ out of time: killed, and nobody waits for its successor
                   └──► a script (MATH, PUZZLES): imports the library once, forks and kills workers on request

A hostile text holds up its own caller only: the next check finds, or forks, another worker.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 1 << 30  # bytes a worker may take on top of the imported libraries
MAX_WORKERS = 16  # processes of one pool; idle ones share their memory
CHECKS_A_WORKER = 2000  # then it is replaced: sympy's caches do not pile up
START_LIMIT_S = 120.0  # to import its library, on a machine that may be busy
REPLY_LIMIT_S = 30.0  # to fork or kill, which takes milliseconds
_SLOW_S = 0.25  # a check this old makes way for the others
MATH = Path(__file__).with_name("math_worker.py")
"""Whether two expressions are equal, by math-verify."""
PUZZLES = Path(__file__).with_name("puzzle_worker.py")
"""What reasoning-gym's own scorer gives an answer."""


class CheckFailed(Exception):
    """A check without a verdict. `reason`: `timeout`, `memory` or `unparsed`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class CheckerGone(RuntimeError):
    """The forking process does not start, or ended."""


@dataclass
class Budget:
    """Seconds that the checks of one response may still take. Waiting for a process to start is not counted."""

    left_s: float


@dataclass
class _Worker:
    pid: int
    connection: socket.socket
    checks: int = 0


@dataclass
class _Server:
    """The forking process: one request at a time, each answered within milliseconds."""

    script: Path
    memory_limit: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _process: subprocess.Popen | None = None
    _control: socket.socket | None = None

    def fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                if not self._is_running():
                    self._start()
                return _Worker(int(self._exchange(b"fork", (theirs.fileno(),))), ours)
        except BaseException:
            ours.close()
            raise

    def kill(self, worker: _Worker) -> None:
        worker.connection.close()
        with self._lock:
            # Where the forking process is gone, so are its forks.
            if self._is_running():
                with contextlib.suppress(OSError, CheckerGone):
                    self._exchange(f"kill {worker.pid}".encode())

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _exchange(self, message: bytes, descriptors: tuple[int, ...] = ()) -> bytes:
        assert self._control is not None
        socket.send_fds(self._control, [message], descriptors)
        return self._receive(REPLY_LIMIT_S)

    def _start(self) -> None:
        self._stop()
        # Message boundaries are kept, so a reply is read whole.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                # -P: the script's folder must not become the place where `import config` looks.
                [sys.executable, "-P", str(self.script), str(theirs.fileno()), str(self.memory_limit)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the run, which then closes the control socket
            )
        self._receive(START_LIMIT_S)

    def _receive(self, limit_s: float) -> bytes:
        assert self._control is not None and self._process is not None
        self._control.settimeout(limit_s)
        try:
            reply = self._control.recv(64)
        except TimeoutError:
            reply = b""
        if not reply:
            self._stop()
            raise CheckerGone(
                f"the answer checker {self.script.name} gave no reply within {limit_s:g} s or ended: its message is "
                f"above. Expected what it imports to work in {sys.executable}"
            )
        return reply

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


class CheckPool:
    """Checks from any number of threads.

    Args:
        script: what answers, see `fork_server.run_as_script`.
        memory_limit: bytes a worker may take on top of the imported libraries.
        max_workers: processes at most; a check that finds all of them busy waits until one is free, at most as long as
            their limits, and that is not taken off its own.
    """

    def __init__(self, script: Path = MATH, *, memory_limit: int = MEMORY_LIMIT, max_workers: int = MAX_WORKERS):
        self._server = _Server(script, memory_limit)
        self._idle: list[_Worker] = []
        self._slots = threading.BoundedSemaphore(max_workers)

    def check(self, request: dict[str, Any], budget: Budget) -> Any:
        """The verdict on `request` (see the script's `answer`); what it takes is taken off `budget`.

        Raises:
            CheckFailed: time or memory ran out, or the request cannot be read.
            CheckerGone: the worker process does not start.
        """
        if budget.left_s <= 0:
            raise CheckFailed("timeout")
        with self._slots:
            worker = self._take()
            reply: dict[str, Any] | None = None
            start = time.monotonic()
            try:
                reply = _exchange(worker, request, budget.left_s)
            finally:
                budget.left_s -= time.monotonic() - start
                keep = reply is not None and reply.get("error") != "memory" and worker.checks < CHECKS_A_WORKER
                self._idle.append(worker) if keep else self._server.kill(worker)
        if reply is None:
            raise CheckFailed("timeout")
        if "error" in reply:
            raise CheckFailed(reply["error"])
        return reply["verdict"]

    def close(self) -> None:
        """End every process of the pool. The next check starts anew."""
        while self._idle:
            self._idle.pop().connection.close()
        self._server.close()

    def _take(self) -> _Worker:
        while True:
            try:
                worker = self._idle.pop()  # one thread gets it: list.pop is atomic
            except IndexError:
                return self._server.fork()
            if not _readable(worker.connection, 0.0):
                return worker
            self._server.kill(worker)  # only a closed socket has something to read: it died while idle


def _readable(connection: socket.socket, within_s: float) -> bool:
    poll = select.poll()  # `select` fails where a process has more than 1024 files open
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _exchange(worker: _Worker, request: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
    """The worker's reply; None when time ran out. A worker that died without a word ran out of memory."""
    deadline = time.monotonic() + limit_s
    worker.checks += 1
    try:
        worker.connection.settimeout(limit_s)
        worker.connection.sendall(json.dumps(request).encode() + b"\n")
        if not _readable(worker.connection, min(_SLOW_S, limit_s)):
            os.setpriority(os.PRIO_PROCESS, worker.pid, 10)
        worker.connection.settimeout(max(0.001, deadline - time.monotonic()))
        reply = worker.connection.recv(4096)
    except TimeoutError:
        return None
    except OSError:
        reply = b""
    return json.loads(reply) if reply else {"error": "memory"}


_pools: dict[Path, CheckPool] = {}
_pools_lock = threading.Lock()


def shared_pool(script: Path = MATH) -> CheckPool:
    """This process's pool of a script; its processes start at the first check."""
    with _pools_lock:
        if script not in _pools:
            _pools[script] = CheckPool(script)
        return _pools[script]


@atexit.register
def _close_pools() -> None:
    for pool in _pools.values():
        pool.close()


def _forget_pools() -> None:
    """After a fork the sockets belong to the parent process: the child makes its own."""
    global _pools, _pools_lock
    _pools, _pools_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget_pools)
