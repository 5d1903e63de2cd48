"""Real processes: stuck in C code with the interpreter's lock, stopped, no Python, and a child nobody told anything."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soup_verl.launch import stacks

STUCK = """
import ctypes, os
from pathlib import Path
def stuck_here():
    Path(os.environ["READY"], str(os.getpid())).touch()
    while True:
        ctypes.PyDLL(None).sleep(60)  # keeps the lock
stuck_here()
"""
SPAWNS = (
    "import subprocess, sys\ndef waits_here():\n    subprocess.run([sys.executable, '-c', sys.argv[1]])\nwaits_here()"
)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """`started(*commands, ready=N)`: processes as a supervised run has them, once N are stuck; ended afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # a folder of the user's, whose own sitecustomize has its turn
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['HAD_ITS_TURN'] = '1'\n")
    answers, stuck = tmp_path / "answers", tmp_path / "stuck"
    answers.touch()
    stuck.mkdir()
    environment = dict(os.environ) | {stacks.RUN: str(tmp_path), stacks.ANSWERS: str(answers), "READY": str(stuck)}
    environment["PYTHONPATH"] = f"{stacks.AT_START}{os.pathsep}{tmp_path}"

    def start(*commands, ready=0):
        processes = [subprocess.Popen(command, env=environment) for command in commands]
        deadline = time.monotonic() + 300
        while len(list(stuck.iterdir())) < ready:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return processes

    yield start
    stacks.end_all(f"{stacks.RUN}={tmp_path}")


def test_every_process_writes_its_stacks_stuck_in_c_stopped_or_started_by_another(tmp_path, started, monkeypatch):
    monkeypatch.setattr(stacks, "ANSWER_LIMIT", 60.0)  # all answer, a busy machine's later
    stuck, stopped, parent, other = started(
        [sys.executable, "-c", STUCK],
        [sys.executable, "-c", STUCK.replace("stuck_here", "stopped_here")],
        [sys.executable, "-c", SPAWNS, STUCK.replace("stuck_here", "child_here")],
        ["sleep", "60"],
        ready=3,
    )
    stopped.send_signal(signal.SIGSTOP)
    found = stacks.processes_with(f"{stacks.RUN}={tmp_path}")
    assert len(found) == 5
    stacks.write_stacks(sorted(found), tmp_path / "answers", tmp_path / "stacks.txt")
    assert (Path("/proc") / str(stopped.pid) / "stat").read_text().split()[2] == "T"  # still
    parts = {part.split(" ")[1]: part for part in (tmp_path / "stacks.txt").read_text().split("==== ")[1:]}
    assert "in stuck_here" in parts[str(stuck.pid)]
    assert "in stopped_here" in parts[str(stopped.pid)] and "(T (stopped))" in parts[str(stopped.pid)]
    assert "in waits_here" in parts[str(parent.pid)]
    assert "not a Python process" in parts[str(other.pid)] and "sleep 60" in parts[str(other.pid)]
    (child,) = parts.keys() - {str(p.pid) for p in (stuck, stopped, parent, other)}
    assert "in child_here" in parts[child] and "in waits_here" not in parts[child]


def test_the_environments_own_sitecustomize_has_its_turn(tmp_path, started):
    ask = "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('HAD_ITS_TURN', 'no'))"
    (process,) = started([sys.executable, "-c", ask, str(tmp_path / "said")])
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "said").read_text() == "1"


def test_a_process_on_another_node_starts_without_the_file(tmp_path, monkeypatch):
    environment = dict(os.environ) | {stacks.ANSWERS: str(tmp_path / "elsewhere"), "PYTHONPATH": str(stacks.AT_START)}
    ended = subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True, capture_output=True)
    assert ended.stderr == b""
    assert not (tmp_path / "elsewhere").exists()


def test_a_stopped_process_is_ended_and_others_are_left_alone(tmp_path, started):
    (mine,) = started(["sleep", "60"])
    mine.send_signal(signal.SIGSTOP)
    other = subprocess.Popen(["sleep", "60"])
    stacks.end_all(f"{stacks.RUN}={tmp_path}")
    assert mine.wait(timeout=300) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()
