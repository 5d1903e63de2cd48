"""Make the quickstart's model and data: a one-million-parameter Qwen2 that adds badly, and sums to practise on.

    python examples/quickstart/prepare.py --out data/quickstart

The task is `chain_sum` of reasoning-gym, asked as "8+7+9-6=", without the sums whose running total falls below 0. The
model answers with the running totals, one a line, and then the result alone:

    8+7=15
    15+9=24
    24-6=18
    18

Data flow; tokenizer, model and warm start are those of examples/common/tiny_model.py:

    draw_problems -> sft, val, train: no problem is in two of them
    build_tokenizer, build_model -> warm_start (learns sft) -> pass_rates (val)
    prepare writes DIR/model, DIR/train.parquet, DIR/val.parquet and, last of all, DIR/prepare.json

Six in ten of the demonstrations in `sft` stop before the last term. A model that imitates them stops early as often,
and errs in some sums besides: reinforcement learning can mend both, and the first within a few dozen steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared
sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import pandas as pd
import reasoning_gym
import teaching
import torch
from reward import compute_score
from tiny_model import WarmStart, build_model, build_tokenizer, prompt_ids, solution_ids, warm_start
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

DATA_SOURCE = "chain_sum"


@dataclass(frozen=True)
class Settings(WarmStart):
    """Everything that decides what is made; `prepare.json` repeats it.

    Sizes count problems, terms of a sum, digits of a term, or tokens; `hasty` is the share of the demonstrations that
    stop early.
    """

    terms: int = 4
    digits: int = 1
    hasty: float = 0.6
    train_problems: int = 4096
    val_problems: int = 64
    samples: int = 8
    max_prompt_tokens: int = 48
    max_response_tokens: int = 48


@dataclass(frozen=True)
class Problem:
    """One sum as reasoning-gym writes it ("8 + 7 + 9 - 6"), a worked solution, and the right result alone."""

    expression: str
    solution: str
    answer: str

    @property
    def question(self) -> str:
        """What the user asks: the expression without its spaces, and "="."""
        return self.expression.replace(" ", "") + "="


def running_totals(expression: str) -> list[int]:
    """Return the first number of `expression` and every total after it; spaces stand between numbers and operators."""
    first, *rest = expression.split()
    terms = (int(operator + number) for operator, number in zip(rest[::2], rest[1::2], strict=True))
    return list(itertools.accumulate(terms, initial=int(first)))


def work_out(expression: str, lines: int | None = None) -> Problem:
    """Write one line a running total of `expression`, and the last one alone.

    The solution stops after `lines` lines (None: after all of them); the answer is the right one either way.
    """
    totals = running_totals(expression)
    _, *rest = expression.split()
    steps = zip(totals, rest[::2], rest[1::2], totals[1:], strict=False)  # totals is one longer
    worked = [f"{before}{operator}{number}={after}" for before, operator, number, after in steps]
    stop = len(worked) if lines is None else lines
    return Problem(expression, "\n".join([*worked[:stop], str(totals[stop])]), str(totals[-1]))


def draw_problems(settings: Settings) -> dict[str, list[Problem]]:
    """Draw distinct problems from reasoning-gym and deal them to the splits; a `hasty` share of `sft` stops early."""
    counts = {
        "val": settings.val_problems,
        "train": settings.train_problems,
        "sft": settings.sft_batch * settings.sft_steps,
    }
    wanted = sum(counts.values())
    source = reasoning_gym.create_dataset(
        "chain_sum",
        size=6 * wanted,
        seed=settings.seed * 10_000_000,  # reasoning-gym draws problem i from seed + i
        min_terms=settings.terms,
        max_terms=settings.terms,
        min_digits=settings.digits,
        max_digits=settings.digits,
    )
    answers: dict[str, str] = {}  # by expression, so that each is there once
    for entry in source:
        if min(running_totals(entry["metadata"]["expression"])) >= 0:
            answers.setdefault(entry["metadata"]["expression"], entry["answer"])
        if len(answers) == wanted:
            break
    else:
        raise ValueError(f"chain_sum gave {len(answers)} different problems, not {wanted}: use more terms or digits")
    expressions, rng = iter(answers), random.Random(settings.seed)
    splits = {
        split: [work_out(expression) for expression in itertools.islice(expressions, count)]
        for split, count in counts.items()
    }
    for problem in itertools.chain(*splits.values()):
        expected = answers[problem.expression]
        assert problem.answer == expected, f"worked out {problem}, reasoning-gym says {expected}"
    splits["sft"] = [
        work_out(problem.expression, rng.randrange(1, settings.terms - 1)) if rng.random() < settings.hasty else problem
        for problem in splits["sft"]
    ]
    return splits


def rows(problems: list[Problem], split: str) -> pd.DataFrame:
    """Lay problems out as verl's data set expects them, one row a prompt."""
    asked = ((problem.question, problem.answer) for problem in problems)
    return teaching.rows(asked, split, data_source=DATA_SOURCE, ability="math")


@torch.no_grad()
def pass_rates(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], settings: Settings
) -> tuple[float, float]:
    """Sample `samples` responses a problem at temperature 1; return pass@1 and pass@samples, means over problems."""
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
    scores = [compute_score(DATA_SOURCE, text, truth)["acc"] for text, truth in zip(texts, truths, strict=True)]
    correct = torch.tensor(scores).view(len(problems), settings.samples)
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
            raise ValueError(f"max_{name}_tokens is {limit}, a {name} has {length}: use fewer terms or digits")
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
    warm_start(model, tokenizer, splits["sft"], settings)
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
        "sft_steps": settings.sft_steps,
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
    parser.add_argument("--sft-steps", type=int, default=Settings.sft_steps, help="steps of the warm start")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; results differ slightly with their number")
    arguments = parser.parse_args()
    settings = Settings(seed=arguments.seed, sft_steps=arguments.sft_steps)
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
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
