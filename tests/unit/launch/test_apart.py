import os
import signal
import subprocess
import sys
import time

import pytest

from soup_verl.launch import stacks
from soup_verl.launch.apart import Apart

LIMIT = 60


def wait_for(seen):
    deadline = time.monotonic() + LIMIT
    while not (found := seen()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def wait_for_the_end(process):
    deadline = time.monotonic() + LIMIT
    while process.running(0.05):
        assert time.monotonic() < deadline


def sleeper(folder, and_then=signal.pause):
    """Starts a process, writes down its id, and goes on."""

    def work():
        started = subprocess.Popen(["sleep", "600"])
        (folder / "partial").write_text(str(started.pid))
        (folder / "partial").rename(folder / "started")
        and_then()

    return work


def is_gone(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"  # nobody of this test's waits for it
    except FileNotFoundError:
        return True


def test_the_output_is_appended_to_the_file_and_the_exit_code_is_the_works(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")

    def work():
        sys.stdout.write("printed\n")
        subprocess.run(["sh", "-c", "echo by a child >&2"], check=True)
        sys.exit(7)

    with Apart(work, log) as process:
        wait_for_the_end(process)
    assert process.code == 7
    assert log.read_text().splitlines() == ["before", "printed", "by a child"]


def test_an_error_is_in_the_file_and_the_exit_code_1(tmp_path):
    with Apart(lambda: 1 / 0, tmp_path / "log.txt") as process:
        wait_for_the_end(process)
    assert process.code == 1 and "ZeroDivisionError" in (tmp_path / "log.txt").read_text()


def test_what_was_started_ends_with_work_that_is_killed(tmp_path):
    with Apart(sleeper(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL)), tmp_path / "log.txt") as process:
        wait_for_the_end(process)
    assert process.code == -signal.SIGKILL
    assert is_gone(int((tmp_path / "started").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_interrupts_the_work_and_ends_what_it_started(tmp_path, number):
    earlier = signal.signal(signal.SIGTERM, ignore := lambda *_: None)
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt), Apart(sleeper(tmp_path), tmp_path / "log.txt") as process:
            wait_for((tmp_path / "started").exists)
            os.kill(os.getpid(), number)
            time.sleep(LIMIT)
    finally:
        signal.signal(signal.SIGINT, interrupts)
        given_back = signal.signal(signal.SIGTERM, earlier)
    assert process.code == 1 and "KeyboardInterrupt" in (tmp_path / "log.txt").read_text()
    assert is_gone(int((tmp_path / "started").read_text()))
    assert given_back is ignore


def test_the_work_dies_with_its_parent(tmp_path):
    script = f"""
import os, pathlib, signal, sys
from soup_verl.launch.apart import Apart
folder = pathlib.Path({str(tmp_path)!r})
def work():
    (folder / "partial").write_text(str(os.getpid()))
    (folder / "partial").rename(folder / "started")
    signal.pause()
with Apart(work, folder / "log.txt") as process:
    while process.running(1): pass
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for((tmp_path / "started").exists)
    child = int((tmp_path / "started").read_text())
    assert not is_gone(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: is_gone(child))


def test_nothing_is_left_with_a_mark(tmp_path):
    with Apart(lambda: None, tmp_path / "log.txt") as process:
        wait_for_the_end(process)
    assert process.code == 0 and stacks.RUN not in os.environ
    assert stacks.processes_with(f"{stacks.RUN}={process._tree.mark}") == []
