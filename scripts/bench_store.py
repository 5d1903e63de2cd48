"""What the store of replayed responses costs: seconds a step, seconds a checkpoint, and resident memory.

    python scripts/bench_store.py --out runs/bench_store    # 128 prompts x 8 responses x 8k tokens a step
    python scripts/bench_store.py --prompts 16 --tokens 512  # a second

Every step visits `--prompts` prompts, chooses half of `--n` responses of each and stores `--n` new ones; prompts come
round every `--epoch` steps. The capacity is that of `--keep` steps; the steps after these count, since each of them
evicts. Then everything is saved, loaded and expired at once. Tokens and log-probs are synthetic: Zipf ids, and
log-probs of which most are near 0. Prints a table and writes `store.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table

from soup_verl.method.history import PolicyResponse
from soup_verl.method.history.response_store import TOKEN_BYTES, ResponseStore
from soup_verl.method.mixing import stable_seed

MAX_SHARE = 0.01
"""Share of a step that the project promises the store not to exceed."""


def resident(field: str = "VmHWM:") -> int:
    """Bytes of RAM of this process: the most it has had, or with `VmRSS:` what it has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def synthetic(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and log-probs, (length,) each: 7 of 10 tokens are all but certain."""
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.zipf(1.2, length), 151_000).astype(np.int32)
    scale = np.where(rng.random(length) < 0.7, 0.005, 1.0)
    return ids, -rng.exponential(scale).astype(np.float32)


def batch_of(step: int, text: tuple[np.ndarray, np.ndarray], args: argparse.Namespace) -> list[list[PolicyResponse]]:
    """The responses of a step, by prompt: windows of a long text, so that making them costs nothing."""
    rng, groups = np.random.default_rng(step), []
    for i in range(args.prompts):
        key = f"{(step % args.epoch) * args.prompts + i}:{'0' * 32}"
        cuts = [slice(k, k + args.tokens) for k in rng.integers(0, len(text[0]) - args.tokens, args.n)]
        groups.append(
            [PolicyResponse(key, text[0][c], text[1][c], step - 1, float(rng.random() < 0.5), True) for c in cuts]
        )
    return groups


def visit(store: ResponseStore, groups: list[list[PolicyResponse]], args: argparse.Namespace) -> tuple[float, float]:
    """Seconds to choose and to add a step's responses."""

    def choose() -> None:
        for first, *_ in groups:
            seed = stable_seed(first.token_key, first.policy_version)
            chosen = store.choose(first.token_key, args.n // 2, choice=args.choice, seed=seed)
            assert first.policy_version < args.epoch or chosen, f"{first.token_key} is gone: --keep more than --epoch"

    def add() -> None:
        for response in sum(groups, []):
            store.add(response)

    return seconds(choose), seconds(add)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of each operation, and bytes."""
    capacity = args.keep * args.prompts * args.n * max(args.tokens, 1024)
    limits = {"capacity_tokens": capacity, "per_prompt": 2 * args.n, "max_policy_age": 0}
    text = synthetic(512 * args.tokens)
    before = resident("VmRSS:")
    store = ResponseStore(**limits | {"max_policy_age": None})
    visits = [visit(store, batch_of(step, text, args), args) for step in range(1, args.steps + 1)]
    full = visits[args.keep :]
    found = {"choose_s": mean(c for c, _ in full), "add_s": mean(a for _, a in full), "tokens": store.tokens}
    found |= {"memory_bytes": resident() - before, "bound_bytes": TOKEN_BYTES * capacity}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.parquet"
        found["save_s"] = seconds(lambda: store.save(path))
        found |= {
            "save_extra_bytes": resident() - before - found["memory_bytes"],
            "file_bytes": path.stat().st_size,
        }
        again = ResponseStore(**limits)
        found["load_s"] = seconds(lambda: again.load(path))
    found["expire_s"] = seconds(lambda: again.expire(args.steps))
    assert len(again) == 0, len(again)
    found["share"] = (found["choose_s"] + found["add_s"] + found["expire_s"]) / args.step_seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_store"))
    parser.add_argument("--prompts", type=int, default=128, help="a step")
    parser.add_argument("--n", type=int, default=8, help="responses a prompt")
    parser.add_argument("--tokens", type=int, default=8192, help="a response")
    parser.add_argument("--steps", type=int, default=10, help="more than --keep")
    parser.add_argument("--keep", type=int, default=4, help="capacity, in steps' worth of tokens")
    parser.add_argument("--epoch", type=int, default=2, help="steps after which the same prompts come again")
    parser.add_argument("--choice", default="entropy")
    parser.add_argument("--step-seconds", type=float, default=160.0, help="160: 8k tokens at 50 a second")
    args = parser.parse_args()
    found = measure(args)
    table = Table("measured", "value", f"share of a step of {args.step_seconds:g} s")
    for name in ("choose", "add", "expire"):
        table.add_row(f"{name}, a step", f"{found[name + '_s']:.4f} s", f"{found[name + '_s'] / args.step_seconds:.4%}")
    table.add_row("together", "", f"{found['share']:.4%} (at most {MAX_SHARE:.0%})")
    for name in ("save", "load"):
        table.add_row(f"{name} {found['tokens'] / 1e6:.1f}M tokens, a checkpoint", f"{found[name + '_s']:.2f} s", "")
    for name in ("bound", "memory", "save_extra", "file"):
        table.add_row(name, f"{found[name + '_bytes'] / 1e6:.1f} MB", "")
    Console().print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    report = {"cores": os.cpu_count(), "arguments": settings, "measured": found}
    (args.out / "store.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
