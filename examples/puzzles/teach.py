"""Teach the quickstart's tiny Qwen2 how answers to puzzles are written, and some of them.

    python examples/puzzles/teach.py --rows data/reasoning-gym-chain_sum.parquet --out data

The rows are what `soup_verl.prepare_data --dataset reasoning-gym:chain_sum` wrote. A demonstration is
`<answer>15</answer>`; six in ten hold the answer to another puzzle, so that the format is learnt and the task left to
reinforcement learning.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import pandas as pd
import teaching
from tiny_model import Demonstration, WarmStart, build_tokenizer

WRONG = 0.6  # share of the demonstrations


def demonstrations(rows: pd.DataFrame, count: int, seed: int) -> list[Demonstration]:
    """`count` of them, of puzzles that are asked in a single turn."""
    draw = random.Random(seed)
    answers = [json.loads(reward["ground_truth"])["answer"] for reward in rows["reward_model"]]
    questions = [turn["content"] for (turn,) in rows["prompt"]]
    made = []
    for _ in range(count):
        i = draw.randrange(len(questions))
        answer = draw.choice(answers) if draw.random() < WRONG else answers[i]
        made.append(Demonstration(questions[i], f"<answer>{answer}</answer>"))
    return made


def teach(out: Path, rows: pd.DataFrame, settings: WarmStart) -> dict[str, Any]:
    """Write `out`/model and, last of all, a report, which is returned."""
    shown = demonstrations(rows, settings.sft_batch * settings.sft_steps, settings.seed)
    return teaching.teach(out, build_tokenizer(), shown, settings)


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    parser = teaching.parser("the model of the example with puzzles", sft_steps=100)
    parser.add_argument("--rows", type=Path, required=True, help="puzzles that prepare_data wrote")
    arguments = parser.parse_args()
    settings = WarmStart(sft_steps=arguments.sft_steps, sft_batch=16)
    teaching.once(arguments.out, lambda: teach(arguments.out, pd.read_parquet(arguments.rows), settings))


if __name__ == "__main__":
    main()
