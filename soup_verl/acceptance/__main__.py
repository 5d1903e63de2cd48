"""What works on this machine's GPU: `scripts/gpu_acceptance.sh` is the way to run it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from soup_verl.acceptance import attention, stack, update, weights
from soup_verl.acceptance.installed import installed
from soup_verl.acceptance.outcome import FAIL, SKIP, Check, Outcome, carry_out
from soup_verl.records.files import write_json
from soup_verl.tasks.command_line import Parser

KEPT = tuple(
    Check(f"kept policies, {strategy}, ranks: {ranks}", partial(weights.check, strategy=strategy, ranks=ranks))
    for strategy in weights.STRATEGIES
    for ranks in (1, 2)
)
CHECKS = (
    Check("flash-attn against sdpa, log-probs", attention.check),
    Check("objective in bf16 against fp32 on the CPU", update.check),
    *KEPT,
    Check("three steps, lookahead and snapshot", stack.check),
)


def verdict(outcomes: Iterable[Outcome], *, without_gpu: bool) -> str | None:
    """What is wrong, or nothing."""
    outcomes = list(outcomes)
    if failed := [o.check for o in outcomes if o.result == FAIL]:
        return f"failed: {', '.join(failed)}"
    if not without_gpu and not any(o.device == "cuda" and o.result != SKIP for o in outcomes):
        return "nothing ran on a GPU: torch sees none; --cpu runs what can be run without"
    return None


def as_line(outcome: Outcome) -> str:
    told = outcome.told.replace("\n", "\n    ")
    return f"{outcome.result}  {outcome.seconds:6.1f} s  {outcome.device:4}  {outcome.check:42}  {told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU; what needs a GPU is skipped")
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance.json"), help="JSON (default: %(default)s)")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not given.cpu else "cpu")

    found = installed()
    print("\n".join(f"{name:14} {value}" for name, value in found.items()), end="\n\n", flush=True)
    outcomes = []
    for check in CHECKS:
        outcomes.append(carry_out(check, device))
        print(as_line(outcomes[-1]), flush=True)
    wrong = verdict(outcomes, without_gpu=given.cpu)
    write_json(given.out, {"installed": found, "checks": [asdict(o) for o in outcomes], "wrong": wrong})
    print(f"\n{wrong or 'all that ran passed'}; {given.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
