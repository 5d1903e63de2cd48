"""Real runs of the recipe on the CPU platform, each in a process and a Ray cluster of its own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from soup_verl import run_log

ROOT = Path(__file__).parents[2]
LIMIT = 900  # seconds a run may take; most take 60 to 150, the one with all examples 250


@dataclass
class Run:
    """A finished run: its folder, exit code and output."""

    folder: Path
    code: int
    output: str
    seconds: float
    steps: dict = field(default_factory=dict)

    def rows(self, step: int) -> list[dict]:
        """What the step trained on, sorted by (index, session)."""
        return self.record(step)["rows"]

    def record(self, step: int) -> dict:
        if step not in self.steps:
            self.steps[step] = torch.load(self.folder / "steps" / f"step_{step}.pt", weights_only=False)
        return self.steps[step]

    def metrics(self) -> dict[int, dict[str, float]]:
        return run_log.read(self.folder)

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The actor's parameters after `step`, from verl's checkpoint of a one-rank run."""
        path = self.folder / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt"
        stored = torch.load(path, weights_only=False)
        return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in stored.items()}


def command(assets: Path, folder: Path, *overrides: str) -> list[str]:
    settings = {
        "platform": "cpu",
        "hydra.run.dir": folder / "hydra",
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
        "soup.lookahead.age": 2,
        "soup.prefix_length.low": 2,
        "soup.prefix_length.high": 8,
        "soup.sampling_seed": 1,
        "reward.custom_reward_function.path": assets / "rewards.py",
        "reward.custom_reward_function.name": "digits",
        "trainer.v1.trainer_mode": "probed_soup_cpu",
        "trainer.default_local_dir": folder,
        "trainer.total_epochs": 100,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    flags = [o for o in overrides if o.startswith("--")]  # Hydra wants them first
    values = [o for o in overrides if not o.startswith("--")]
    return [sys.executable, "-m", "recipe.soup.main_soup", *flags, *given, *values]


def launch(
    assets: Path,
    folder: Path,
    *overrides: str,
    kill_when: Path | None = None,
    kill_after: float = 0.0,
    modules: str = "tests.e2e.probe",
    environment: dict[str, str] | None = None,
) -> Run:
    """Run the recipe to its end, or SIGKILL its driver `kill_after` seconds after the file `kill_when` appears."""
    folder.mkdir(parents=True, exist_ok=True)
    log, started = folder / f"output.{len(list(folder.glob('output.*')))}.txt", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(assets, folder, *overrides),
            cwd=ROOT,
            env={
                **os.environ,
                "SOUP_TEST_MARK": str(folder),
                "SOUP_IMPORT": modules,
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
            while process.poll() is None and time.monotonic() - started < LIMIT:
                if kill_when is not None and kill_when.exists():
                    time.sleep(kill_after)
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.1)
            code = process.wait(timeout=1 if process.poll() is None and kill_when is None else 30)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(timeout=30)
            raise AssertionError(f"the run took longer than {LIMIT} s; its end:\n{log.read_text()[-3000:]}") from None
    (folder / "finished").touch()
    return Run(folder, code, log.read_text(), time.monotonic() - started)


def survivors(folder: Path, within: float = 60.0) -> list[str]:
    """Command lines of processes that a run in `folder` started and that are alive `within` seconds from now."""
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


def processes_with(variable: str) -> list[int]:
    """Processes in whose environment `NAME=value` stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found
