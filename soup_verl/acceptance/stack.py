"""Three steps of training on verl, vLLM and Ray with a tiny random model, made here: prefixes by `lookahead`, then by
`snapshot`, on one set of processes. On a GPU the rollout engine sleeps (level 2) and wakes in each step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from soup_verl.acceptance.installed import version
from soup_verl.acceptance.models import small_qwen2
from soup_verl.acceptance.outcome import Skip
from soup_verl.records import run_log

ROOT = Path(__file__).parents[2]
STEPS = 3
RUNS = {
    "lookahead": ("soup.source=lookahead", "soup.lookahead.age=1"),
    "snapshot": ("soup.source=snapshot", "soup.snapshot.every=1", "soup.snapshot.capacity=2"),
}
ALIGNMENT = 0.1
"""Nats a token that rollout engine and trainer may differ by in the mean; bfloat16 makes about .01 of them."""
LIMIT = 420
"""Seconds for both runs; a start takes one to two minutes."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWARD = '''
def score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Hardly ever the same for two responses: every group has a signal."""
    return sum(map(ord, solution_str)) % 97 / 96
'''


def check(device: torch.device) -> str:
    if device.type != "cuda":
        raise Skip("needs a GPU")
    if missing := [name for name in ("verl", "vllm", "ray", "flash-attn") if version(name) is None]:
        raise Skip(f"not installed: {', '.join(missing)}")
    return train("gpu")


def train(platform: str, *, limit: float = LIMIT) -> str:
    """Both runs, and what their metrics say.

    Args:
        platform: the recipe's, `gpu` or `cpu`.
        limit: seconds.

    Raises:
        AssertionError: with the end of the output, or the metric that is not what it must be.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_assets(folder)
        done = _run(folder, platform, limit)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-4000:]}"
        return "; ".join(_told(run, run_log.read(folder / "runs" / run)) for run in RUNS)


def _run(folder: Path, platform: str, limit: float) -> subprocess.CompletedProcess[str]:
    each = [part for name, overrides in RUNS.items() for part in ("--run", name, *overrides)]
    command = [sys.executable, "-m", "recipe.soup.main_series", "--out", str(folder / "runs"), *each, "--"]
    return subprocess.run(
        [*command, *settings(folder, platform)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
        check=False,
    )


def _told(name: str, steps: dict[int, dict[str, float]]) -> str:
    last = steps.get(STEPS, {})
    shares, errors = last.get("soup/prefix_tokens_share", 0.0), last.get("soup/alignment_error_mean", float("nan"))
    told = f"{name}: prefixes are {shares:.2f} of the tokens, engine and actor {errors:.4f} nats apart"
    assert shares > 0 and errors < ALIGNMENT, f"{told}; expected some, and less than {ALIGNMENT}"
    return told


def settings(folder: Path, platform: str) -> list[str]:
    """Overrides of the recipe."""
    given = {
        "platform": platform,
        "data.train_files": folder / "rows.parquet",
        "data.val_files": folder / "rows.parquet",
        "data.train_batch_size": 8,
        "data.max_prompt_length": 64,
        "data.max_response_length": 64,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.actor.optim.lr": 1e-5,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 1024,
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.max_model_len": 128,
        "actor_rollout_ref.rollout.max_num_seqs": 64,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.gpu_memory_utilization": 0.3,
        "soup.prefix_length.low": 4,
        "soup.prefix_length.high": 32,
        "reward.custom_reward_function.path": folder / "reward.py",
        "reward.custom_reward_function.name": "score",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        "trainer.total_training_steps": STEPS,
        "trainer.total_epochs": STEPS,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": STEPS,
    }
    return [f"{key}={value}" for key, value in given.items()]


def make_assets(folder: Path) -> None:
    """`model/`, `rows.parquet` and `reward.py`."""
    import pandas as pd
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*special, *sorted(ByteLevel.alphabet())])},
        merges=[],
        unk_token=special[0],
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=[special[1]],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    small_qwen2(vocab_size=len(tokenizer), **ids).save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "acceptance",
            "prompt": [{"role": "user", "content": f"{i}+{i + 1}="}],
            "ability": "sums",
            "reward_model": {"style": "rule", "ground_truth": str(2 * i + 1)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(16)
    ]
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    (folder / "reward.py").write_text(REWARD)
