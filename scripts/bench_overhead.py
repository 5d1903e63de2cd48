"""What SOUP costs: step time with and without mixing, measured in blocks of steps of one and the same run.

    python scripts/bench_overhead.py --out runs/bench_overhead            # every model, about 40 minutes on 2 cores
    python scripts/bench_overhead.py --model toy --sources lookahead      # one of them

Learning rate 0 and ignored end-of-sequence tokens keep every response equally long. Within a run, blocks of steps
alternate between plain GRPO and SOUP, so that both see the same machine at the same time. A step counts as SOUP's when
it uses prefixes and pays for those of a later step, as GRPO's when it does neither; steps in between are left out.
Prints a table and writes `overhead.json`, with the largest resident memory of the processes that hold history.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles

import psutil

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 6  # steps in a block
AGE = 2  # of the look-ahead, in steps
SOURCES = ("lookahead", "snapshot", "replay")


@dataclass(frozen=True)
class Workload:
    """A model made at random, and the size of a step. Lengths in tokens."""

    layers: int
    hidden: int
    heads: int
    prompts: int
    n: int
    response_length: int
    prefix_low: int
    prefix_high: int
    steps: int
    meaning: str


WORKLOADS = {
    "toy": Workload(3, 128, 4, 8, 8, 32, 2, 12, 38, "requests cost more than tokens"),
    "decode": Workload(4, 192, 6, 4, 4, 384, 16, 192, 26, "generation dominates"),
    "batch": Workload(4, 192, 6, 8, 16, 128, 4, 64, 26, "many responses at once: tokens cost more than rounds"),
    # Against response length at one size, and against size at one length.
    "tokens_32": Workload(4, 192, 6, 4, 4, 32, 2, 16, 38, "16 responses of 32 tokens"),
    "tokens_128": Workload(4, 192, 6, 4, 4, 128, 8, 64, 26, "16 responses of 128 tokens"),
    "wide": Workload(8, 512, 8, 4, 4, 128, 8, 64, 26, "16 responses of 128 tokens, weights cost more than requests"),
}
KINDS = {"task runner": "ray::SoupTaskRunner", "FSDP worker": "ray::WorkerDict", "vLLM engine": "VLLM::EngineCore"}
"""Processes that hold history or could: kind -> how the title begins."""
LIMITS = {
    ("toy", "lookahead"): 1.20,
    ("decode", "lookahead"): 1.05,
    ("decode", "snapshot"): 1.27,
    ("batch", "replay"): 1.00,
}
"""Step time SOUP / GRPO that the project promises not to exceed."""


def is_soup_block(step: int) -> bool:
    """Steps 1..BLOCK are GRPO's, the next BLOCK steps SOUP's, and so on."""
    return ((step - 1) // BLOCK) % 2 == 1


def kind_of(step: int, source: str) -> str | None:
    """`grpo`, `soup`, or None for a step that only uses prefixes or only pays for later ones."""
    pays_for = step + (AGE if source == "lookahead" else 1)
    uses = is_soup_block(step)
    pays = uses if source == "replay" else is_soup_block(pays_for)
    if uses and pays:
        return "soup"
    return None if uses or pays else "grpo"


class Memory:
    """The largest resident memory of a run's processes by kind, in MB, as far as it was seen."""

    def __init__(self, driver: int) -> None:
        self._driver = psutil.Process(driver)
        self.largest: dict[str, float] = {}

    def look(self) -> None:
        """Compare with what the processes take now."""
        for process in self._driver.children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                resident = process.memory_info().rss / 1e6
            except psutil.Error:
                continue
            for kind, start in KINDS.items():
                if title.startswith(start):
                    self.largest[kind] = max(resident, self.largest.get(kind, 0.0))


