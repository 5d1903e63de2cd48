"""The supervisor with real processes and a run that does nothing but what is asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from soup_verl.launch import stacks

RUN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from omegaconf import OmegaConf
from soup_verl.launch import run, supervise
from soup_verl.launch.finished import mark_finished
from soup_verl.launch.stalls import Place, Progress
from soup_verl.launch.watch import ProcessDied

folder, each = Path(sys.argv[1]), json.loads(sys.argv[2])
supervise.PERIOD, supervise.FIRST_PAUSE = 0.05, float(os.environ.get("PAUSE", 0.2))
config = OmegaConf.create({
    "trainer": {
        "default_local_dir": str(folder), "resume_mode": "disable", "total_training_steps": 7, "total_epochs": 9
    },
    "soup": {"restarts": 2, "stall_minutes": {"rollout": 0.1}, "preflight_only": False},
})

def prepare(config):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"host": "here"}')

def train(config):
    starts = folder / "starts"
    starts.write_text((starts.read_text() if starts.exists() else "") + config.trainer.resume_mode + "\\n")
    what = each[len(starts.read_text().split()) - 1]
    if "step" in what:
        Progress(folder).enter(Place("rollout", "rollout", 1))
        time.sleep(0.3)
    if "checkpoint" in what:
        (folder / "latest_checkpointed_iteration.txt").write_text("7")
    if "finished" in what:
        mark_finished(SimpleNamespace(config=config, global_steps=8))
    if "killed" in what:
        os.kill(os.getpid(), signal.SIGKILL)
    if "died" in what:
        (folder / "error.txt").write_text("Traceback ...\\nsoup_verl.launch.watch.ProcessDied: WorkerDict died\\n")
        sys.exit(run.DIED)
    if "mute" in what:
        sys.exit(run.DIED)
    if "error" in what:
        (folder / "error.txt").write_text("Traceback ...\\nValueError: too few GPUs\\n")
        sys.exit(1)
    if "terminated" in what:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray's
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if "fatal" in what:
        os._exit(1)
    if "stuck" in what:
        code = "import time\\ndef other():\\n print(flush=True)\\n time.sleep(60)\\nother()"
        other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
        other.stdout.readline()  # it is within other()
        os.kill(other.pid, signal.SIGSTOP)
        time.sleep(60)
    if "waits" in what:
        (folder / "waits").touch()
        time.sleep(60)

run.use_platform, run.prepare, run.train = lambda config: None, prepare, train
supervise.run_supervised(config)
"""


