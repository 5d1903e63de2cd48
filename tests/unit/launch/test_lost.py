"""A run that loses its task runner, in one way or another: verl's `run_ppo` on a real Ray cluster."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from soup_verl.launch import run, stacks
from tests.faults.kills import command_line

pytestmark = pytest.mark.e2e

RUN = """
import os, sys, time, types
from pathlib import Path
import ray
from soup_verl.launch import run, task_runner, watch
from tests.unit.preflight_files import configure

class Owned:
    def pid(self):
        return os.getpid()

class TaskRunner:
    def run(self, config):
        with watch.end_when_a_process_dies():
            owned = ray.remote(num_cpus=0)(Owned).remote()
            (folder / "owned").write_text(str(ray.get(owned.pid.remote())))
            time.sleep(120)

folder = Path(sys.argv[1])
config = configure(f"trainer.default_local_dir={folder}", platform="cpu", soup__source="lookahead")
config.ray_kwargs.ray_init.object_store_memory = 100_000_000
task_runner.task_runner = lambda further: types.SimpleNamespace(remote=ray.remote(num_cpus=0)(TaskRunner).remote)
run.use_platform(config)
run.train(config)
"""

LOST = {
    "raylet": (r"/raylet/raylet ", "the raylet there, has died|Owner's node has crashed"),
    "task runner": ("^ray::TaskRunner", "TaskRunner .*died"),
    "what it owns": ("^ray::Owned", "Owned .*died"),
}
"""How the command line of what is killed looks, and what is said of it."""


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    for process in stacks.processes_with(f"SOUP_TEST_MARK={tmp_path}"):  # the supervisor of a run would end them
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("lost", LOST)
def test_the_run_ends_as_one_of_which_a_process_died(folder, lost):
    command, expected = LOST[lost]
    environment = {**os.environ, "SOUP_TEST_MARK": str(folder)}
    with (folder / "output").open("w") as output:
        start = [sys.executable, "-c", RUN, str(folder)]
        process = subprocess.Popen(start, env=environment, stdout=output, stderr=subprocess.STDOUT)
    while not (folder / "owned").exists():
        assert process.poll() is None, (folder / "output").read_text()
        time.sleep(0.1)
    running = stacks.processes_with(f"SOUP_TEST_MARK={folder}")
    (found,) = [pid for pid in running if re.search(command, command_line(pid))]
    os.kill(found, signal.SIGKILL)
    code, said = process.wait(timeout=100), (folder / "output").read_text()
    if lost == "raylet" and code == 1 and "\nerror: " not in said:
        return  # Ray was quicker, and ended the driver itself: a death without a word, which starts a run again, too
    assert code == run.DIED, said
    last = said.splitlines()[-1]
    assert last.startswith("error: ProcessDied: ") and re.search(expected, last)
