"""The sandbox: what is left of a program, what it takes to be shut in, and a program of every hostile family."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soup_verl.tasks.code import sandbox
from soup_verl.tasks.code.sandbox import Ended, Limits, Refused, Sandbox
from tests.faults.hostile_programs import World, one_of_each
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES, below, harmless, sandboxes, shoot

pytestmark = NEEDS_NAMESPACES
ROOT = Path(__file__).parents[4]


def can_be_read_by_others() -> bool:
    try:
        sandbox._check_readable()
    except Refused:
        return os.geteuid() != 0
    return True


LIMITS_ALONE = pytest.param("limits", marks=pytest.mark.skipif(not can_be_read_by_others(), reason="Python is root's"))
ISOLATIONS = ["required", LIMITS_ALONE]
SHORT = Limits(cpu_s=1, wall_s=60.0)


def test_each_input_meets_a_fresh_program_in_a_folder_of_its_own():
    with Sandbox("import os\nprint(input(), os.getpid() > 1)\nx = 1", "stdin", SHORT) as one:
        assert (one.run("a\n"), one.run("b\n")) == (Ended("", "a True\n"), Ended("", "b True\n"))


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_ends_a_program_comes_to(isolation):
    for text, end in (("1 / 0", "crashed"), ("input()", "crashed"), ("while 1: pass", "timeout"), ("", "")):
        with Sandbox(text, "stdin", SHORT, isolation) as one:
            assert one.run("").end == end, text


def test_where_namespaces_are_refused_that_is_said_and_nothing_is_run(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    own = Path(sandbox.__file__).parent
    text = (own / "jail.py").read_text().replace("kernel.enter_namespaces()", "raise OSError(1, 'unshare: no')")
    jail.write_text(text.replace("os.path.dirname(os.path.abspath(__file__))", repr(str(own))))
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    monkeypatch.setattr(sandbox, "_shared", None)
    try:
        with pytest.raises(Refused, match=r"isolation='required': this machine refuses namespaces \(unshare: no\)"):
            Sandbox("open('/tmp/ran', 'w')", "stdin", SHORT).__enter__()
    finally:
        sandbox._server().close()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_nothing_that_a_program_leaves_behind_stays(isolation, tmp_path):
    leaving = "import os, time\nfor _ in range(2):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(99)"
    with Sandbox(leaving, "stdin", SHORT, isolation) as one:
        assert one.run("").end == ""
        assert sandboxes() == 3, "server, keeper and init: the program's processes ended with it"
    assert sandboxes() == 1
    assert not list(Path("/tmp").glob("soup-program-*"))


@pytest.mark.skipif(can_be_read_by_others(), reason="needs a Python that only root can read")
def test_limits_alone_are_refused_to_root_where_another_user_could_not_import_anything():
    with pytest.raises(Refused, match="isolation='limits' as root: programs run as another user, who cannot read /"):
        Sandbox("print(1)", "stdin", SHORT, "limits").__enter__()


def test_a_program_ends_with_its_block_whatever_it_does():
    with Sandbox("while True: pass", "stdin", Limits(cpu_s=60, wall_s=60.0)) as one:
        one._socket.sendall(struct.pack("I", 13) + b'{"input": ""}')
        while sandboxes() < 4:  # server, keeper, init, and the program
            time.sleep(0.01)
    assert sandboxes() == 1


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("socket(2, 1, 0)", errno.EPERM),
        ("socket(1, 1, 0)", errno.EPERM),
        ("kill(0, 0)", errno.EPERM),
        ("ptrace(0, 0, 0, 0)", errno.EPERM),
        ("unshare(0x10000000)", errno.EPERM),
        ("syscall(56 if x86 else 220, 0x10000011, 0, 0, 0, 0)", errno.EPERM),
        ("syscall(435, 0, 0)", errno.ENOSYS),
        ("shmget(0, 4096, 0o1600)", errno.EPERM),
        ("memfd_create(b'x', 0)", errno.EPERM),
        ("syscall(0x40000000 + 39 if x86 else 198, 2, 1, 0)", errno.EPERM),
        ("getpid() * 0", 0),
    ],
)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_system_calls_that_reach_beyond_a_program_are_refused(isolation, call, number):
    text = f"""
        import ctypes, os
        x86 = os.uname().machine == "x86_64"
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.{call}, ctypes.get_errno())
    """
    with Sandbox(textwrap.dedent(text), "stdin", SHORT, isolation) as one:
        assert one.run("") == Ended("", f"{-1 if number else 0} {number}\n")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_no_network(isolation):
    server = socket.create_server(("127.0.0.1", 0))
    text = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
    with Sandbox(text, "stdin", SHORT, isolation) as one:
        assert one.run("").end == "crashed"
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_when_the_caller_is_killed_its_programs_end():
    text = """
        from soup_verl.tasks.code.sandbox import Limits, Sandbox
        with Sandbox("import time\\nprint(1, flush=True)\\ntime.sleep(99)", "stdin", Limits(wall_s=99.0)) as one:
            print("ready", flush=True)
            one.run("")
    """
    command = [sys.executable, "-c", textwrap.dedent(text)]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert caller.stdout.readline() == b"ready\n"
    started = below(caller.pid)
    assert len(started) >= 3  # server, keeper, init
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "a sandbox outlived its caller"
        time.sleep(0.02)


def test_threads_share_as_many_programs_as_there_are_slots(monkeypatch):
    def run(i):
        with Sandbox("print(int(input()) + 1)", "stdin", Limits()) as one:
            return one.run(str(i)).output

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, range(12))) == [f"{i + 1}\n" for i in range(12)]


def test_one_program_of_every_hostile_family_costs_its_limit_and_nothing_else(tmp_path):
    with harmless(tmp_path) as world:
        quick = [p for p in one_of_each(world) if not any(w in p.name for w in ("for ever", "threads", "waiting"))]
        assert isinstance(world, World) and len(quick) > 40
        assert shoot(quick) == []
