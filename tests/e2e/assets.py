"""A random model of 80 thousand parameters, a few prompts and rewards for the end-to-end runs."""

import json
import sys
from pathlib import Path

import pandas as pd
import torch

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

REWARDS = '''
def digits(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Share of digits, and whether the answer is there: a random model gets a signal from it."""
    text = solution_str.strip()
    share = sum(c.isdigit() for c in text) / max(1, len(text))
    return {"score": 0.5 * share + 0.5 * (ground_truth in text), "acc": float(text == ground_truth), "pred": text}


def varied(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Hardly ever the same for two responses, and nothing to be learnt: every group has a signal for ever."""
    score = sum(map(ord, solution_str)) % 97 / 96
    return {"score": score, "acc": float(solution_str == ground_truth), "pred": solution_str}


def raising(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    raise KeyError("no such column: gold")


def not_a_number(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": float("nan"), "acc": 0.0}
'''


def make(folder: Path) -> None:
    """`model/`, `train.parquet` (24 prompts: three batches of eight) and its first 8, `val.parquet`, `rewards.py`."""
    sys.path.insert(0, str(QUICKSTART))
    from prepare import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = build_model(tokenizer, hidden=64, intermediate=128, heads=2, kv_heads=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that a wrong log-prob shows
    model.save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{i % 7}+{i % 5}="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i % 7 + i % 5)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(28)
    ]
    pd.DataFrame(rows[:24]).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows[:8]).to_parquet(folder / "two_batches.parquet")
    pd.DataFrame(rows[24:]).to_parquet(folder / "val.parquet")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "done.json").write_text(json.dumps({}))
