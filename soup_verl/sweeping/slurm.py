"""One Slurm job a run. A later call sends what neither finished nor waits nor runs."""

from __future__ import annotations

import getpass
import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from soup_verl.records.files import write_text
from soup_verl.sweeping import SweepError, say
from soup_verl.sweeping.plan import Run

JOB = "slurm_job.txt"
"""In a run's folder: the id of its last job."""
OUTPUT = "slurm.out"


def command(run: Run, scripts: Sequence[Path], options: Sequence[str]) -> list[str]:
    """What sends the job.

    Args:
        scripts: the job's script, and the run script that it is given.
        options: of sbatch: nodes, GPUs, time.
    """
    named = (f"--job-name={run.name}", f"--output={run.folder / OUTPUT}")
    return ["sbatch", "--parsable", *named, *options, *map(str, scripts), *run.overrides]


def send(runs: Sequence[Run], scripts: Sequence[Path], options: Sequence[str]) -> None:
    """Send a job for each of these runs, which have not finished, unless it has one in the queue.

    Raises:
        SweepError: Slurm is not here, or refuses; what was sent before stays, and is known to the next call.
    """
    queue = queued()
    for number, run in enumerate(runs, start=1):
        earlier = job_of(run)
        if earlier in queue:
            say(f"{number} of {len(runs)}: {run.name}: job {earlier} is in the queue")
            continue
        run.folder.mkdir(parents=True, exist_ok=True)
        job = _call(command(run, scripts, options)).strip().partition(";")[0]
        write_text(run.folder / JOB, f"{job}\n")
        after = f", after job {earlier}, which ended before the run did" if earlier else ""
        say(f"{number} of {len(runs)}: {run.name}: job {job}{after}")


def job_of(run: Run) -> str | None:
    """The id of the job that was sent for the run last."""
    file = run.folder / JOB
    return file.read_text().strip() if file.exists() else None


def queued() -> Collection[str]:
    """Ids of this user's jobs that wait or run.

    Raises:
        SweepError: Slurm is not here, or does not answer.
    """
    return _call(["squeue", "--noheader", "--format=%A", f"--user={getpass.getuser()}"]).split()


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SweepError(f"{command[0]}: not found. --slurm is for a machine that can send Slurm jobs.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SweepError(f"{command[0]} refused: {said}. The command: {shlex.join(command)}")
    return done.stdout
