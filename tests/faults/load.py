"""Load: many prompts and sessions through the rollout manager of a real run; every sample once, memory flat.

    python -m tests.faults.load --prompts 512 --n 16 --steps 20 --out runs/load [KEY=VALUE ...]

A model of 80 thousand parameters, so nearly all of a step is the work a sample costs on its way: agent loop, server,
TransferQueue, trainer. Writes load.json: by step the number of samples and of different (prompt, session) pairs, the
seconds, the resident memory of every process by kind, and what the run has on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pandas as pd
import psutil

from soup_verl.method.intervals import interval
from tests.e2e import assets
from tests.e2e.launch import PREFIXES, Run, launch, processes_with
from tests.faults.kills import TARGETS, command_line

KINDS = TARGETS | {"vLLM server": r"^ray::vLLMHttpServer", "queue controller": r"^ray::TransferQueueController"}
SETTLED = 3
"""Memory is compared from this step on: caches and pools have their size by then."""


class Memory:
    """A fault for `tests.e2e.launch.execute` that does no harm: notes resident memory whenever a step's update begins.

    `by_step` maps a step to {kind of process: MB of all processes of that kind}, `disk` to the run's folder in MB.
    """

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}
        self.disk: dict[int, float] = {}

    def __call__(self, folder: Path, driver: int) -> bool:
        file = folder / "stage"
        step, _, stage = file.read_text().partition(" ") if file.exists() else ("", "", "")
        if stage == "update" and int(step) not in self.by_step:
            self.by_step[int(step)] = resident(folder, driver)
            self.disk[int(step)] = on_disk(folder)
        return False


def resident(folder: Path, supervisor: int) -> dict[str, float]:
    """MB by kind of process; the driver has its supervisor's command line."""
    found: dict[str, float] = defaultdict(float)
    for pid in processes_with(f"SOUP_TEST_MARK={folder}"):
        kind = next((kind for kind, title in KINDS.items() if re.search(title, command_line(pid))), None)
        if pid == supervisor:
            kind = "supervisor"
        if kind is not None:
            try:
                found[kind] += psutil.Process(pid).memory_info().rss / 1e6
            except psutil.Error:
                continue
    return {kind: round(megabytes, 1) for kind, megabytes in found.items()}


def on_disk(folder: Path) -> float:
    """MB of the run's files, less the probe's own records; the run removes checkpoints meanwhile."""
    found = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "steps"]
        for name in files:
            with suppress(FileNotFoundError):
                found += (Path(place) / name).stat().st_size
    return round(found / 1e6, 2)


def make_prompts(made: Path, count: int) -> Path:
    """A data set of `count` different prompts beside the others."""
    rows = pd.read_parquet(made / "train.parquet")
    many = pd.concat([rows.iloc[[i % len(rows)]] for i in range(count)], ignore_index=True)
    many["prompt"] = [[{"role": "user", "content": f"{i}+{i % 9}="}] for i in range(count)]
    many["extra_info"] = [{"index": i, "split": "train"} for i in range(count)]
    many.to_parquet(made / f"prompts_{count}.parquet")
    return made / f"prompts_{count}.parquet"


def settings(file: Path, *, prompts: int, n: int, steps: int) -> tuple[str, ...]:
    """Overrides: every prompt in every step; lookahead, so that prefixes are stored for all of them."""
    micro = min(128, prompts * n)
    return (
        *PREFIXES,
        f"data.train_files={file}",
        f"data.train_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        "actor_rollout_ref.actor.optim.lr=1e-6",
        f"actor_rollout_ref.rollout.n={n}",
        f"trainer.total_training_steps={steps}",
        f"trainer.total_epochs={steps}",  # of one step each
    )


def report(run: Run, memory: Memory, *, prompts: int, n: int) -> list[dict]:
    """By step: samples, different (prompt, session) pairs, mixed samples, seconds, memory."""
    found = []
    for step, metrics in run.metrics().items():
        rows = run.rows(step)
        found.append(
            {
                "step": step,
                "samples": len(rows),
                "different": len({(int(row["index"]), row["session"]) for row in rows}),
                "expected": prompts * n,
                "mixed": sum(bool(row["prefix_mask"].any()) for row in rows),
                "seconds": metrics["timing_s/step"],
                "memory": memory.by_step.get(step, {}),
                "disk": memory.disk.get(step),
            }
        )
    return found


def growth(steps: list[dict], parts: int = 8) -> dict[str, list[float]]:
    """By kind: the slope of its memory in MB a step, and the half-width of its 95% interval.

    From the means of `parts` stretches of steps, whose successive slopes are taken for independent.
    """
    known = [s for s in steps if s["memory"] and s["step"] >= SETTLED]
    size = max(1, len(known) // parts)
    stretches = [known[start : start + size] for start in range(0, len(known) - size + 1, size)]
    places = [mean(s["step"] for s in stretch) for stretch in stretches]
    found = {}
    for kind in set.intersection(*(set(s["memory"]) for s in known)):
        levels = [mean(s["memory"][kind] for s in stretch) for stretch in stretches]
        slopes = [(b - a) / (y - x) for (a, b), (x, y) in zip(pairwise(levels), pairwise(places), strict=True)]
        of_kind = interval(slopes)
        found[kind] = [round(of_kind.mean, 4), round(of_kind.half_width, 4)]
    return found


def complaints(steps: list[dict], expected: int) -> list[str]:
    """Steps that are missing, and those in which a sample is missing or there twice."""
    short = [] if len(steps) == expected else [f"{len(steps)} steps, expected {expected}"]
    return short + [
        f"step {s['step']}: {s['samples']} samples, {s['different']} different ones, expected {s['expected']}"
        for s in steps
        if not s["samples"] == s["different"] == s["expected"]
    ]


def main() -> None:
    """Run, count, say."""
    parser = argparse.ArgumentParser(description="Many samples through a real run.")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out, size = arguments.out.absolute(), {"prompts": arguments.prompts, "n": arguments.n}
    if not (out / "assets").exists():
        assets.make(out / "assets")
    memory = Memory()
    file = make_prompts(out / "assets", arguments.prompts)
    overrides = (*settings(file, **size, steps=arguments.steps), *arguments.overrides)
    run = launch(out / "assets", out / "run", *overrides, fault=memory, limit=36_000)
    if run.code:
        sys.exit(f"load: the run failed, see {out / 'run'}:\n{run.output[-2000:]}")
    steps = report(run, memory, **size)
    found = {"steps": steps, "mb_a_step": growth(steps), "complaints": complaints(steps, arguments.steps)}
    (out / "load.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("mb_a_step", "complaints")}))
    sys.exit(bool(found["complaints"]))


if __name__ == "__main__":
    main()
