"""What the priority of prefix requests changes where slots of the rollout engine are scarce.

    python scripts/bench_priority.py --out runs/bench_priority       # about 20 minutes on 2 cores

Runs of `bench_overhead.py`'s kind: blocks of GRPO and look-ahead steps alternate, and within the latter, steps with
priority (even) and steps without (odd). Responses end by themselves, so lengths differ. Prints for each kind of step
its duration, how long requests waited for their first token, and when the last of them ended; writes `priority.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from bench_overhead import AGE, Workload, kind_of, make_model, run

WORKLOADS = {
    "queue": (16, Workload(3, 128, 4, 32, 8, 96, 4, 48, 38, "256 responses of up to 96 tokens share 16 slots")),
    "full": (64, Workload(3, 128, 4, 8, 8, 256, 16, 128, 50, "64 responses of up to 256 tokens, a slot for each")),
}
"""Name -> slots of the engine, and the size of a step."""
AGENTS = 2


def by_priority(step: int) -> bool:
    """Whether prefix requests of this step have the lower priority."""
    return step % 2 == 0


def arm_of(step: int) -> str | None:
    """`grpo`, `first come`, `priority`, or None for a step in between."""
    kind = kind_of(step, "lookahead")
    return kind if kind != "soup" else "priority" if by_priority(step) else "first come"


def times_of(requests: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of one step, in seconds from its first request: mean wait for a first token and end of the last, by kind."""
    requests = list(requests)
    start = min(r["came"] for r in requests)
    times: dict[str, float] = {}
    own, prefixes = ([r for r in requests if r["prefix"] is wanted] for wanted in (False, True))
    for kind, some in (("own", own), ("prefix", prefixes)):
        if some:
            times[f"{kind}_wait"] = sum(r["began"] - r["came"] for r in some) / len(some)
            times[f"{kind}_last"] = max(r["ended"] for r in some) - start
    if own and prefixes:
        in_order = sorted(requests, key=lambda r: r["began"])[: len(own)]
        times["prefixes_among_first"] = sum(r["prefix"] for r in in_order) / len(own)
    return times


def summarize(
    metrics: Mapping[int, Mapping[str, float]], requests: Mapping[int, list[dict]]
) -> dict[str, dict[str, float]]:
    """Medians over the steps of each arm; the first two steps warm up, the last look nowhere."""
    arms: dict[str, list[dict[str, float]]] = defaultdict(list)
    for step in sorted(metrics):
        if (arm := arm_of(step)) and step > 2 and step + AGE <= max(metrics):
            values = metrics[step]
            seconds = {"step": values["timing_s/step"], "gen": values["timing_s/gen"]}
            arms[arm].append(times_of(requests[step]) | seconds | {"tokens": values["soup/decode_tokens_total"]})
    return {
        arm: {"steps": len(steps)} | {name: round(median(s[name] for s in steps), 3) for name in steps[0]}
        for arm, steps in arms.items()
    }


def measure(folder: Path, slots: int, workload: Workload) -> dict[str, dict[str, float]]:
    """One run, and what `summarize` says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder, workload)
    file = folder / "requests.jsonl"
    file.unlink(missing_ok=True)
    os.environ["BENCH_REQUESTS"] = str(file)
    rollout = "actor_rollout_ref.rollout"
    more = {
        f"{rollout}.max_num_seqs": slots,
        f"{rollout}.agent.num_workers": AGENTS,
        f"{rollout}.ignore_eos": False,
        "actor_rollout_ref.model.external_lib": "bench_priority_server",
    }
    metrics, _ = run(folder, "lookahead", workload, more)
    requests: dict[int, list[dict]] = defaultdict(list)
    for line in file.read_text().splitlines():
        request = json.loads(line)
        requests[request["step"]].append(request)
    return summarize(metrics, requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_priority"))
    parser.add_argument("--model", choices=sorted(WORKLOADS), action="append")
    args = parser.parse_args()
    results = {name: measure(args.out.absolute() / name, *WORKLOADS[name]) for name in args.model or WORKLOADS}
    (args.out / "priority.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