def start(folder: Path, *each: str) -> subprocess.Popen:
    environment = {**os.environ, "SOUP_TEST_MARK": str(folder)}
    command = [sys.executable, "-c", RUN, str(folder), json.dumps(each)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(folder: Path, *each: str) -> tuple[int, str]:
    """Exit code and stderr of a run whose starts do these things in turn."""
    process = start(folder, *each)
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def starts(folder: Path) -> list[str]:
    """The resume mode of each."""
    return (folder / "starts").read_text().split()


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "run"
    left = stacks.processes_with(f"SOUP_TEST_MARK={tmp_path / 'run'}")
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


def test_a_run_that_ends_is_left_alone(folder):
    assert ended(folder, "step") == (0, "")
    assert starts(folder) == ["disable"]


@pytest.mark.parametrize("how", ["killed", "terminated", "died", "mute", "fatal"])
def test_a_death_starts_it_again_from_its_own_checkpoint_and_run_json_says_so(folder, how):
    code, said = ended(folder, f"step checkpoint {how}", "step")
    assert code == 0
    assert "soup: restart 1 of 2 in 0 s from step 7\n" in said
    assert starts(folder) == ["disable", "auto"]
    (restart,) = json.loads((folder / "run.json").read_text())["restarts"]
    named = {
        "killed": "by SIGKILL",
        "terminated": "by SIGTERM",
        "died": "ProcessDied: WorkerDict died",
        "mute": "error.txt cannot be read: ",
        "fatal": "with exit code 1",
    }
    assert named[how] in restart["after"] and "soup_verl" not in restart["after"] and restart["newest_checkpoint"] == 7


@pytest.mark.parametrize(
    ("how", "named"),
    [("killed", "by SIGKILL"), ("died", "WorkerDict died"), ("fatal", "with exit code 1"), ("stuck", "RunStalled: ")],
)
def test_a_death_or_a_stall_after_the_end_of_the_run_is_told_and_nothing_else(folder, how, named):
    code, said = ended(folder, f"step checkpoint finished {how}", "step")
    (line,) = said.splitlines()
    assert code == 0 and line.startswith("soup: the run had finished, its files are whole; then ") and named in line
    assert starts(folder) == ["disable"] and "restarts" not in json.loads((folder / "run.json").read_text())


def test_an_error_that_is_reported_after_the_end_of_the_run_stays_one(folder):
    assert ended(folder, "step finished error", "step")[0] == 1 and starts(folder) == ["disable"]


def test_the_end_of_a_run_before_it_in_the_folder_is_not_its_own(folder):
    assert ended(folder, "step finished")[0] == 0
    (folder / "starts").unlink()
    assert ended(folder, "step killed", "step")[0] == 0 and len(starts(folder)) == 2


def test_without_a_checkpoint_of_its_own_it_begins_as_before(folder):
    folder.mkdir()
    (folder / "latest_checkpointed_iteration.txt").write_text("3")  # of another run
    assert ended(folder, "step killed", "step")[0] == 0
    assert starts(folder) == ["disable", "disable"]


def test_a_file_that_verl_was_killed_in_is_no_checkpoint(folder):
    folder.mkdir()
    (folder / "latest_checkpointed_iteration.txt").write_text("")
    code, said = ended(folder, "step killed", "step")
    assert code == 0 and "soup: restart 1 of 2 in 0 s from step 0\n" in said


def test_an_error_that_a_restart_meets_before_its_first_step_is_not_the_last_word(folder):
    """A node that is not back yet, a GPU that a process still holds."""
    code, said = ended(folder, "step killed", "error", "step")
    assert code == 0 and len(starts(folder)) == 3
    assert json.loads((folder / "run.json").read_text())["restarts"][1]["after"] == (
        "RestartFailed: ValueError: too few GPUs"
    )
    assert ended(folder.with_name("again"), "step killed", "error", "error", "step")[0] == 1


def test_restarts_are_counted(folder):
    code, said = ended(folder, "step died", "step killed", "step killed", "step")
    assert code == 1 and len(starts(folder)) == 3
    assert said.splitlines()[-1].startswith("error: RunDied: the driver (process ")


@pytest.mark.parametrize("what", ["step error", "killed", "died", "error"])
def test_an_error_or_a_death_before_the_first_step_is_not_repeated(folder, what):
    folder.mkdir()
    code, said = ended(folder, what, "step")
    assert code == 1 and starts(folder) == ["disable"] and "soup: restart" not in said


def test_a_stall_ends_with_the_stacks_of_a_stopped_process_too_and_starts_again(folder):
    code, said = ended(folder, "step stuck", "step")
    assert code == 0 and len(starts(folder)) == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: RunStalled: no progress in the rollout of step 1 for 0.1 minutes")
    assert line.endswith(f"2 processes here: {folder}/stacks.1.txt")
    written = (folder / "stacks.1.txt").read_text()
    assert "in train" in written and "in other" in written and "(T (stopped))" in written
    (restart,) = json.loads((folder / "run.json").read_text())["restarts"]
    assert restart["after"] == line.removeprefix("error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["waits", "step waits"])
def test_a_signal_of_the_users_ends_it_and_is_no_death(folder, number, what):
    process = start(folder, what, "step")
    wait_for(folder / "waits")
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number and len(starts(folder)) == 1 and "soup: restart" not in said


def test_a_signal_of_the_users_between_two_starts_ends_it(folder, monkeypatch):
    monkeypatch.setenv("PAUSE", "100")
    process = start(folder, "step killed", "step")
    wait_until(lambda: (folder / "run.json").exists() and "restarts" in (folder / "run.json").read_text())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 128 + signal.SIGTERM and len(starts(folder)) == 1 and "Traceback" not in said


def test_a_driver_does_not_outlive_its_supervisor(folder):
    process = start(folder, "step waits")
    wait_for(folder / "waits")
    process.kill()
    process.communicate(timeout=300)
    wait_until(lambda: stacks.processes_with(f"SOUP_TEST_MARK={folder}") == [])


def wait_for(file: Path) -> None:
    wait_until(file.exists)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
