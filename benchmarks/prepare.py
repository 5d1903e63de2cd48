"""Make a benchmark task's model and data: a Qwen2 of 0.6 million parameters with a weak warm start.

    python -m benchmarks.prepare --task countdown --out data/benchmarks/countdown

Writes DIR/model, DIR/train.parquet and DIR/val.parquet for verl, DIR/tokens.json for the search instrument and, last
of all, DIR/prepare.json with pass@k on validation. A folder that is complete is reused, one that is not is made again
from the start.

The weights are those of `benchmarks/warm_starts`, from which everything published started: the same training on another
processor ends elsewhere (pass@1 of `chain_sum` .16 instead of .31). `--train` trains anew, one to three minutes a task
on one core; `--train --keep` puts the outcome into that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from transformers.utils import logging as transformers_logging

from benchmarks import sampling
from benchmarks.policy import Shape, read_weights
from benchmarks.tasks import DRAWN, Task, demonstrations, draw_splits, rows, task_named, valid_answers
from soup_verl.records.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "common"))
import tiny_model

WARM_STARTS = Path(__file__).with_name("warm_starts")
TOKENS = "tokens.json"
REPORT = "prepare.json"


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is made; `prepare.json` repeats it.

    Sizes count questions, demonstrations a step, and steps.
    """

    task: str
    slips: float
    sft_steps: int
    seed: int = 0
    train_questions: int = DRAWN
    val_questions: int = 128
    sft_batch: int = 64
    sft_lr: float = 2e-3
    sft_lr_matrices: float = 2e-2
    hidden: int = 128
    intermediate: int = 320
    layers: int = 3
    heads: int = 4
    samples: int = 64

    @classmethod
    def of(cls, task: Task, **given: Any) -> Settings:
        """A task's own, but for those given."""
        own = {key: getattr(task, key) for key in ("slips", "sft_steps", "train_questions", "val_questions")}
        return cls(**{"task": task.name} | own | given)


@dataclass(frozen=True)
class Demonstration:
    """What the warm start reads of a problem."""

    question: str
    solution: str


def check_lengths(tokenizer: Any, task: Task, splits: dict[str, list[Demonstration]]) -> dict[str, int]:
    """The longest prompt and demonstration, in tokens.

    Raises:
        ValueError: one is longer than the task's budget.
    """
    shown = [d for demos in splits.values() for d in demos]
    longest = {
        "prompt": max(len(tiny_model.prompt_ids(tokenizer, d)) for d in shown),
        "response": max(len(tiny_model.solution_ids(tokenizer, d)) for d in splits["sft"]),
    }
    for name, limit in (("prompt", task.max_prompt_tokens), ("response", task.max_response_tokens)):
        if longest[name] > limit:
            raise ValueError(f"{task.name}: max_{name}_tokens={limit}: expected at least {longest[name]}; raise it")
    return {f"longest_{name}_tokens": value for name, value in longest.items()}


