"""Make the model and data of this example: a tiny Qwen2, taught to name colours as it is told to.

    python examples/text/teach.py --out data/text

A question is a short line of instructions, and its gold names a check of `soup_verl.tasks.text.checks` for each:

    red, not blue, 4 words or more, in quotes        "gold red pink grey"

Six in ten of the demonstrations do not follow the last instruction, the form: reinforcement learning can mend that. No
question is both trained on and validated.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import pandas as pd
import teaching
from colours import Wish, fulfil, wishes
from tiny_model import Demonstration, WarmStart, build_tokenizer

TRAIN, VAL = 384, 64
HASTY = 0.6


def demonstrate(wish: Wish, rng: random.Random, *, hasty: float = 0.0) -> Demonstration:
    """Follow every instruction; with the probability `hasty` all but the form."""
    return Demonstration(wish.question, fulfil(wish, rng, hasty=hasty))


def rows(chosen: list[Wish], split: str) -> pd.DataFrame:
    """Wishes as verl's data set expects them, one row a prompt."""
    asked = ((wish.question, wish.gold) for wish in chosen)
    return teaching.rows(asked, split, data_source="colours", ability="instructions", domain="instructions")


def deal(seed: int) -> tuple[list[Wish], list[Wish], random.Random]:
    """Validation's wishes, the others, and the generator that goes on from there."""
    rng, every = random.Random(seed), wishes(named=1)
    rng.shuffle(every)
    return every[:VAL], every[VAL:], rng


def teach(out: Path, settings: WarmStart) -> dict[str, Any]:
    """Write `out`/model, train.parquet, val.parquet and, last of all, a report, which is returned."""
    val, rest, rng = deal(settings.seed)
    count = settings.sft_steps * settings.sft_batch
    shown = [demonstrate(rng.choice(rest), rng, hasty=HASTY) for _ in range(count)]
    splits = {"train": rows(rest[:TRAIN], "train"), "val": rows(val, "val")}
    return teaching.teach(out, build_tokenizer(), shown, settings, splits=splits)


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    arguments = teaching.parser("the model and data of the example with instructions", sft_steps=150).parse_args()
    teaching.once(arguments.out, lambda: teach(arguments.out, WarmStart(sft_steps=arguments.sft_steps)))


if __name__ == "__main__":
    main()
