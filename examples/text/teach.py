"""Make the model and data of this example: a tiny Qwen2, taught to name colours as it is told to.

    python examples/text/teach.py --out data/text

A question is a short line of instructions, and its gold names a check of `soup_verl.tasks.text.checks` for each:

    red, not blue, 4 words or more, in quotes        "gold red pink grey"

Six in ten of the demonstrations do not follow the last instruction, the form: reinforcement learning can mend that. No
question is both trained on and validated.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import pandas as pd
import teaching
from tiny_model import Demonstration, WarmStart, build_tokenizer

COLOURS = ("red", "blue", "green", "gold", "pink", "grey", "black", "white")
COUNTS = (3, 4, 5)
TRAIN, VAL = 384, 64
HASTY = 0.6


@dataclass(frozen=True)
class Form:
    """The last instruction: how it is asked, its check and the arguments of that, and colours that follow it."""

    asked: str
    check: str
    arguments: Mapping[str, Any]
    follow: Callable[[list[str]], str]


FORMS = (
    Form("in quotes", "startend:quotation", {}, lambda words: f'"{" ".join(words)}"'),
    Form("with a title", "detectable_format:title", {}, lambda words: f"<<{words[0]}>> {' '.join(words[1:])}"),
    Form("end with done", "startend:end_checker", {"end_phrase": "done"}, lambda words: f"{' '.join(words)} done"),
)


@dataclass(frozen=True)
class Wish:
    """What is asked for: a colour that is named and one that is not, the fewest words, and a form."""

    named: str
    forbidden: str
    count: int
    form: Form

    @property
    def question(self) -> str:
        """As the user says it."""
        return f"{self.named}, not {self.forbidden}, {self.count} words or more, {self.form.asked}"

    @property
    def gold(self) -> str:
        """As the domain `instructions` reads it."""
        checks: dict[str, Mapping[str, Any]] = {
            "keywords:existence": {"keywords": [self.named]},
            "keywords:forbidden_words": {"forbidden_words": [self.forbidden]},
            "length_constraints:number_words": {"num_words": self.count, "relation": "at least"},
            self.form.check: self.form.arguments,
        }
        return json.dumps({"instruction_id_list": list(checks), "kwargs": list(checks.values())})


def wishes() -> list[Wish]:
    """All of them."""
    pairs = itertools.permutations(COLOURS, 2)
    return [Wish(*pair, count, form) for pair, count, form in itertools.product(pairs, COUNTS, FORMS)]


def demonstrate(wish: Wish, rng: random.Random, *, hasty: float = 0.0) -> Demonstration:
    """Follow every instruction; with the probability `hasty` all but the form."""
    others = [rng.choice([c for c in COLOURS if c != wish.forbidden]) for _ in range(wish.count - 1)]
    words = [*others, wish.named]
    rng.shuffle(words)
    return Demonstration(wish.question, " ".join(words) if rng.random() < hasty else wish.form.follow(words))


def rows(chosen: list[Wish], split: str) -> pd.DataFrame:
    """Wishes as verl's data set expects them, one row a prompt."""
    asked = ((wish.question, wish.gold) for wish in chosen)
    return teaching.rows(asked, split, data_source="colours", ability="instructions", domain="instructions")


def deal(seed: int) -> tuple[list[Wish], list[Wish], random.Random]:
    """Validation's wishes, the others, and the generator that goes on from there."""
    rng, every = random.Random(seed), wishes()
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
