"""The process behind a pool of `killable.py`, which is the place to read first: it forks, and kills, what answers.

A script of its own imports what its answers need and calls `run_as_script`. It then only forks: every fork answers one
request at a time on its own socket, under a memory limit, until it is killed or its socket closes. This first process
never looks at a request, so it always has time to fork and kill.

    parent ──control──► this process: "fork" + a socket -> pid;  "kill <pid>" -> done
    parent ──socket───► a fork: a request as a JSON line -> {"verdict": ...} or {"error": "..."}

Every line is JSON or a plain word; nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
"""From a request to the verdict on it, a value that JSON has. What it raises is an `unparsed` request."""
_PR_SET_PDEATHSIG = 1


def serve(connection: socket.socket, answer: Answer) -> None:
    """Answer requests until the socket closes."""
    with connection.makefile("rwb") as stream:
        for line in stream:
            reply: dict[str, Any]
            try:
                reply = {"verdict": answer(json.loads(line))}
            except MemoryError:
                reply = {"error": "memory"}
            except Exception:  # whatever a parser does with hostile text, it is no answer
                reply = {"error": "unparsed"}
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()
            if reply.get("error") == "memory":
                return  # what is left of the heap is not to be trusted


def limit_resources(memory_bytes: int) -> None:
    """From here on: no more memory than `memory_bytes` on top of what is mapped, no files, no core dump."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fork(connection: socket.socket, control: socket.socket, answer: Answer, memory_bytes: int) -> int:
    """Fork a process that serves `connection`; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        limit_resources(memory_bytes)
        serve(connection, answer)
    finally:
        os._exit(0)  # never back into this process's loop


def run(control: socket.socket, answer: Answer, memory_bytes: int) -> None:
    """Fork and kill on request until the parent is gone. Forks die with this process."""
    parent = os.getppid()
    children: set[int] = set()
    while os.getppid() == parent:
        if not select.select([control], [], [], 2.0)[0]:
            continue  # another process may hold the parent's end open: look whether the parent still lives
        message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            return
        words = message.decode().split()
        if words[0] == "fork":
            with socket.socket(fileno=descriptors[0]) as connection:
                pid = fork(connection, control, answer, memory_bytes)
            children.add(pid)
            control.send(f"{pid}".encode())
        else:
            pid = int(words[1])
            if pid in children:  # not one of a predecessor's
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                children.remove(pid)
            control.send(b"killed")


def run_as_script(answer: Answer, warm_up: Callable[[], None]) -> None:
    """`SCRIPT CONTROL_SOCKET MEMORY_LIMIT`, as `killable.py` starts it; `warm_up` fills what all forks then share."""
    control = socket.socket(fileno=int(sys.argv[1]))
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(2000)
    warm_up()
    control.send(b"ready")
    run(control, answer, memory_bytes=int(sys.argv[2]))
