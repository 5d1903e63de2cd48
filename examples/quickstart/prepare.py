"""Make the quickstart's model and data: a one-million-parameter Qwen2 that adds badly, and sums to practise on.

    python examples/quickstart/prepare.py --out data/quickstart

The task is `chain_sum` of reasoning-gym, asked as "27+48-35=". The model answers with the running totals, one a line,
and then the result alone:

    27+48=75
    75-35=40
    40

Data flow; every name is a function of this file:

    draw_problems -> sft, probe, val, train: no problem is in two of them
    build_tokenizer, build_model -> warm_start (learns sft, stops by probe) -> pass_rates (val)
    prepare writes DIR/model, DIR/train.parquet, DIR/val.parquet and, last of all, DIR/prepare.json

The warm start stops early on purpose: what is left to learn is what reinforcement learning is to show.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import reasoning_gym
import torch
from reward import compute_score
from rich.progress import Progress
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from transformers import Qwen2Tokenizer

DATA_SOURCE = "chain_sum"
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100  # the label cross-entropy skips


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is made; `prepare.json` repeats it.

    Sizes are counts of problems, steps or tokens. `sft_target` is the mean probability of the whole worked solution at
    which the warm start stops; pass@1 lies a little above it.
    """

    seed: int = 0
    terms: int = 4
    min_digits: int = 1
    max_digits: int = 2
    train_problems: int = 4096
    val_problems: int = 128
    probe_problems: int = 256
    sft_batch: int = 64
    sft_max_steps: int = 800
    sft_lr: float = 2e-3
    sft_target: float = 0.3
    samples: int = 8
    max_prompt_tokens: int = 48
    max_response_tokens: int = 48


@dataclass(frozen=True)
class Problem:
    """One sum: what is asked ("27+48-35="), the worked solution, and the result alone."""

    question: str
    solution: str
    answer: str


def work_out(expression: str) -> Problem:
    """Write the running totals of `expression` ("27 + 48 - 35": numbers and operators, spaces between)."""
    total_text, *rest = expression.split()
    total, lines = int(total_text), []
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(number) if operator == "+" else total - int(number)
        lines.append(f"{total}{operator}{number}={after}")
        total = after
    return Problem(expression.replace(" ", "") + "=", "\n".join([*lines, str(total)]), str(total))


def draw_problems(settings: Settings) -> dict[str, list[Problem]]:
    """Draw distinct problems from reasoning-gym and deal them to the splits `probe`, `val`, `train` and `sft`."""
    counts = {
        "probe": settings.probe_problems,
        "val": settings.val_problems,
        "train": settings.train_problems,
        "sft": settings.sft_batch * settings.sft_max_steps,
    }
    wanted = sum(counts.values())
    source = reasoning_gym.create_dataset(
        "chain_sum",
        size=2 * wanted,
        seed=settings.seed * 10_000_000,  # reasoning-gym draws problem i from seed + i
        min_terms=settings.terms,
        max_terms=settings.terms,
        min_digits=settings.min_digits,
        max_digits=settings.max_digits,
    )
    distinct: dict[str, Problem] = {}
    for entry in source:
        problem = work_out(entry["metadata"]["expression"])
        assert problem.answer == entry["answer"], f"worked out {problem}, reasoning-gym says {entry['answer']}"
        distinct.setdefault(problem.question, problem)
        if len(distinct) == wanted:
            break
    problems = iter(distinct.values())
    return {split: [next(problems) for _ in range(count)] for split, count in counts.items()}


def rows(problems: list[Problem], split: str) -> pd.DataFrame:
    """Lay problems out as verl's data set expects them, one row a prompt."""
    return pd.DataFrame(
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": problem.question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split},
        }
        for index, problem in enumerate(problems)
    )


def byte_symbols() -> list[str]:
    """Return the 256 printable characters that stand for the bytes 0..255 in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]


def build_tokenizer() -> Qwen2Tokenizer:
    """Build a byte-level tokenizer: one token a byte, one a chat role, three special ones.

    transformers 5 builds its own pre-tokenizer for Qwen2, so the vocabulary alone decides. No merge crosses a digit, a
    sign or a newline: each is one token wherever it stands.
    """
    merges = dict.fromkeys((role[:end], role[end]) for role in ROLES for end in range(1, len(role)))
    tokens = [PAD, START, END, *byte_symbols(), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=list(merges),
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Build a randomly initialised float32 Qwen2 of about a million parameters, heads of 32 dimensions."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """Tokenise the question the way verl does, up to where the assistant's answer begins."""
    messages = [{"role": "user", "content": problem.question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def solution_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """Tokenise the worked solution and the token that ends it."""
    return [*tokenizer.encode(problem.solution, add_special_tokens=False), tokenizer.eos_token_id]


def teacher_batch(tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels, both (batch, length), padded on the right; labels are IGNORED off the solution."""
    pairs = [(prompt_ids(tokenizer, problem), solution_ids(tokenizer, problem)) for problem in problems]
    length = max(len(prompt) + len(solution) for prompt, solution in pairs)
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, solution) in enumerate(pairs):
        end = len(prompt) + len(solution)
        ids[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return ids, labels


def solution_nll(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-probability of each solution token, (batch, length - 1), in nats; 0 off the solution."""
    logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )


@torch.no_grad()
def solution_probability(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the probability of sampling the whole worked solution at temperature 1, averaged over the batch.

    A lower bound on pass@1 without sampling noise: it leaves out answers that are right by another way.
    """
    return solution_nll(model, ids, labels).sum(dim=1).neg().exp().mean().item()


def warm_start(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, splits: dict[str, list[Problem]], settings: Settings
) -> int:
    """Train on worked solutions, each seen once, until the probe's solution probability reaches the target.

    The loss is the mean over the solution tokens of a batch. Returns the number of steps taken.

    Raises:
        ValueError: the target was not reached in `sft_max_steps`.
    """
    probe = teacher_batch(tokenizer, splits["probe"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.sft_lr, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    with Progress(transient=True) as progress:
        bar = progress.add_task("warm start", total=settings.sft_target)
        for step in range(1, settings.sft_max_steps + 1):
            batch = splits["sft"][(step - 1) * settings.sft_batch : step * settings.sft_batch]
            ids, labels = teacher_batch(tokenizer, batch)
            loss = solution_nll(model, ids, labels).sum() / (labels != IGNORED).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if step % 10 == 0:
                reached = solution_probability(model, *probe)
                print(step, round(loss.item(), 3), round(reached, 3), file=sys.stderr)
                progress.update(bar, completed=min(reached, settings.sft_target))
                if reached >= settings.sft_target:
                    return step
    raise ValueError(f"warm start: solution probability {reached:.2f} after {step} steps, below {settings.sft_target}")
