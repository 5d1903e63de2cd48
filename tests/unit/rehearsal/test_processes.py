import signal
import subprocess
import sys
import time

import pytest

from soup_verl.rehearsal.processes import Processes, StageFailed, last_words, wait_until
from tests.unit.preflight_files import NEEDS_VLLM_FOR_CPUS

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path)
    yield found
    found.end_all()


def start(processes, tmp_path, code):
    return processes.start([sys.executable, "-c", code], tmp_path / "logs" / "out.log")


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_children_belong_to_it_too_and_all_are_ended(processes, tmp_path):
    driver, child = start(processes, tmp_path, CHILD + "time.sleep(60)"), "-c import time; time.sleep(60)"
    assert until(lambda: f"{sys.executable} {child}" in processes.look().values())  # it was a copy of its parent before
    driver.kill()
    driver.wait()
    (orphan,) = processes.look()
    processes.end_all()
    assert processes.running() == [] and until(lambda: not orphan.is_running())


def test_the_processes_of_another_rehearsal_are_left_alone(tmp_path, processes):
    other = Processes(tmp_path / "other")
    theirs = start(other, tmp_path, "import time; time.sleep(60)")
    assert until(other.running)  # its environment can be read a moment after its start
    processes.end_all()
    assert theirs.poll() is None
    other.end_all()
    assert theirs.wait() == -signal.SIGKILL


def test_nothing_of_somebody_elses_cluster_is_inherited(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("HF_HOME", "/cache")
    code = "import os; print([n for n in ('RAY_ADDRESS', 'MASTER_PORT', 'HF_HOME') if n in os.environ])"
    assert start(processes, tmp_path, code).wait() == 0
    assert (tmp_path / "logs" / "out.log").read_text() == "['HF_HOME']\n"


def test_a_process_that_ends_too_early_is_a_failure_with_its_words(processes, tmp_path):
    log = tmp_path / "logs" / "out.log"
    process = start(processes, tmp_path, "print('error: no such key'); print('bye'); raise SystemExit(3)")
    with pytest.raises(StageFailed, match=r"exit code 3 without a report: error: no such key") as failed:
        wait_until(lambda: False, process, log, what="a report", limit=20)
    assert failed.value.log == log


def test_what_was_left_behind_counts_even_if_the_process_has_ended(processes, tmp_path):
    process = start(processes, tmp_path, "")
    process.wait()
    wait_until(lambda: True, process, tmp_path / "x", what="it", limit=20)


def test_a_process_without_a_sign_is_a_failure_too(processes, tmp_path):
    process = start(processes, tmp_path, "import time; time.sleep(60)")
    with pytest.raises(StageFailed, match="no step within 0 s"):
        wait_until(lambda: False, process, tmp_path / "x", what="step", limit=0)


def test_the_last_error_speaks_for_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_words(log) == "no message"
    log.write_text("\x1b[31mone\x1b[0m\n\ntwo\n\n")
    assert last_words(log) == "two"
    log.write_text("error: first\nerror: second\nlast\n")
    assert last_words(log) == "error: second"


HANGING = """
import sys, time
from soup_verl.rehearsal import __main__ as rehearse
from soup_verl.rehearsal import stages

def hang(self, stage):
    self._small.processes.start([sys.executable, "-c", "import time; time.sleep(60)"], self._folder / "x.log")
    time.sleep(60)

stages.Rehearsal._settings = hang
sys.exit(rehearse.main(["--out", sys.argv[1], "--model", "m", "--data-dir", "d", "--", "a=1"]))
"""


@NEEDS_VLLM_FOR_CPUS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rehearsal_leaves_no_process(tmp_path, number):
    """The whole command, of which the first stage hangs with a process under way."""
    rehearsal = subprocess.Popen([sys.executable, "-c", HANGING, tmp_path / "x"], stderr=subprocess.PIPE, text=True)
    processes = Processes(tmp_path / "x")
    assert until(processes.running, 600)
    rehearsal.send_signal(number)
    assert rehearsal.wait(300) == 130
    assert rehearsal.stderr.read().endswith("rehearse: interrupted; every process of it has been ended\n")
    assert processes.running() == []
    assert '"seen": "interrupted"' in (tmp_path / "x" / "rehearsal.json").read_text()
