"""SIGKILL and SIGSTOP to processes of a real run at seeded moments, and nobody who starts it again.

    python -m tests.faults.unattended --kills 30 --stalls 10 --seed 0 --out runs/unattended [KEY=VALUE ...]

One start of the run with `soup.restarts`, one fault after the other; it must come to its end by itself, with every
prompt trained exactly once in every epoch. `faults.json` in --out has every fault and what the run said of it. A run
whose driver is stopped goes on to its end and stalls there, so that comes last, where stalls are asked for. Without its
GCS server a run goes on for a minute, which may be to its end with the small model: `tests.faults.kills` kills that.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from tests.e2e import assets
from tests.e2e.launch import PREFIXES, launch, survivors
from tests.faults.kills import STAGES, TARGETS, Fault, Faults, unfair_epochs

NOT_MISSED = ("driver", "GCS server", "Ray agent")
"""What a run can go without until its end."""
STALL_MINUTES = {"set_up": 2, "rollout": 0.5, "update": 0.5, "weight_sync": 0.25}
"""Many times what the small model needs."""
KEPT = 3  # checkpoints


def plan(kills: int, stalls: int, seed: int) -> list[Fault]:
    """Every target comes once before one comes again, killed and stopped; steps are ahead of the newest checkpoint."""
    draw = random.Random(seed)

    def some(count: int, targets: list[str], how: str) -> list[Fault]:
        names = [name for _ in range(count) for name in draw.sample(targets, len(targets))][:count]
        return [
            Fault(name, draw.randint(1, 3), draw.choice(STAGES), draw.choice([0, draw.uniform(0, 0.6)]), how)
            for name in names
        ]

    mixed = some(kills, [name for name in TARGETS if name != "GCS server"], "SIGKILL")
    mixed += some(max(stalls - 1, 0), [name for name in TARGETS if name not in NOT_MISSED], "SIGSTOP")
    draw.shuffle(mixed)
    return [*mixed, *[Fault("driver", 1, "update", how="SIGSTOP")][:stalls]]


def main() -> None:
    """Do it, and say what happened."""
    parser = argparse.ArgumentParser(description="Kill and stop processes of a run that looks after itself.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stalls", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if not (out / "assets").exists():
        assets.make(out / "assets")
    planned = plan(arguments.kills, arguments.stalls, arguments.seed)
    steps = 3 * (len(planned) + 1)  # whole epochs, and enough for any plan
    faults, began = Faults(planned, ahead=True, last=steps - 1), time.monotonic()
    run = launch(
        out / "assets",
        out / "run",
        *PREFIXES,
        f"trainer.total_training_steps={steps}",
        "trainer.save_freq=1",
        f"trainer.max_actor_ckpt_to_keep={KEPT}",
        "actor_rollout_ref.actor.optim.lr=3e-5",
        f"soup.restarts={len(planned)}",
        *(f"soup.stall_minutes.{key}={value}" for key, value in STALL_MINUTES.items()),
        *arguments.overrides,
        fault=faults,
        limit=300 * (len(planned) + 1),
    )
    restarts = json.loads((out / "run" / "run.json").read_text()).get("restarts", [])
    each = [
        {"target": f.target, "how": f.how, "step": f.step, "stage": f.stage, "delay": f.delay, "hit": f.at is not None}
        | (restarts[place] if place < len(restarts) else {})
        for place, f in enumerate(faults.done)
    ]
    (out / "faults.json").write_text(json.dumps(each, indent=1) + "\n")
    unfair = unfair_epochs(run, steps) if run.code == 0 else None
    left = survivors(out / "run", within=90)
    kept = len(list((out / "run").glob("global_step_*/actor")))
    print(
        f"{sum(f['hit'] for f in each)} of {len(planned)} faults hit, {len(restarts)} restarts; code {run.code} after "
        f"{time.monotonic() - began:.0f} s; unfair epochs: {unfair}; processes left: {left}; checkpoints: {kept}"
    )
    sys.exit(bool(run.code or unfair or left or kept > KEPT or len(restarts) != len(planned)))


if __name__ == "__main__":
    main()
