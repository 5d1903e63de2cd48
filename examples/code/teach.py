"""Make the model and data of this example: the quickstart's tiny Qwen2, taught to write one-line programs.

    python examples/code/teach.py --out data/code

A question is a formula in words, and its tests are three inputs with what a program must print:

    a plus b times c minus a        ```python
                                    a,b,c=map(int,input().split())
                                    print(a+b*c-a)
                                    ```

Six in ten of the demonstrations leave the last term out: reinforcement learning can mend that. No question is both
trained on and validated.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import pandas as pd
import teaching
from formulas import HEAD, TAIL, Formula, formulas, in_words, tests_of
from tiny_model import WarmStart, build_tokenizer

TERMS = 4
TRAIN, VAL = 512, 64
HASTY = 0.6


@dataclass(frozen=True)
class Task:
    """A question and a demonstration of its answer; `gold` is what a program is judged by."""

    question: str
    solution: str
    gold: str


def task(formula: Formula, rng: random.Random, *, hasty: float = 0.0) -> Task:
    """A formula as a task; with the probability `hasty` the demonstration leaves the last term out."""
    shown = formula[:-2] if rng.random() < hasty else formula
    return Task(in_words(formula), f"{HEAD}print({''.join(shown)}){TAIL}", tests_of(formula, rng))


def rows(tasks: list[Task], split: str) -> pd.DataFrame:
    """Tasks as verl's data set expects them, one row a prompt."""
    asked = ((task.question, task.gold) for task in tasks)
    return teaching.rows(asked, split, data_source="formulas", ability="code", domain="code")


def teach(out: Path, settings: WarmStart) -> dict[str, Any]:
    """Write `out`/model, train.parquet, val.parquet and, last of all, a report, which is returned."""
    rng = random.Random(settings.seed)
    all_formulas = formulas(TERMS)
    rng.shuffle(all_formulas)
    val, train, rest = all_formulas[:VAL], all_formulas[VAL:][:TRAIN], all_formulas[VAL:]
    shown = [task(rng.choice(rest), rng, hasty=HASTY) for _ in range(settings.sft_steps * settings.sft_batch)]
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([HEAD, TAIL])  # what all programs have in common is a token each
    chosen = {"train": train, "val": val}
    splits = {split: rows([task(formula, rng) for formula in some], split) for split, some in chosen.items()}
    return teaching.teach(out, tokenizer, shown, settings, splits=splits)


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    arguments = teaching.parser("the model and data of the example with programs", sft_steps=150).parse_args()
    teaching.once(arguments.out, lambda: teach(arguments.out, WarmStart(sft_steps=arguments.sft_steps)))


if __name__ == "__main__":
    main()
