"""What the store of replayed responses costs: seconds a step, seconds a checkpoint, and resident memory.

    python scripts/bench_store.py --out runs/bench_store                 # 128 prompts x 8 responses x 8k tokens a step
    python scripts/bench_store.py --prompts 16 --tokens 512 --many 20000  # seconds rather than minutes

Steps: every step visits `--prompts` prompts, chooses half of `--n` responses of each and stores `--n` new ones; prompts
come round every `--epoch` steps. The capacity is that of `--keep` steps, fewer than are run; those that evict count.
Expiry is that of a whole step's responses at once. Tokens and log-probs are synthetic: Zipf ids, and log-probs of which
most are near 0.
Then a store of `--many` responses of 1k tokens under a capacity of an eighth of them.
Each runs in a process of its own. Prints tables and writes `store.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np

from soup_verl.history.response_store import ResponseStore, StoredResponse
from soup_verl.mixing import stable_seed

VOCABULARY = 151_000
MAX_SHARE = 0.01
"""Share of a step that the project promises the store not to exceed."""


def resident_bytes(peak: bool = False) -> int:
    """Memory of this process in RAM, now or at its peak."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def synthetic(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and log-probs, (length,) each: 7 of 10 tokens are all but certain."""
    ids = np.minimum(rng.zipf(1.2, length), VOCABULARY).astype(np.int32)
    scale = np.where(rng.random(length) < 0.7, 0.005, 1.0)
    return ids, -rng.exponential(scale).astype(np.float32)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@cache
