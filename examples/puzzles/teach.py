"""Teach the quickstart's tiny Qwen2 how answers to puzzles are written, and some of them.

    python examples/puzzles/teach.py --rows data/reasoning-gym-chain_sum.parquet --out data/model

The rows are what `soup_verl.prepare_data --dataset reasoning-gym:chain_sum` wrote. A demonstration is
`<answer>15</answer>`; six in ten hold the answer to another puzzle, so that the format is learnt and the task left to
reinforcement learning.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared
sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))

import pandas as pd
import torch
from prepare import IGNORED, Problem, Settings, build_model, build_tokenizer, solution_ids, warm_start
from transformers import Qwen2Tokenizer

WRONG = 0.6  # share of the demonstrations


def demonstrations(rows: pd.DataFrame, count: int, seed: int) -> list[tuple[list[dict[str, str]], str]]:
    """`count` pairs of a prompt, chat messages, and what to say to it."""
    draw = random.Random(seed)
    answers = [json.loads(reward["ground_truth"])["answer"] for reward in rows["reward_model"]]
    prompts = [list(prompt) for prompt in rows["prompt"]]
    made = []
    for _ in range(count):
        i = draw.randrange(len(prompts))
        answer = draw.choice(answers) if draw.random() < WRONG else answers[i]
        made.append((prompts[i], f"<answer>{answer}</answer>"))
    return made


def batch_of(tokenizer: Qwen2Tokenizer, pairs: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (batch, length), padded on the right; labels are IGNORED off the answer."""
    asked = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=True, return_dict=False) for p, _ in pairs
    ]
    said = [solution_ids(tokenizer, Problem("", text, "")) for _, text in pairs]
    length = max(map(len, map(list.__add__, asked, said)))
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, answer) in enumerate(zip(asked, said, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end], labels[row, len(prompt) : end] = torch.tensor(prompt + answer), torch.tensor(answer)
    return ids, labels


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    parser = argparse.ArgumentParser(description="Make the model of the example with puzzles.")
    parser.add_argument("--rows", type=Path, required=True, help="puzzles that prepare_data wrote")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--sft-steps", type=int, default=100, help="steps of the warm start")
    arguments = parser.parse_args()
    if (arguments.out / "config.json").exists():
        print(f"{arguments.out} is complete: reused")
        return
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    settings = Settings(sft_steps=arguments.sft_steps, sft_batch=16)
    torch.manual_seed(settings.seed)
    shown = demonstrations(pd.read_parquet(arguments.rows), settings.sft_batch * settings.sft_steps, settings.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    loss = warm_start(model, tokenizer, shown, settings, batch_of=batch_of)  # type: ignore[arg-type]
    tokenizer.save_pretrained(arguments.out)
    model.save_pretrained(arguments.out)
    print(json.dumps({"sft_steps": arguments.sft_steps, "sft_loss": round(loss, 3)}))


if __name__ == "__main__":
    main()
