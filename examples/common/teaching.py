"""What the examples' `teach.py` have in common: rows for verl, a model that learns demonstrations, the command."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tiny_model import Encode, WarmStart, build_model, question_and_solution, warm_start
from transformers import PreTrainedTokenizerBase

REPORT = "teach.json"
"""Written last: a folder that has it is complete."""


def rows(asked: Iterable[tuple[str, str]], split: str, *, data_source: str, ability: str, **extra: Any) -> pd.DataFrame:
    """Questions and their golds as verl's data set expects them, one row a prompt; `extra` is in every `extra_info`."""
    return pd.DataFrame(
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": question}],
            "ability": ability,
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"index": index, "split": split, **extra},
        }
        for index, (question, gold) in enumerate(asked)
    )


def teach(
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Any],
    settings: WarmStart,
    *,
    splits: Mapping[str, pd.DataFrame] | None = None,
    encode: Encode = question_and_solution,
) -> dict[str, Any]:
    """Write `out`/model, which has learnt the demonstrations, `out`/NAME.parquet of every split and, last of all, the
    report that is returned."""
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer)
    started = time.perf_counter()
    loss = warm_start(model, tokenizer, demonstrations, settings, encode)
    seconds = round(time.perf_counter() - started, 1)
    tokenizer.save_pretrained(out / "model")
    model.save_pretrained(out / "model")
    for name, frame in (splits or {}).items():
        frame.to_parquet(out / f"{name}.parquet")
    report = {"settings": asdict(settings), "sft_seconds": seconds, "sft_loss": round(loss, 3)}
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def parser(what: str, sft_steps: int) -> argparse.ArgumentParser:
    """The command line of an example: `--out` and `--sft-steps`."""
    made = argparse.ArgumentParser(description=f"Make {what}.")
    made.add_argument("--out", type=Path, required=True, help="folder to write to")
    made.add_argument("--sft-steps", type=int, default=sft_steps, help="steps of the warm start")
    return made


def once(out: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Make what belongs into `out` and say what came of it, unless it is there."""
    if (out / REPORT).exists():
        print(f"{out} is complete: reused")
        return
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")  # bf16 products where the CPU has units for them; weights stay float32
    print(json.dumps(make()))
