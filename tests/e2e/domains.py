"""Rows of every domain in one file, and the project's reward for a model that is never right."""

from pathlib import Path

import pandas as pd

from soup_verl.rehearsal.data import few_rows, own_rows
from soup_verl.tasks.data.puzzles import is_puzzles
from soup_verl.tasks.domains import domain_of
from soup_verl.tasks.prepare_data import main as prepare_data
from soup_verl.tasks.reward import compute_score

DATA_SETS = ("gsm8k", "mbpp", "arc-c", "reasoning-gym:gcd", "if-rlvr", "xsum")


def score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Every other response stands for a right answer, where its domain knows one."""
    right = next(domain_of(extra_info).right_answers(ground_truth, extra_info), solution_str)
    answer = right if sum(map(ord, solution_str)) % 2 else solution_str
    return compute_score(data_source, answer, ground_truth, extra_info, **kwargs)


def write_rows(folder: Path) -> Path:
    """The two shortest prompts of each data set, as `prepare_data` makes them of our own rows."""
    for name in DATA_SETS:
        given = ["--size", "2"] if is_puzzles(name) else ["--from", str(own_rows(name))]
        assert prepare_data(["--dataset", name, "--out", str(folder), "--template", "tiny", *given]) == 0
    files = few_rows(sorted(map(str, folder.glob("*.parquet"))), 2, folder / "few")
    rows = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    rows["extra_info"] = [extra | {"index": place} for place, extra in enumerate(rows["extra_info"])]
    rows.to_parquet(folder / "every_domain.parquet")
    return folder / "every_domain.parquet"


def settings(rows: Path) -> list[str]:
    """A step takes all rows."""
    return [
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        "data.train_batch_size=12",
        "data.max_prompt_length=192",
        "actor_rollout_ref.actor.ppo_mini_batch_size=12",
        "actor_rollout_ref.rollout.max_model_len=208",
        f"reward.custom_reward_function.path={__file__}",
        "soup.lookahead.age=1",
        "trainer.val_before_train=true",
        "trainer.total_training_steps=2",
    ]
