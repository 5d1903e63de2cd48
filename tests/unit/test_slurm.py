"""recipe/soup/slurm.sh on an imagined cluster: Slurm and Ray are commands that write down their calls. Real Ray nodes
are tests/e2e/test_slurm.py's; no real Slurm has run it."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.fake_commands import FakeCommands

SCRIPT = Path(__file__).parents[2] / "recipe/soup/slurm.sh"
SRUN = """
while [[ $1 == --* ]]; do
  if [[ $1 == --ntasks=* ]]; then nodes=${1#*=}; fi
  shift
done
NODES=$nodes exec "$@"
"""
RAY = """
case $1 in
  start)
    trap 'echo "ray ended" >>"$LOG"; exit' TERM
    for ((i = 0; i < NODES; i++)); do echo >>"$JOINED"; done
    while :; do sleep 0.1; done ;;
  status) awk '{ print " 1 node_" NR }' "$JOINED"; echo " 0.0/16.0 CPU" ;;
esac
"""
SCONTROL = 'if [[ $1 == show ]]; then printf "%s\\n" n1 n2 n3 | head -n "$SLURM_JOB_NUM_NODES"; fi'


class Job:
    """A Slurm job whose run script is `body`; `active`: the environment that was active when it was submitted, `knobs`:
    the script's."""

    def __init__(self, folder: Path, nodes: int, body: str, ray: str = RAY, active: str | None = None, **knobs: str):
        self.commands = FakeCommands(folder / "bin")
        answers = {"srun": SRUN, "ray": ray, "scontrol": SCONTROL, "hostname": "echo 10.0.0.1 fe80::1"}
        for name, answer in answers.items():
            self.commands.add(name, answer)
        venv = folder / "submitted" / (active or ".venv") / "bin"
        venv.mkdir(parents=True)
        shutil.copy(self.commands.folder / "ray", venv)
        self.commands.add("ray", "echo 'not this ray' >&2; exit 1")
        (folder / "submitted/run.sh").write_text(body)
        (folder / "joined").touch()
        spooled = shutil.copy(SCRIPT, folder / "slurm_script")  # as Slurm does
        environment = self.commands.environment(
            SLURM_JOB_ID="42",
            SLURM_JOB_NUM_NODES=str(nodes),
            SLURM_JOB_NODELIST="n[1-3]",
            SLURM_CPUS_ON_NODE="96",
            SLURM_GPUS_ON_NODE="8",
            SLURM_SUBMIT_DIR=str(folder / "submitted"),
            LOG=str(self.commands.log),
            JOINED=str(folder / "joined"),
            **({"VIRTUAL_ENV": str(venv.parent)} if active else {}),
            **knobs,
        )
        self.process = subprocess.Popen(
            ["bash", spooled, "run.sh", "trainer.save_freq=5"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=600)
        return self.process.returncode, output

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 300
        while line not in self.commands.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.commands.log.read_text()
            time.sleep(0.05)

    def calls(self) -> list[str]:
        return [call for call in self.commands.calls() if not call.startswith(("ray status", "hostname"))]


@pytest.fixture
def job(tmp_path):
    made = []

    def start(*arguments, **knobs) -> Job:
        made.append(Job(tmp_path, *arguments, **knobs))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


def ray_start(options: str) -> str:
    return f"ray start --block {options}"


UNSET = "env -u ROCR_VISIBLE_DEVICES"
"""In every step, where Slurm sets it anew."""


def step(nodes: int, where: str, options: str) -> str:
    given = (
        f"--nodes={nodes} --ntasks={nodes} --nodelist={where} --cpus-per-task=96 --cpu-bind=none --kill-on-bad-exit=1"
    )
    return f"srun {given} {UNSET} {ray_start(options)}"


HEAD = "--head --port=6379 --node-ip-address=10.0.0.1 --include-dashboard=false"
WORKER = "--address=10.0.0.1:6379"
SAY = 'echo "run $RAY_ADDRESS $NNODES x $GPUS $* $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >>"$LOG"\n'
RUN = "run 10.0.0.1:6379 3 x 8 trainer.save_freq=5 token 64"


def test_head_then_workers_then_the_run_and_its_exit_code(job):
    started = job(3, SAY + "exit 7")
    code, output = started.finish()
    assert code == 7 and "exit code 7" in output
    calls = started.calls()
    assert calls == [
        "scontrol show hostnames n[1-3]",
        step(1, "n1", HEAD),
        ray_start(HEAD),
        step(2, "n2,n3", WORKER),
        ray_start(WORKER),
        RUN,
        "ray ended",
        "ray ended",
    ]


def test_the_environment_that_was_active_is_the_jobs(job):
    code, output = job(1, SAY, RAY, ".venv-gpu").finish()
    assert code == 0, output


def test_one_node_has_no_workers(job):
    started = job(1, SAY)
    assert started.finish()[0] == 0
    assert started.commands.calls("srun") == [step(1, "n1", HEAD)]


def test_near_the_limit_it_stops_the_run_then_ray_then_requeues(job):
    started = job(3, "trap 'echo run ended >>\"$LOG\"; exit 143' TERM\n" + SAY + "while :; do sleep 0.1; done")
    started.wait_for(RUN)
    started.process.send_signal(signal.SIGUSR1)
    code, output = started.finish()
    assert code == 0, output
    assert started.calls()[-5:] == [RUN, "run ended", "ray ended", "ray ended", "scontrol requeue 42"]


def test_a_refused_requeue_fails_the_job(job):
    started = job(1, SAY + "exec sleep 100")
    started.wait_for("run 10.0.0.1")
    started.commands.add("scontrol", "exit 1")
    started.process.send_signal(signal.SIGUSR1)
    code, output = started.finish()
    assert code == 1 and "submit the same command again" in output


def test_a_run_that_does_not_end_when_asked_is_made_to(job):
    started = job(1, "trap '' TERM\n" + SAY + "while :; do sleep 0.1; done", GRACE="2")
    started.wait_for("run 10.0.0.1")
    asked = time.monotonic()
    started.process.send_signal(signal.SIGUSR1)
    assert started.finish()[0] == 0
    assert time.monotonic() - asked > 1  # whole seconds are counted
    assert started.calls()[-1] == "scontrol requeue 42"


def test_a_ray_that_does_not_start_ends_the_job_before_the_run(job):
    started = job(3, SAY, "[[ $1 != start ]]")
    code, output = started.finish()
    assert code == 1 and "Ray ended on a node before all had joined" in output
    assert started.commands.calls("run ") == []


def test_without_slurm_or_a_run_script_it_says_so(tmp_path):
    def line(**environment):
        environment["PATH"] = "/usr/bin:/bin"
        done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr

    assert "to be given to sbatch" in line()
    assert "the first argument must be a run script" in line(SLURM_JOB_ID="1", SLURM_SUBMIT_DIR=str(tmp_path))