def make_model(folder: Path, workload: Workload) -> None:
    """A random Qwen2 of the workload's size with the examples' tokenizer, and prompts for it."""
    sys.path.insert(0, str(ROOT / "examples" / "common"))
    import pandas as pd
    import torch
    from tiny_model import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = build_model(
        tokenizer,
        hidden=workload.hidden,
        intermediate=4 * workload.hidden,
        layers=workload.layers,
        heads=workload.heads,
        kv_heads=max(1, workload.heads // 4),
        positions=1024,
    )
    model.save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "bench",
            "prompt": [{"role": "user", "content": f"{i}+{i}="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(workload.prompts * 4)
    ]
    pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    (folder / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
        "    return {'score': float(len(solution_str) % 2), 'acc': 0.0}\n"
    )


def settings_of(folder: Path, source: str, workload: Workload) -> dict[str, object]:
    """A run of the workload, by full keys."""
    settings: dict[str, object] = {
        "platform": "cpu",
        "hydra.run.dir": folder / source / "hydra",
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "train.parquet",
        "data.train_batch_size": workload.prompts,
        "data.max_prompt_length": 32,
        "data.max_response_length": workload.response_length,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.actor.optim.lr": 0,
        "actor_rollout_ref.actor.ppo_mini_batch_size": workload.prompts,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.rollout.n": workload.n,
        "actor_rollout_ref.rollout.ignore_eos": True,
        "actor_rollout_ref.rollout.max_model_len": workload.response_length + 64,
        "soup.source": source,
        "soup.lookahead.age": AGE,
        "reward.custom_reward_function.path": folder / "reward.py",
        "trainer.v1.trainer_mode": "alternating_soup_cpu",
        "trainer.default_local_dir": folder / source,
        "trainer.total_training_steps": workload.steps,
        "trainer.total_epochs": 1000,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
    }
    lengths: dict[str, object] = {"low": workload.prefix_low, "high": workload.prefix_high}
    if source == "replay":
        lengths = {"unit": "share", "low": 0.02, "high": 0.98}  # a mean cut of one half
    return settings | {f"soup.prefix_length.{key}": value for key, value in lengths.items()}


def run(
    folder: Path, source: str, workload: Workload, more: Mapping[str, object] | None = None
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """One real training run, with `more` settings.

    Returns:
        Its metrics by step, and the largest resident memory by kind of process, in MB.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    from soup_verl.records import run_log

    settings = settings_of(folder, source, workload) | (more or {})
    log = folder / f"{source}.log"
    print(f"{folder.name}, {source}: {workload.steps} steps, log in {log}", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "recipe.soup.main_soup", *(f"{k}={v}" for k, v in settings.items())],
            cwd=ROOT,
            env={
                **os.environ,
                "SOUP_IMPORT": "bench_overhead_trainer",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")]),
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        memory = Memory(process.pid)
        while process.poll() is None:
            memory.look()
            time.sleep(2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return run_log.read(folder / source), {kind: round(mb) for kind, mb in memory.largest.items()}


def summarize(metrics: dict[int, dict[str, float]], source: str) -> dict[str, object]:
    """Median step times of both kinds with quartiles, their ratio, and generation's share of a GRPO step."""
    seconds: dict[str, list[float]] = {"grpo": [], "soup": []}
    decoded: dict[str, list[float]] = {"grpo": [], "soup": []}
    for step, values in metrics.items():
        kind = kind_of(step, source)
        if kind and step > 2 and step + AGE <= max(metrics):  # the first two steps warm up, the last look nowhere
            seconds[kind].append(values["timing_s/step"])
            decoded[kind].append(values["soup/decode_tokens_total"])
    result: dict[str, object] = {}
    for kind, values in seconds.items():
        low, middle, high = quantiles(values, n=4)
        result[kind] = {"steps": len(values), "median_s": middle, "quartiles_s": [low, high]}
    result["ratio"] = median(seconds["soup"]) / median(seconds["grpo"])
    result["decode_tokens_ratio"] = median(decoded["soup"]) / median(decoded["grpo"])
    plain = [values for step, values in metrics.items() if kind_of(step, source) == "grpo" and step > 2]
    result["generation_share_grpo"] = median(values["timing_s/gen"] / values["timing_s/step"] for values in plain)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_overhead"))
    parser.add_argument("--model", choices=sorted(WORKLOADS), action="append")
    parser.add_argument("--steps", type=int, help="steps of a run; by default the workload's own")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    args = parser.parse_args()
    results: dict[str, object] = {"machine": {"processor": platform.processor(), "cores": os.cpu_count()}}
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "source", "GRPO s/step", "SOUP s/step", "ratio", "limit", "decoded tokens, ratio", "MB")
    for name in args.model or WORKLOADS:
        workload = replace(WORKLOADS[name], steps=args.steps or WORKLOADS[name].steps)
        folder = (args.out / name).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder, workload)
        results[name] = {"workload": asdict(workload)}
        for source in args.sources:
            metrics, memory = run(folder, source, workload)
            result = summarize(metrics, source) | {"largest_resident_mb": memory}
            results[name][source] = result
            limit = LIMITS.get((name, source))
            table.add_row(
                f"{name}: {workload.meaning}",
                source,
                f"{result['grpo']['median_s']:.3f}",
                f"{result['soup']['median_s']:.3f}",
                f"{result['ratio']:.3f}",
                "-" if limit is None else f"{limit:.2f}",
                f"{result['decode_tokens_ratio']:.3f}",
                ", ".join(f"{kind} {mb}" for kind, mb in memory.items()),
            )
            (args.out / "overhead.json").write_text(json.dumps(results, indent=1))
    Console().print(table)


if __name__ == "__main__":
    main()
