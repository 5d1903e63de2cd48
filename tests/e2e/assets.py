"""A random model of 80 thousand parameters, a few prompts and rewards for the end-to-end runs."""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

REWARDS = '''
def digits(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Share of digits, and whether the answer is there: a random model gets a signal from it."""
    text = solution_str.strip()
    share = sum(c.isdigit() for c in text) / max(1, len(text))
    return {"score": 0.5 * share + 0.5 * (ground_truth in text), "acc": float(text == ground_truth), "pred": text}


def raising(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    raise KeyError("no such column: gold")


def not_a_number(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": float("nan"), "acc": 0.0}
'''


def make(folder: Path) -> None:
    """`model/`, `train.parquet` (24 prompts: three batches of eight), `val.parquet`, `rewards.py`."""
    sys.path.insert(0, str(QUICKSTART))
    from prepare import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).to(torch.float32)
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
    pd.DataFrame(rows[24:]).to_parquet(folder / "val.parquet")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "done.json").write_text(json.dumps({}))
