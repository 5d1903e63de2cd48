"""Real runs of the recipe on the CPU platform, each in a process and a Ray cluster of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.tensor import DTensor

from soup_verl.launch.finished import FINISHED
from soup_verl.records import run_log
from soup_verl.rehearsal.processes import processes_with

ROOT = Path(__file__).parents[2]
LIMIT = 1800  # seconds a launch may take; most take 60 to 150, the long series 400, and slow machines three times that


@dataclass
class Run:
    """A finished run: its folder, exit code and output."""

    folder: Path
    code: int
    output: str
    seconds: float
    steps: dict = field(default_factory=dict)

    def rows(self, step: int | str) -> list[dict]:
        """What the step trained on, sorted by (index, session); "3_before": in an earlier start."""
        return self.record(step)["rows"]

    def record(self, step: int | str) -> dict:
        if step not in self.steps:
            self.steps[step] = torch.load(self.folder / "steps" / f"step_{step}.pt", weights_only=False)
        return self.steps[step]

    def metrics(self) -> dict[int, dict[str, float]]:
        return run_log.read(self.folder)

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The actor's parameters after `step`, from verl's checkpoint: the ranks' shards joined."""
        actor = self.folder / f"global_step_{step}" / "actor"
        ranks = [torch.load(p, weights_only=False) for p in sorted(actor.glob("model_world_size_*_rank_*.pt"))]
        return {name: _joined([rank[name] for rank in ranks]) for name in ranks[0]}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    if not isinstance(parts[0], DTensor):
        return parts[0]  # one FSDP1 rank
    (placement,) = parts[0].placements
    return torch.cat([part.to_local() for part in parts], dim=placement.dim)


def settings(assets: Path) -> list[str]:
    """What all runs have in common, as overrides."""
    given = {
        "platform": "cpu",
        "data.train_files": assets / "train.parquet",
        "data.val_files": assets / "val.parquet",
        "data.train_batch_size": 8,
        "data.max_prompt_length": 48,
        "data.max_response_length": 16,
        "actor_rollout_ref.model.path": assets / "model",
        "actor_rollout_ref.actor.optim.lr": 3e-3,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.max_model_len": 64,
        "soup.sampling_seed": 1,
        "reward.custom_reward_function.path": assets / "rewards.py",
        "reward.custom_reward_function.name": "score",
        "trainer.v1.trainer_mode": "probed_soup_cpu",
        "trainer.total_epochs": 100,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
    }
    return [f"{key}={value}" for key, value in given.items()]


PREFIXES = ("soup.lookahead.age=2", "soup.prefix_length.low=2", "soup.prefix_length.high=8")
"""Settings of runs that mix; examples have their own."""


def command(assets: Path, folder: Path, *overrides: str) -> list[str]:
    given = [*settings(assets), *PREFIXES, f"trainer.default_local_dir={folder}", *overrides]
    return [sys.executable, "-m", "recipe.soup.main_soup", *given]


def launch(assets: Path, folder: Path, *overrides: str, **how: Any) -> Run:
    """Run the recipe to its end; `how` as for `execute`."""
    started = time.monotonic()
    code, output = execute(command(assets, folder, *overrides), folder, **how)
    return Run(folder, code, output, time.monotonic() - started)


def launch_series(assets: Path, folder: Path, runs: dict[str, tuple[str, ...]], *shared: str) -> dict[str, Run]:
    """Several runs on one set of processes. The code of each is 0 if it finished, else that of the series."""
    started = time.monotonic()
    each = [part for name, overrides in runs.items() for part in ("--run", name, *overrides)]
    arguments = ["--out", str(folder), *each, "--", *settings(assets), *shared]
    code, output = execute([sys.executable, "-m", "recipe.soup.main_series", *arguments], folder)
    seconds = time.monotonic() - started
    return {
        name: Run(folder / name, 0 if (folder / name / FINISHED).exists() else code or 1, output, seconds)
        for name in runs
    }


def launch_sweep(assets: Path, folder: Path, runs: dict[str, tuple[str, ...]], *shared: str) -> dict[str, Run]:
    """The same as a sweep of one seed, the first run its baseline; a run's folder is `folder/NAME-s0`."""
    seeded = [setting for setting in (*settings(assets), *shared) if not setting.startswith("soup.sampling_seed=")]
    methods = {name: list(overrides) for name, overrides in runs.items()}
    sweep = {"out": str(folder), "seeds": [0], "baseline": next(iter(runs)), "methods": methods, "shared": seeded}
    folder.mkdir(parents=True)
    (folder / SWEEP).write_text(yaml.safe_dump(sweep))
    started = time.monotonic()
    code, output = sweep_again(folder)
    log = folder / "log.txt"
    output = (log.read_text() if log.exists() else "") + output
    return {name: Run(folder / f"{name}-s0", code, output, time.monotonic() - started) for name in runs}


SWEEP = "sweep.yaml"


def sweep_again(folder: Path) -> tuple[int, str]:
    """Exit code and output of the sweep whose file is in `folder`, in which it may have been begun."""
    return execute([sys.executable, "-m", "recipe.soup.sweep", str(folder / SWEEP)], folder)


def execute(
    command: list[str],
    folder: Path,
    *,
    fault: Callable[[Path, int], bool] | None = None,
    environment: dict[str, str] | None = None,
    limit: float = LIMIT,
) -> tuple[int, str]:
    """Exit code and output of a command.

    Args:
        fault: called with `folder` and the process's id, ten times a second until it returns true.
        limit: seconds after which the command is ended, and the test with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, started = folder / f"output.{len(list(folder.glob('output.*')))}.txt", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "SOUP_TEST_MARK": str(folder),
                "SOUP_IMPORT": "tests.e2e.probe",
                "PYTHONPATH": str(ROOT),
                "TENSORBOARD_DIR": str(folder / "tensorboard"),
                "WANDB_DIR": str(folder),
                "WANDB_MODE": "offline",
                **(environment or {}),
            },
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None and time.monotonic() - started < limit:
                if fault is not None and fault(folder, process.pid):
                    fault = None
                time.sleep(0.1)
            assert process.poll() is not None, f"longer than {limit} s; its end:\n{log.read_text()[-3000:]}"
        finally:  # nothing is left of a fault that raises, either
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
    return process.returncode, log.read_text()


def survivors(folder: Path, within: float = 60.0) -> list[str]:
    """Command lines of processes that a run in `folder` started and that are alive `within` seconds from now.

    Two agents of Ray's try for 60 seconds to report the death of a cluster that was killed.
    """
    deadline = time.monotonic() + within
    while (alive := _alive(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return alive


def _alive(folder: Path) -> list[str]:
    found = []
    for process in processes_with(f"SOUP_TEST_MARK={folder}"):
        try:
            found.append((Path("/proc") / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue
    return [line for line in found if line]
