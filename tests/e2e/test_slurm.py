"""recipe/soup/slurm.sh brings up real Ray nodes and takes them down; only srun and scontrol are stood in for."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import free_port
from tests.e2e.launch import processes_with
from tests.unit.fake_commands import FakeCommands

SCRIPT = Path(__file__).parents[2] / "recipe/soup/slurm.sh"
# Runs the command here: the second node has an address of its own, and each node one logical GPU.
SRUN = """
node=()
while [[ $1 == --* ]]; do
  if [[ $1 == --nodelist=n2 ]]; then node=(--node-ip-address=127.0.0.2); fi
  shift
done
exec "$@" "${node[@]}" --num-cpus=1 --num-gpus=1 --object-store-memory=150000000
"""
LIMIT = 600  # seconds for what takes 20 on a machine that does nothing else
RUN = """
import ray, sys, time

ray.init(log_to_driver=False)
nodes = [node for node in ray.nodes() if node["Alive"]]
print(f"run with {len(nodes)} nodes, {ray.cluster_resources()['GPU']:.0f} GPUs, {sys.argv[1:]}", flush=True)
time.sleep(float(sys.argv[1]))
"""


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen, FakeCommands]:
    commands = FakeCommands(folder / "bin")
    commands.add("srun", SRUN)
    commands.add("scontrol", 'if [[ $1 == show ]]; then printf "n1\\nn2\\n"; fi')
    (folder / "run.py").write_text(RUN)
    (folder / "run.sh").write_text('exec python run.py "$@"')
    slurm = {"JOB_ID": "42", "JOB_NUM_NODES": "2", "JOB_NODELIST": "n[1-2]", "CPUS_ON_NODE": "1", "GPUS_ON_NODE": "1"}
    environment = commands.environment(
        VENV=sys.prefix,
        HEAD_ADDRESS="127.0.0.1",
        RAY_PORT=str(free_port()),
        SOUP_TEST_NODE=str(folder),
        SLURM_SUBMIT_DIR=str(folder),
        **{f"SLURM_{name}": value for name, value in slurm.items()},
    )
    output = (folder / "slurm.out").open("w")
    command = ["bash", str(SCRIPT), "run.sh", *arguments]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT), commands


def left(folder: Path) -> list[int]:
    """What of the job is still there after the minute for which Ray's agents try to report the end of their cluster."""
    deadline = time.monotonic() + 90
    while (found := processes_with(f"SOUP_TEST_NODE={folder}")) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    for process in processes_with(f"SOUP_TEST_NODE={tmp_path}"):
        os.kill(process, signal.SIGKILL)


def test_the_run_has_both_nodes_and_nothing_is_left(folder):
    job, _ = start(folder, "0")
    assert job.wait(timeout=LIMIT) == 0, (folder / "slurm.out").read_text()
    assert "run with 2 nodes, 2 GPUs, ['0']" in (folder / "slurm.out").read_text()
    assert left(folder) == []


def test_near_the_limit_everything_ends_and_the_job_is_requeued(folder):
    job, commands = start(folder, "3000")
    deadline = time.monotonic() + LIMIT
    while not re.search("^run with", text := (folder / "slurm.out").read_text(), re.M):
        assert job.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=LIMIT) == 0
    assert commands.calls("scontrol")[-1] == "scontrol requeue 42"
    assert left(folder) == []