def finished(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The report of `out` if it holds what `settings` describe.

    Raises:
        ValueError: it holds something made with other settings.
    """
    if not (out / REPORT).exists():
        return None
    report = json.loads((out / REPORT).read_text())
    if report["settings"] != asdict(settings):
        raise ValueError(f"{out / REPORT}: made with {report['settings']}, expected {asdict(settings)}; remove {out}")
    return report


def warm_start_file(settings: Settings) -> Path:
    """Where the weights of a task's warm start are kept: by its length, since a task may start from several."""
    return WARM_STARTS / f"{settings.task}_{settings.sft_steps}.safetensors"


def stored_warm_start(settings: Settings) -> Path | None:
    """The file of `WARM_STARTS` made with these settings, however many training questions; None where there is none."""
    path = warm_start_file(settings)
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        made_with = json.loads(file.metadata()["settings"]) | {"train_questions": settings.train_questions}
    return path if made_with == asdict(settings) else None


def prepare(out: Path, settings: Settings, *, stored: Path | None = None, keep: bool = False) -> dict[str, Any]:
    """Make everything and write it under `out`; return the report that `prepare.json` holds.

    Args:
        stored: weights to start from; None trains them.
        keep: write them to `WARM_STARTS`.
    """
    torch.manual_seed(settings.seed)
    task = task_named(settings.task)
    drawn = max(DRAWN, settings.train_questions)  # for fewer of them the warm start must not see other questions
    sizes = {"val": settings.val_questions, "train": drawn, "sft": settings.sft_batch * settings.sft_steps}
    questions = draw_splits(task, sizes, settings.seed)
    questions["train"] = questions["train"][: settings.train_questions]
    weak = demonstrations(replace(task, slips=settings.slips), questions["sft"], settings.seed)
    splits = {name: [Demonstration(q, "") for q in questions[name]] for name in ("train", "val")}
    splits["sft"] = [Demonstration(*pair) for pair in zip(questions["sft"], weak, strict=True)]
    tokenizer = tiny_model.build_tokenizer()
    tokenizer.add_tokens(list(task.tokens))
    lengths = check_lengths(tokenizer, task, splits)
    sizes_of_model = {k: getattr(settings, k) for k in ("hidden", "intermediate", "layers", "heads")}
    model = tiny_model.build_model(tokenizer, **sizes_of_model, kv_heads=settings.heads)
    started = time.perf_counter()
    if stored is None:
        tiny_model.warm_start(model, tokenizer, splits["sft"], settings)
        model.to(torch.bfloat16)  # half the file; the start is what bfloat16 holds, on every instrument
        if keep:
            WARM_STARTS.mkdir(exist_ok=True)
            metadata = {"settings": json.dumps(asdict(settings))}
            save_model(model, str(warm_start_file(settings)), metadata=metadata)
    else:
        load_model(model.to(torch.bfloat16), stored)
    model.to(torch.float32)
    seconds = time.perf_counter() - started
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out / "model")
    model.save_pretrained(out / "model")
    for split in ("train", "val"):
        pd.DataFrame(rows(task, questions[split], split)).to_parquet(out / f"{split}.parquet")
    write_tokens(out, tokenizer, splits)
    counted = [count for question in questions["val"] for count in valid_answers(task, question).values()]
    report = {
        "settings": asdict(settings),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "warm_start": stored.name if stored else f"trained in {seconds:.0f} s",
        **lengths,
        **({"valid_answers_mean": sum(counted) / len(counted)} if counted else {}),
        "max_response_tokens": task.max_response_tokens,
        "val": start_of(out, task, settings),
    }
    write_json(out / REPORT, report)
    return report


def write_tokens(out: Path, tokenizer: Any, splits: dict[str, list[Demonstration]]) -> None:
    """Questions as token ids and every token as text, so that the search instrument needs no tokenizer."""
    prompts = {
        split: [{"question": d.question, "ids": tiny_model.prompt_ids(tokenizer, d)} for d in splits[split]]
        for split in ("train", "val")
    }
    write_json(out / TOKENS, {"tokens": [tokenizer.decode([i]) for i in range(len(tokenizer))], **prompts})


def start_of(out: Path, task: Task, settings: Settings) -> dict[str, float]:
    """pass@k and the rest of the untrained model on validation."""
    stored = json.loads((out / TOKENS).read_text())
    return sampling.evaluate(
        read_weights(out / "model"),
        Shape.read(out / "model"),
        [row["ids"] for row in stored["val"]],
        [row["question"] for row in stored["val"]],
        task=task.name,
        tokens=stored["tokens"],
        response_length=task.max_response_tokens,
        samples=settings.samples,
        seed=settings.seed,
    )


def main() -> None:
    """Parse the command line, prepare or reuse, and say what there is."""
    parser = argparse.ArgumentParser(description="Make a benchmark task's model and data.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sft-steps", type=int, help="steps of the warm start")
    parser.add_argument("--slips", type=float, help="share of wrong demonstrations")
    parser.add_argument("--train", action="store_true", help="train the warm start, also where one is stored")
    parser.add_argument("--keep", action="store_true", help="store it for everyone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; results differ slightly with their number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    try:
        task = task_named(arguments.task)
        given = {key: getattr(arguments, key) for key in ("slips", "sft_steps")}
        known = {key: value for key, value in given.items() if value is not None}
        settings = Settings.of(task, seed=arguments.seed, **known)
        report = finished(arguments.out, settings)
        if report is None:
            stored = None if arguments.train else stored_warm_start(settings)
            report = prepare(arguments.out, settings, stored=stored, keep=arguments.keep)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare: {error}")
    print(json.dumps({key: value for key, value in report.items() if key != "settings"}))


if __name__ == "__main__":
    main()