def text(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """A long synthetic text; responses are windows of it, so that making them costs nothing."""
    return synthetic(np.random.default_rng(0), 512 * tokens)


def batch_of(step: int, args: argparse.Namespace) -> dict[str, list[StoredResponse]]:
    """The responses of a step, by prompt."""
    rng = np.random.default_rng(step)
    ids, log_probs = text(args.tokens)
    groups = {}
    for i in range(args.prompts):
        cuts = [slice(k, k + args.tokens) for k in rng.integers(0, 511 * args.tokens, args.n)]
        key = f"{(step % args.epoch) * args.prompts + i}:{'0' * 32}"
        groups[key] = [StoredResponse(ids[c], log_probs[c], step - 1, float(rng.random() < 0.5)) for c in cuts]
    return groups


def run_steps(args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of each operation over the steps in which the store is full, and of saving and loading it once."""
    kept_tokens = args.keep * args.prompts * args.n * args.tokens
    limits = {"capacity_tokens": kept_tokens, "per_prompt": 2 * args.n, "max_policy_age": None}
    store = ResponseStore(**limits)
    spent: dict[str, list[float]] = {"choose": [], "add": []}
    for step in range(1, args.steps + 1):
        batch = batch_of(step, args)
        full = store.stats()["evicted_by_capacity"] > 0
        times = {
            "choose": seconds(partial(choose_all, store, batch, args)),
            "add": seconds(partial(add_all, store, batch)),
        }
        for name, value in times.items() if full else ():
            spent[name].append(value)
    assert spent["add"], f"no step evicted anything: --steps {args.steps} must exceed --keep {args.keep}"
    result = {f"{name}_s": mean(values) for name, values in spent.items()} | {"steps_measured": len(spent["add"])}
    return result | expire_a_step(args) | save_and_load(store, limits)


def choose_all(store: ResponseStore, batch: dict[str, list[StoredResponse]], args: argparse.Namespace) -> None:
    for key, responses in batch.items():
        seed = stable_seed(key, responses[0].policy_version)
        chosen = store.choose(key, args.n // 2, choice=args.choice, seed=seed)
        first_visit = responses[0].policy_version < args.epoch
        assert first_visit or len(chosen) == args.n // 2, f"{key} has no responses any more: --keep more than --epoch"


def add_all(store: ResponseStore, batch: dict[str, list[StoredResponse]]) -> None:
    for key, responses in batch.items():
        store.add(key, responses)


def expire_a_step(args: argparse.Namespace) -> dict[str, float]:
    """Seconds to drop a whole step's responses by age."""
    store = ResponseStore(
        capacity_tokens=2 * args.prompts * args.n * args.tokens + 1000 * args.prompts * args.n,
        per_prompt=args.n,
        max_policy_age=0,
    )
    add_all(store, batch_of(1, args))
    spent = seconds(lambda: store.expire(1))
    assert len(store) == 0, len(store)
    return {"expire_s": spent}


def save_and_load(store: ResponseStore, limits: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.parquet"
        before = resident_bytes()
        saving = seconds(lambda: store.save(path))
        extra = resident_bytes(peak=True) - before
        loading = seconds(lambda: ResponseStore.load(path, **limits))
        size = path.stat().st_size
    return {"save_s": saving, "load_s": loading, "stored_tokens": store.tokens, "file_bytes": size, "save_extra": extra}


def run_many(args: argparse.Namespace) -> dict[str, float]:
    """Resident memory of a store that is given far more responses of 1k tokens than its capacity."""
    capacity = args.many * 1024 // 8
    ids, log_probs = synthetic(np.random.default_rng(0), 2048)
    start = resident_bytes()
    store = ResponseStore(capacity_tokens=capacity, per_prompt=8, max_policy_age=None)

    def add_many():
        for i in range(args.many):
            cut = slice(i % 1024, i % 1024 + 1024)
            store.add(f"{i // 4}:{'0' * 32}", [StoredResponse(ids[cut], log_probs[cut], i // 1024, i % 2)])

    spent = seconds(add_many)
    return {
        "responses_added": args.many,
        "responses_kept": len(store),
        "add_s": spent,
        "bytes_bound": store.stats()["bytes_bound"],
        "resident_bytes": resident_bytes(peak=True) - start,
    }


def apart(work: Callable[[argparse.Namespace], dict[str, float]], args: argparse.Namespace) -> dict[str, float]:
    """Run `work` in a fresh process: its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, args).result()


def report(results: dict, step_seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    steps, many = results["steps"], results["many"]
    table = Table("operation", "seconds", f"share of a step of {step_seconds:g} s")
    for name in ("choose", "add", "expire"):
        table.add_row(f"{name}, a step", f"{steps[name + '_s']:.4f}", f"{steps[name + '_s'] / step_seconds:.4%}")
    table.add_row("together", f"{results['step_s']:.4f}", f"{results['share']:.4%} (at most {MAX_SHARE:.0%})")
    for name in ("save", "load"):
        millions = steps["stored_tokens"] / 1e6
        table.add_row(f"{name} {millions:.1f}M tokens, a checkpoint", f"{steps[name + '_s']:.2f}", "-")
    memory = Table("1k-token responses added", "kept", "seconds", "bound, MB", "resident, MB")
    memory.add_row(
        f"{many['responses_added']:,}",
        f"{many['responses_kept']:,}",
        f"{many['add_s']:.1f}",
        f"{many['bytes_bound'] / 1e6:.1f}",
        f"{many['resident_bytes'] / 1e6:.1f}",
    )
    console = Console()
    console.print(table)
    console.print(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_store"))
    parser.add_argument("--prompts", type=int, default=128, help="a step")
    parser.add_argument("--n", type=int, default=8, help="responses a prompt")
    parser.add_argument("--tokens", type=int, default=8192, help="a response")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--keep", type=int, default=4, help="capacity, in steps' worth of tokens")
    parser.add_argument("--epoch", type=int, default=2, help="steps after which the same prompts come again")
    parser.add_argument("--choice", default="entropy")
    parser.add_argument("--many", type=int, default=1_000_000, help="1k-token responses for the memory measurement")
    parser.add_argument(
        "--step-seconds", type=float, default=160.0, help="a step's time; 160: 8k tokens at 50 a second"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "arguments": {k: v if isinstance(v, int | float) else str(v) for k, v in vars(args).items()},
        "steps": apart(run_steps, args),
        "many": apart(run_many, args),
    }
    results["step_s"] = sum(results["steps"][f"{name}_s"] for name in ("choose", "add", "expire"))
    results["share"] = results["step_s"] / args.step_seconds
    (args.out / "store.json").write_text(json.dumps(results, indent=1))
    report(results, args.step_seconds)


if __name__ == "__main__":
    main()
