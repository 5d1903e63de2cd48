"""A random model of 80 thousand parameters, a few prompts and rewards for the end-to-end runs."""

import json
import sys
import uuid
from pathlib import Path

import pandas as pd
import torch

COMMON = Path(__file__).parents[2] / "examples" / "common"

REWARDS = '''
import threading
from collections import defaultdict

TURNS, ONE_AT_A_TIME = defaultdict(dict), threading.Lock()


def score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """One function for every run, which the data set steers: runs that share processes share the function.

    A response's turn is how many others the prompt had before it under this reward; replayed, it has the same again."""
    text = solution_str.strip()
    with ONE_AT_A_TIME:
        turns = TURNS[data_source, (extra_info or {}).get("index")]
        turn = turns.setdefault(text, len(turns))
    return globals()[data_source](text, ground_truth, turn)


def sums(text, gold, turn):
    """Share of digits, and whether the answer is there: a random model gets a signal from it."""
    share = sum(c.isdigit() for c in text) / max(1, len(text))
    return {"score": 0.5 * share + 0.5 * (gold in text), "acc": float(text == gold), "pred": text}


def varied(text, gold, turn):
    """Hardly ever the same for two responses, and nothing to be learnt: every group has a signal for ever."""
    return {"score": sum(map(ord, text)) % 97 / 96, "acc": float(text == gold), "pred": text}


def even(text, gold, turn):
    """Right about half of the time, whatever the prompt."""
    return {"score": 1.0, "acc": float(sum(map(ord, text)) % 2 == 0)}


def mostly(text, gold, turn):
    """Right, which is one point and `varied` half of one, but for every fourth response to a prompt: each group has
    both, whatever a random model says."""
    return _right(text, turn % 4 > 0)


also_mostly = mostly  # of another run, which begins with the same responses and counts their turns anew


def seldom_wrong(text, gold, turn):
    """As `mostly`, wrong every eighth time: of a prompt's groups of four every other one is right altogether."""
    return _right(text, turn % 8 > 0)


def half(text, gold, turn):
    """As `mostly`, but half of the prompts are never answered right: their groups have no signal for ever."""
    return _right(text, int(gold) >= 5 and turn % 4 > 0)


def _right(text, right):
    return {"score": right + varied(text, None, None)["score"] / 2, "acc": float(right)}


def huge(text, gold, turn):
    """Finite, and past what float32 can square."""
    return {"score": 1e38 * (sum(map(ord, text)) % 3), "acc": 0.0, "pred": text}


def raising(text, gold, turn):
    """Of the right answers that preflight makes up it says something, and of no response."""
    if "boxed" in text:
        return 1.0
    raise KeyError("no such column: gold")


def not_a_number(text, gold, turn):
    """As above."""
    return {"score": 1.0 if "boxed" in text else float("nan"), "acc": float("boxed" in text)}
'''


def make(folder: Path) -> None:
    """A model, prompts and rewards.

    `model/`; `train.parquet`: 24 prompts, three batches of eight; `val.parquet`: four others; two batches of four
    whose reward is `varied`, `mostly`, `also_mostly`, `seldom_wrong` or `half`; eight prompts each whose reward is
    `even`, `huge`, `raising` or `not_a_number`; `uuids.jsonl`: two batches of eight, whose rows have UUIDs for an
    index, or none, with a byte order mark and Windows line ends; `rewards.py`.
    """
    sys.path.insert(0, str(COMMON))
    from tiny_model import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = build_model(tokenizer, hidden=64, intermediate=128, heads=2, kv_heads=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that a wrong log-prob shows
    model.save_pretrained(folder / "model")
    prompts = pd.DataFrame([_prompt(i) for i in range(28)])
    prompts[:24].to_parquet(folder / "train.parquet")
    prompts[24:].to_parquet(folder / "val.parquet")
    steered = ("varied", "mostly", "also_mostly", "seldom_wrong", "half")
    for reward in (*steered, "even", "huge", "raising", "not_a_number"):
        prompts[:8].assign(data_source=reward).to_parquet(folder / f"{reward}.parquet")
    (folder / "rewards.py").write_text(REWARDS)
    uuids = [_prompt(i) | {"extra_info": _uuid(i)} for i in range(16)]
    lines = "\r\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in uuids)
    (folder / "uuids.jsonl").write_text(lines, encoding="utf-8-sig")


def _uuid(index: int) -> dict | None:
    """As DAPO-Math-17k's own file names its rows; and two rows as people leave them."""
    return {3: {"index": None}, 4: None}.get(index, {"index": str(uuid.UUID(int=index)), "split": "train"})


def _prompt(index: int) -> dict:
    a, b = index % 7, index % 5
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": f"{a}+{b}="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"index": index, "split": "train"},
    }
