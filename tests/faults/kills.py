"""SIGKILL to one process of a real run at a seeded moment, and what becomes of the run.

    python -m tests.faults.kills --kills 30 --seed 0 --out runs/kills [KEY=VALUE ...]

One run, killed again and again, each time in another process and at another stage, and resumed from its last checkpoint
until it comes to its end. `kills.json` in --out has every kill: it is written after each, so a harness that is stopped
goes on where it was. KEY=VALUE are settings of the run, such as soup.source=replay.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.e2e import assets
from tests.e2e.launch import PREFIXES, Run, launch, processes_with, survivors
from tests.e2e.sockets import listening, reachable

TARGETS = {
    "driver": r"recipe\.soup\.main_soup",
    "task runner": r"^ray::\w*TaskRunner",
    "FSDP worker": r"^ray::WorkerDict",
    "vLLM engine": r"^VLLM::EngineCore",
    "agent loop worker": r"^ray::SoupAgentLoopWorker",
    "storage unit": r"^ray::SimpleStorageUnit",
    "raylet": r"/raylet/raylet ",
    "Ray agent": r"/runtime_env/agent/",
    "GCS server": r"/gcs/gcs_server ",
}
"""What can be killed, and how its command line looks."""

NAMED = {
    "driver": "driver",
    "task runner": "TaskRunner",
    "FSDP worker": "WorkerDict",
    "vLLM engine": "[Ee]ngine",
    "agent loop worker": "SoupAgentLoopWorker",
    "storage unit": "SimpleStorageUnit",
    "raylet": "[Rr]aylet|node",
    "Ray agent": "[Rr]aylet|node",  # which ends with it
    "GCS server": "driver",  # which Ray ends without a word
}
"""What the last line of output must say of it."""

STAGES = ("rollout", "prefixes", "log_probs", "update", "checkpoint", "weights")
"""What `tests.e2e.probe` says of where a run is, in the order of a step."""

END = dict.fromkeys(TARGETS, 60.0) | {"GCS server": 90.0}
"""Seconds after a kill within which the run must have ended; Ray waits a minute for a GCS server."""


@dataclass
class Fault:
    """A fault for `tests.e2e.launch.execute`: a signal to a process when the run enters a stage, where it waits for it.

    Args:
        target: one of `TARGETS`.
        step, stage: the first time the run enters this stage from this step on.
        delay: seconds from when the run is let go to the signal; 0: it is let go when the signal is in.
        how: SIGKILL, or SIGSTOP.
        at: `time.monotonic()` of the signal; None before.
        sockets: how many the run listens on just before.
        open_sockets: those that another machine could connect to.
    """

    target: str
    step: int
    stage: str
    delay: float = 0.0
    how: str = "SIGKILL"
    at: float | None = None
    sockets: int = 0
    open_sockets: list[str] = field(default_factory=list)

    def arm(self, folder: Path) -> None:
        """Have the run in `folder` wait for it; before the run starts, or anew for the next fault."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stage").unlink(missing_ok=True)
        (folder / "hold").write_text(f"{self.step} {self.stage}")

    def __call__(self, folder: Path, started: int) -> bool:
        if not _read(folder / "stage").endswith(f"{self.stage} held"):
            return False
        if self.delay:
            (folder / "hold").unlink()
            time.sleep(self.delay)
        found = self._processes(folder, started)
        if found:
            sockets = listening(folder)
            self.sockets = len(sockets)
            self.open_sockets = sorted(f"{who} on {address}:{port}" for address, port, who in reachable(sockets))
            self.at = time.monotonic()
            os.kill(found[0], signal.Signals[self.how])
        (folder / "hold").unlink(missing_ok=True)
        return True

    def _processes(self, folder: Path, started: int) -> list[int]:
        running = processes_with(f"SOUP_TEST_MARK={folder}")
        if self.target == "driver":  # started by the supervisor, whose command line it has
            running = [child.pid for child in psutil.Process(started).children()]
        return [pid for pid in running if re.search(TARGETS[self.target], command_line(pid))]


@dataclass
class Faults:
    """Several, one after the other, in a run that is started again after each.

    Args:
        plan: each counts its steps from the newest checkpoint at that time where `ahead`.
        ahead: whether the steps of the plan are counted so. Each fault then waits for the start after the one before: a
            death that is not noticed yet would let two have one start.
        last: no fault waits for a later step than this.
        done: those whose moment has come.
    """

    plan: list[Fault]
    ahead: bool = False
    last: int = 10**9
    done: list[Fault] = field(default_factory=list)
    _armed: bool = False

    def __call__(self, folder: Path, started: int) -> bool:
        fault = self.plan[len(self.done)]
        if not self._armed:
            if self.ahead and restarts(folder) < len(self.done):
                return False
            if self.ahead:
                fault.step = min(newest_checkpoint(folder) + fault.step, self.last)
            fault.arm(folder)
            self._armed = True
        if fault(folder, started):
            self.done.append(fault)
            self._armed = False
        return len(self.done) == len(self.plan)


