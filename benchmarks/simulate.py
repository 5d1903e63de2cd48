"""The search instrument: one method, one seed, one process of plain PyTorch. It is not verl, and says so.

    python -m benchmarks.simulate --assets data/benchmarks/countdown --out runs/sim/soup_0 --seed 0 \\
        --set steps=400 soup.mixed_fraction=0.5 soup.source=lookahead soup.lookahead.age=64

Frontiers over many settings and seeds need thousands of short steps, at 2 to 3 seconds each on the real stack. Here a
step takes about a tenth of that, with everything that SOUP itself decides and computes (`soup_verl.method`); sampling,
rewards, verl's clipped loss and AdamW are done in place. `docs/evidence.md` says how far both instruments agree on the
points that both have run.

Writes OUT/metrics.jsonl (verl's key names) and, last of all, OUT/result.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import yaml

from benchmarks import sampling
from benchmarks.run_inputs import Assets, RunSettings, nested, parse_settings
from benchmarks.simulation import Simulation
from soup_verl.records.files import write_json

INSTRUMENT = "search instrument (plain PyTorch, one process)"
RESULT = "result.json"
METRICS = "metrics.jsonl"
MEANS = {
    "prefix_kl": "soup/prefix_kl_k3",
    "prefix_gradient_lost": "soup/prefix_gradient_lost_share",
    "prefix_tokens_share": "soup/prefix_tokens_share",
    "train_entropy": "actor/entropy",
    "train_reward": "critic/score/mean",
    "reward_std": "critic/score/std",
    "response_length": "response_length/mean",
}
"""Reported as means over the steps that logged them."""
LAST = 50
"""Steps that `reward_at_end` is a mean of."""
DECODED = "soup/decode_tokens_total"
"""Response tokens that a step had to decode."""


def validate(simulation: Simulation, rows: Sequence[dict[str, Any]] | None = None) -> dict[str, float]:
    """pass@k and the rest on the validation questions, or on others, at temperature 1."""
    assets, settings = simulation.assets, simulation.settings
    rows = assets.val if rows is None else rows
    return sampling.evaluate(
        simulation.weights,
        simulation.shape,
        [row["ids"] for row in rows],
        [row["question"] for row in rows],
        task=assets.task,
        tokens=assets.tokens,
        response_length=assets.response_length,
        samples=settings.samples,
        seed=settings.seed,
    )


def run(assets: Assets, settings: RunSettings, out: Path, label: dict[str, Any]) -> dict[str, Any]:
    """Train, validate now and then, write both files under `out` and return the result.

    Args:
        label: what the point is called, copied into the result: task, method, side, knob and the like.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    simulation = Simulation(assets, settings)
    history: list[dict[str, float]] = []
    checkpoints = []
    with (out / METRICS).open("w") as log:
        for step in range(1, settings.steps + 1):
            data = simulation.step(step)
            history.append(data)
            if step % settings.evaluate_every == 0 or step == settings.steps:
                checkpoints.append({"step": step} | validate(simulation))
                data = data | {f"val/{key}": value for key, value in checkpoints[-1].items() if key != "step"}
            log.write(json.dumps({"step": step, "data": data}) + "\n")
    trained = validate(simulation, assets.train[: len(assets.val)])
    checkpoints[-1] |= {f"trained_{key}": value for key, value in trained.items() if key.startswith("pass@")}
    result = {
        "instrument": INSTRUMENT,
        "task": assets.task,
        **label,
        "seed": settings.seed,
        "settings": asdict(settings),
        "start": assets.start,
        "checkpoints": checkpoints,
        "decode_tokens": sum(data[DECODED] for data in history),
        "seconds": time.perf_counter() - started,
        **summary(history),
        "curve": curve(history),
    }
    write_json(out / RESULT, result)
    return result


def summary(history: list[dict[str, float]]) -> dict[str, float | None]:
    """Means over the steps, None for what was never logged; of a step's seconds the median: a pause leaves it alone.

    `reward_at_end` and `reward_fall` are of the on-policy responses: mixed ones owe a part of theirs to another policy.
    """
    found: dict[str, float | None] = {}
    for name, key in MEANS.items():
        values = [data[key] for data in history if key in data]
        found[name] = sum(values) / len(values) if values else None
    rewards = [data["soup/onpolicy_reward_mean"] for data in history if "soup/onpolicy_reward_mean" in data]
    at_end = mean(rewards[-LAST:]) if rewards else None
    return found | {
        "reward_at_end": at_end,
        "reward_fall": largest_fall(rewards),
        "step_seconds": median(d["timing_s/step"] for d in history),
    }


def curve(history: Sequence[dict[str, float]], width: int = 25) -> list[dict[str, float]]:
    """The on-policy responses' mean reward in each `width` steps, and the tokens decoded until their end."""
    found, tokens = [], 0.0
    for start in range(0, len(history), width):
        part = history[start : start + width]
        tokens += sum(data[DECODED] for data in part)
        rewards = [data["soup/onpolicy_reward_mean"] for data in part if "soup/onpolicy_reward_mean" in data]
        if rewards:
            found.append({"step": start + len(part), "decode_tokens": tokens, "reward": mean(rewards)})
    return found


def largest_fall(values: Sequence[float], width: int = 20) -> float:
    """How far means of `width` values in a row ever fall below an earlier one: 0 for a curve that only rises."""
    peak, fall = -math.inf, 0.0
    for start in range(0, len(values) - width + 1, width):
        level = mean(values[start : start + width])
        peak = max(peak, level)
        fall = max(fall, peak - level)
    return fall


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """ "a.b=1" as {"a.b": 1}; values are read as YAML.

    Raises:
        ValueError: there is no "=".
    """
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--set {wrong[0]}: expected key=value")
    split = (pair.partition("=") for pair in pairs)
    return {key: yaml.safe_load(value) for key, _, value in split}


def main() -> None:
    """Parse the command line, run one point, print its last validation."""
    parser = argparse.ArgumentParser(description="One point of the search instrument.")
    parser.add_argument("--assets", type=Path, required=True, help="folder that benchmarks.prepare wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="unnamed", help="a name for the result")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="RunSettings, soup.* and loss.*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        settings = parse_settings(nested(assignments(arguments.set)) | {"seed": arguments.seed})
        result = run(Assets.read(arguments.assets), settings, arguments.out, {"method": arguments.method})
    except (ValueError, OSError) as error:
        sys.exit(f"simulate: {error}")
    print(json.dumps(result["checkpoints"][-1] | {"seconds": round(result["seconds"], 1)}))


if __name__ == "__main__":
    main()
