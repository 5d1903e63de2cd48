"""Hostile programs against the sandbox, and whether anything but their own score suffered."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soup_verl.tasks.code import judge, sandbox
from soup_verl.tasks.code.gold import read_tests
from soup_verl.tasks.code.sandbox import Limits
from tests.faults.hostile_programs import GOLDS, Program, World

LIMITS = Limits(cpu_s=1, wall_s=1.0, memory=256 << 20)
AT_ONCE = 6


def _refusal() -> str:
    try:
        with sandbox.Sandbox("", "stdin", LIMITS):
            return ""
    except sandbox.Refused as error:
        return str(error)


REFUSED = _refusal()
"""Why this machine runs no program in namespaces; empty if it does."""
NEEDS_NAMESPACES = pytest.mark.skipif(bool(REFUSED), reason=REFUSED)
"""For tests that run programs in namespaces, which a container may refuse."""
MUST_RUN = os.environ.get("SOUP_SANDBOX_TESTS") == "required"
"""Whether such a refusal is a failure; scripts/check.sh --all wants that."""


def sandboxes() -> int:
    """Processes of sandboxes that this process has: the server, and a keeper, an init and more a program."""
    return sum(b"tasks/code/jail.py" in _command(pid) for pid in below(os.getpid()))


def below(pid: int) -> list[int]:
    """The processes that descend from another."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *below(child)]
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def harmless(folder: Path) -> Iterator[World]:
    """A world to attack; afterwards nothing in it may have changed."""
    canary, empty = folder / "canary", folder / "empty"
    canary.write_text("SECRET_OUT\n")
    empty.mkdir()
    listening = socket.create_server(("127.0.0.1", 0))
    visitors: list[str] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = listening.accept()
                visitors.append(str(address))
                with connection:
                    connection.sendall(b"SECRET_OUT")

    threading.Thread(target=serve, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUP_SECRET", "SECRET_OUT")
        patch.setattr(sandbox, "_at_once", threading.BoundedSemaphore(AT_ONCE))
        before = _state()
        yield World(canary, empty, listening.getsockname()[1], os.getpid())
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        assert _state() == before
    assert visitors == [] and canary.read_text() == "SECRET_OUT\n" and list(empty.iterdir()) == []


def _state() -> dict[str, object]:
    """What programs must leave as it was; the server of the sandboxes stays."""
    with sandbox.Sandbox("", "stdin", LIMITS):
        pass
    return {
        "sandboxes": sandboxes(),
        "mounts": Path("/proc/self/mounts").read_text(),
        "files": sorted(path.name for path in Path("/tmp").glob("soup-program-*")),
    }


def shoot(programs: Sequence[Program]) -> list[str]:
    """Names of the programs that were given a point, or after whose run an honest one was not."""

    def fire(program: Program) -> str:
        verdict = judge(
            program.text,
            read_tests(GOLDS[program.style]),
            LIMITS,
            "required",
            max_tests=9,
            every=program.style == "assert",
        )
        return f"{program.name}: {verdict}" if verdict.passed else ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        scored = [told for told in pool.map(fire, programs) if told]
    with sandbox.Sandbox("print(input())", "stdin", Limits()) as honest:
        return scored if honest.run("still here").output == "still here\n" else [*scored, "an honest program failed"]