def command_line(process: int) -> str:
    """Of a process, with blanks between the arguments; "" if it has ended."""
    return _read(Path("/proc") / str(process) / "cmdline").replace("\0", " ")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def killed_run(made: Path, folder: Path, kill: Fault, *overrides: str, before: Sequence[Fault] = ()) -> dict:
    """Run until the kill has ended it; says how it ended.

    Args:
        before: faults that it survives, since `soup.restarts` is as many.

    Returns:
        The kill's settings, `sockets` and `open_sockets`; `code`; `seconds` from the kill to the end; `last_line` of
        output; `named`: whether that says what died; `survivors`: command lines of processes that were left 90 seconds
        later; `steps`: the newest checkpoint.
    """
    run = launch(made, folder, *overrides, fault=Faults([*before, kill]), limit=600 * (1 + len(before)))
    ended = time.monotonic()
    said = run.output.strip().splitlines()[-1:] or [""]
    return {
        **{key: value for key, value in asdict(kill).items() if key != "at"},
        "code": run.code,
        "seconds": round(ended - kill.at, 1) if kill.at else None,
        "last_line": said[0],
        "named": bool(re.search(NAMED[kill.target], said[0])),
        "survivors": survivors(folder, within=90),
        "steps": newest_checkpoint(folder),
    }


def restarts(folder: Path) -> int:
    """How often the run in `folder` was started again by its supervisor."""
    return len(json.loads(_read(folder / "run.json") or "{}").get("restarts", []))


def newest_checkpoint(folder: Path) -> int:
    """Its step; 0 without any."""
    return int(_read(folder / "latest_checkpointed_iteration.txt") or 0)


def complaints(outcome: dict) -> list[str]:
    """What is wrong with the way a run ended."""
    found = []
    if outcome["seconds"] is None:
        return ["it ended by itself"]
    if outcome["seconds"] > END[outcome["target"]]:
        found.append(f"it ended {outcome['seconds']} s after the kill")
    if outcome["code"] == 0:
        found.append("exit code 0")
    if not outcome["named"]:
        found.append("the last line does not name what died")
    if outcome["survivors"]:
        found.append(f"{len(outcome['survivors'])} processes are left")
    return found


def plan(seed: int) -> Iterator[tuple[str, str, float, int]]:
    """For ever: a target, a stage, a delay in seconds, and how many steps after the last checkpoint.

    Every target comes once before one comes again.
    """
    draw = random.Random(seed)
    while True:
        for target in draw.sample(list(TARGETS), len(TARGETS)):
            yield target, draw.choice(STAGES), draw.choice([0, draw.uniform(0, 0.6)]), draw.randint(1, 3)


def unfair_epochs(run: Run, steps: int) -> list[int]:
    """Epochs of three steps in which a prompt was not trained exactly once."""
    seen: dict[int, list[int]] = {}
    for step in range(1, steps + 1):
        seen.setdefault((step - 1) // 3, []).extend({int(row["index"]) for row in run.rows(step)})
    return [epoch for epoch, indices in seen.items() if sorted(indices) != list(range(24))]


def main() -> None:
    """Kill, resume, and say what happened."""
    parser = argparse.ArgumentParser(description="Kill processes of a real run at seeded moments.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if not (out / "assets").exists():
        assets.make(out / "assets")
    file = out / "kills.json"
    done = json.loads(file.read_text()) if file.exists() else []
    steps = 3 * (arguments.kills + 1)  # whole epochs, and enough for any plan
    settings = (
        *PREFIXES,
        f"trainer.total_training_steps={steps}",
        "trainer.save_freq=1",
        "trainer.max_actor_ckpt_to_keep=3",
        "actor_rollout_ref.actor.optim.lr=3e-5",
        *arguments.overrides,
    )
    for number, (target, stage, delay, ahead) in enumerate(plan(arguments.seed)):
        if number >= arguments.kills:
            break
        if number < len(done):
            continue
        last = done[-1]["steps"] if done else 0
        kill = Fault(target, min(last + ahead, steps - 1), stage, delay)
        outcome = killed_run(out / "assets", out / "run", kill, *settings)
        done.append(outcome | {"complaints": complaints(outcome)})
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(json.dumps({k: v for k, v in done[-1].items() if k != "survivors"}), flush=True)
    final = launch(out / "assets", out / "run", *settings)
    unfair = unfair_epochs(final, steps) if final.code == 0 else None
    bad = [outcome for outcome in done if outcome["complaints"]]
    print(f"{len(done)} kills, {len(bad)} with complaints; final run: code {final.code}, unfair epochs: {unfair}")
    sys.exit(bool(bad or final.code or unfair))


if __name__ == "__main__":
    main()
