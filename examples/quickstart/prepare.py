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

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared

import pandas as pd
import reasoning_gym
import torch
from reward import compute_score
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

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

    Sizes count problems, terms of a sum, digits of a term, steps or tokens. `sft_target` is the mean probability of the
    whole worked solution at which the warm start stops; pass@1 at temperature 1 lies close above it.
    """

    seed: int = 0
    min_terms: int = 3
    max_terms: int = 5
    max_digits: int = 1
    train_problems: int = 4096
    val_problems: int = 128
    probe_problems: int = 256
    sft_batch: int = 16
    sft_steps: int = 400
    sft_lr: float = 5e-3
    sft_lr_matrices: float = 3e-2
    sft_target: float = 0.2
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
        "sft": settings.sft_batch * settings.sft_steps,
    }
    wanted = sum(counts.values())
    source = reasoning_gym.create_dataset(
        "chain_sum",
        size=2 * wanted,
        seed=settings.seed * 10_000_000,  # reasoning-gym draws problem i from seed + i
        min_terms=settings.min_terms,
        max_terms=settings.max_terms,
        min_digits=1,
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
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # the fastest at this size; not written to config.json
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


def build_optimizers(model: Qwen2ForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest: about half the steps AdamW alone takes here."""
    layers = {name for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2}
    matrices = [weight for name, weight in model.named_parameters() if name in layers]
    others = [weight for name, weight in model.named_parameters() if name not in layers]
    return [
        torch.optim.Muon(matrices, lr=settings.sft_lr_matrices, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.sft_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def warm_start(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, splits: dict[str, list[Problem]], settings: Settings
) -> int:
    """Train on worked solutions, each seen once, until the probe's solution probability reaches `sft_target`.

    The loss is the mean over the solution tokens of a batch; the learning rate rises for 20 steps and falls linearly to
    0 at `sft_steps`, the most steps there are. Returns the number of steps taken.
    """
    probe = teacher_batch(tokenizer, splits["probe"])
    optimizers = build_optimizers(model, settings)
    schedule = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda k: min(1.0, (k + 1) / 20) * (1 - k / settings.sft_steps))
        for each in optimizers
    ]
    columns = (TextColumn("warm start"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=settings.sft_steps)
        for step in range(1, settings.sft_steps + 1):
            ids, labels = teacher_batch(tokenizer, splits["sft"][(step - 1) * settings.sft_batch :][: settings.sft_batch])
            loss = solution_nll(model, ids, labels).sum() / (labels != IGNORED).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in (*optimizers, *schedule):
                each.step()
            model.zero_grad()
            progress.update(bar, completed=step)
            if step % 5 == 0:
                reached = solution_probability(model, *probe)
                progress.update(bar, description=f"step {step}: solution probability {reached:.2f}")
                if reached >= settings.sft_target:
                    break
    return step


@torch.no_grad()
def pass_rates(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], settings: Settings
) -> tuple[float, float]:
    """Sample `samples` responses a problem at temperature 1; return pass@1 and pass@samples, each a mean over problems."""
    messages = [[{"role": "user", "content": problem.question}] for problem in problems]
    batch = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.eval().generate(
        **batch,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=settings.max_response_tokens,
        num_return_sequences=settings.samples,
    )
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    truths = [problem.answer for problem in problems for _ in range(settings.samples)]
    correct = torch.tensor([compute_score(DATA_SOURCE, text, truth)["acc"] for text, truth in zip(texts, truths)])
    correct = correct.view(len(problems), settings.samples)
    return correct.mean().item(), correct.amax(dim=1).mean().item()


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, splits: dict[str, list[Problem]], settings: Settings
) -> dict[str, int]:
    """Return the longest prompt and worked solution of `train` and `val`, in tokens.

    Raises:
        ValueError: one is longer than the settings allow.
    """
    problems = splits["train"] + splits["val"]
    prompt = max(len(prompt_ids(tokenizer, problem)) for problem in problems)
    response = max(len(solution_ids(tokenizer, problem)) for problem in problems)
    for name, length, limit in (
        ("prompt", prompt, settings.max_prompt_tokens),
        ("response", response, settings.max_response_tokens),
    ):
        if length > limit:
            raise ValueError(f"max_{name}_tokens is {limit}, the longest {name} has {length}: use fewer terms or digits")
    return {"longest_prompt_tokens": prompt, "longest_response_tokens": response}


def finished(out: Path, settings: Settings) -> bool:
    """Say whether `out` already holds what `settings` describe.

    Raises:
        ValueError: it holds something made with other settings.
    """
    report = out / "prepare.json"
    if not report.exists():
        return False
    made_with = json.loads(report.read_text())["settings"]
    if made_with != asdict(settings):
        raise ValueError(f"{report} was made with other settings ({made_with}): remove {out} or choose another --out")
    return True


def prepare(out: Path, settings: Settings) -> dict[str, object]:
    """Make everything and write it under `out`; return the report that `prepare.json` holds."""
    torch.manual_seed(settings.seed)
    splits = draw_problems(settings)
    tokenizer = build_tokenizer()
    lengths = check_lengths(tokenizer, splits, settings)
    model = build_model(tokenizer)

    started = time.perf_counter()
    steps = warm_start(model, tokenizer, splits, settings)
    seconds = time.perf_counter() - started

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out / "model")
    model.save_pretrained(out / "model")
    for split in ("train", "val"):
        rows(splits[split], split).to_parquet(out / f"{split}.parquet")
    tokenizer = AutoTokenizer.from_pretrained(out / "model", padding_side="left")
    pass_1, pass_n = pass_rates(model, tokenizer, splits["val"], settings)
    report = {
        "settings": asdict(settings),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "sft_steps": steps,
        "sft_seconds": round(seconds, 1),
        "pass@1": pass_1,
        f"pass@{settings.samples}": pass_n,
        **lengths,
    }
    unfinished = out / "prepare.json.tmp"
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    unfinished.replace(out / "prepare.json")
    return report


def main() -> None:
    """Parse the command line, prepare or reuse, and say what there is."""
    parser = argparse.ArgumentParser(description="Make the quickstart's model and data.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--sft-steps", type=int, default=Settings.sft_steps, help="most steps of the warm start")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; results differ slightly with their number")
    arguments = parser.parse_args()
    settings = Settings(seed=arguments.seed, sft_steps=arguments.sft_steps)
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("medium")  # bf16 products where the CPU has units for them; weights stay float32
    try:
        if finished(arguments.out, settings):
            print(f"{arguments.out} is complete: reused")
            return
        report = prepare(arguments.out, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare: {error}")
    print(json.dumps({key: value for key, value in report.items() if key != "settings"}))


if __name__ == "__main__":
    main()
