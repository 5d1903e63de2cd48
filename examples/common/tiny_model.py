"""A Qwen2 of a million parameters with a byte-level tokenizer, and its warm start: what the small examples and the
benchmarks begin with.

    build_tokenizer, build_model ──► warm_start(demonstrations) ──► a model that imitates them

Question and solution of a demonstration are tokenised as verl does it; `warm_start` takes another `encode` for others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared

import torch
from muon import Muon
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100  # the label cross-entropy skips

Encode = Callable[[PreTrainedTokenizerBase, Any], tuple[list[int], list[int]]]
"""Tokenizer, demonstration -> token ids and labels of the whole conversation; labels are IGNORED where nothing is
taught."""


@dataclass(frozen=True)
class Demonstration:
    """What the user asks, and what the model is taught to answer. Anything else that has both will do."""

    question: str
    solution: str


@dataclass(frozen=True)
class WarmStart:
    """How demonstrations are learnt: `sft_batch` a step; the learning rate of matrices inside the layers is Muon's."""

    seed: int = 0
    sft_batch: int = 32
    sft_steps: int = 250
    sft_lr: float = 5e-3
    sft_lr_matrices: float = 3e-2


def byte_symbols() -> list[str]:
    """Return the printable characters that stand for the bytes 0..255 in a byte-level vocabulary (GPT-2's table)."""
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


def build_model(
    tokenizer: Qwen2Tokenizer,
    *,
    hidden: int = 256,
    intermediate: int = 384,
    layers: int = 2,
    heads: int = 8,
    kv_heads: int = 8,
    positions: int = 256,
) -> Qwen2ForCausalLM:
    """Build a randomly initialised float32 Qwen2; by default of about a million parameters, heads of 32 dimensions."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # the fastest at this size; not written to config.json
    )
    model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def prompt_ids(tokenizer: PreTrainedTokenizerBase, shown: Demonstration) -> list[int]:
    """Tokenise the question the way verl does, up to where the assistant's answer begins."""
    messages = [{"role": "user", "content": shown.question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def solution_ids(tokenizer: PreTrainedTokenizerBase, shown: Demonstration) -> list[int]:
    """Tokenise the solution and the token that ends it."""
    return [*tokenizer.encode(shown.solution, add_special_tokens=False), tokenizer.eos_token_id]


def question_and_solution(tokenizer: PreTrainedTokenizerBase, shown: Demonstration) -> tuple[list[int], list[int]]:
    """Token ids of question and solution, and labels, IGNORED off the solution."""
    prompt, solution = prompt_ids(tokenizer, shown), solution_ids(tokenizer, shown)
    return prompt + solution, [IGNORED] * len(prompt) + solution


def batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (batch, length), padded on the right: ids with `pad`, labels with IGNORED."""
    length = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), length), pad)
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (tokens, taught) in enumerate(pairs):
        ids[row, : len(tokens)], labels[row, : len(tokens)] = torch.tensor(tokens), torch.tensor(taught)
    return ids, labels


def solution_nll(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-probability of the solution tokens, in nats, a mean over all of them in the batch.

    Padding stands on the right, where a causal model cannot see it: no attention mask is needed.
    """
    logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def build_optimizers(model: Qwen2ForCausalLM, settings: WarmStart) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest: about half the steps AdamW alone takes here."""
    layers = {name for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2}
    matrices = [weight for name, weight in model.named_parameters() if name in layers]
    others = [weight for name, weight in model.named_parameters() if name not in layers]
    return [
        Muon(matrices, lr=settings.sft_lr_matrices, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.sft_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def warm_start(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Any],
    settings: WarmStart,
    encode: Encode = question_and_solution,
) -> float:
    """Train on the demonstrations, `sft_batch` a step, each seen once; return the last loss.

    The loss is the mean over the taught tokens of a batch, in nats; the learning rates rise for 20 steps and fall
    linearly to 0 at the last step.
    """
    optimizers = build_optimizers(model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda k: min(1.0, (k + 1) / 20) * (1 - k / settings.sft_steps))
        for each in optimizers
    ]
    columns = (TextColumn("warm start"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=settings.sft_steps)
        for step in range(settings.sft_steps):
            shown = demonstrations[step * settings.sft_batch :][: settings.sft_batch]
            loss = solution_nll(model, *batch([encode(tokenizer, each) for each in shown], tokenizer.pad_token_id))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in (*optimizers, *schedules):
                each.step()
            model.zero_grad()
            progress.update(bar, advance=1, description=f"step {step + 1}/{settings.sft_steps}, loss {loss.item():.2f}")
    return loss.item()
