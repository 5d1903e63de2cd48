"""The search instrument computes what verl and transformers compute, on a model and data that `prepare` made."""

import dataclasses
import json
import random

import pytest
import torch

from benchmarks import simulate
from benchmarks.policy import Shape, read_weights, response_logits
from benchmarks.run_inputs import Assets, parse_settings
from benchmarks.sampling import pad_prompts
from benchmarks.tasks import TASKS
from benchmarks.update import LossSettings, masked_mean
from soup_verl.method.policy_losses import LossTokens, loss_of_tokens
from soup_verl.method.sections import PolicyLossConfig

pytestmark = [pytest.mark.contract, pytest.mark.e2e]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from benchmarks import prepare

    small = {"train_questions": 12, "val_questions": 4, "sft_batch": 4, "hidden": 64, "intermediate": 64, "heads": 2}
    settings = prepare.Settings("order", 0.4, 3, layers=2, samples=2, **small)
    folder = tmp_path_factory.mktemp("prepared")
    return folder, settings, prepare.prepare(folder, settings)


def test_prepare_leaves_verls_rows_and_a_complete_folder_is_reused(prepared):
    import pandas as pd

    from benchmarks import prepare

    folder, settings, report = prepared
    assert prepare.finished(folder, settings) == json.loads(json.dumps(report))
    with pytest.raises(ValueError, match="made with"):
        prepare.finished(folder, prepare.Settings("order", 0.4, 4))
    row = pd.read_parquet(folder / "train.parquet").iloc[0]
    assert set(row.index) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["reward_model"]["ground_truth"] == row["prompt"][0]["content"]


def test_every_task_has_a_warm_start_of_its_settings_and_another_setting_has_none():
    from benchmarks import prepare
    from benchmarks.tasks import TASKS, VARIANTS, task_named

    for name in TASKS | VARIANTS:
        task = task_named(name)
        settings = prepare.Settings.of(task)
        assert prepare.stored_warm_start(settings) == prepare.warm_start_file(settings)
    assert prepare.stored_warm_start(prepare.Settings.of(task, sft_steps=task.sft_steps + 1)) is None


def test_what_is_kept_is_what_was_measured(prepared, tmp_path, monkeypatch):
    from benchmarks import prepare
    from benchmarks.policy import read_weights

    _, settings, _ = prepared
    monkeypatch.setattr(prepare, "WARM_STARTS", tmp_path / "starts")
    trained = prepare.prepare(tmp_path / "trained", settings, keep=True)
    stored = prepare.stored_warm_start(settings)
    again = prepare.prepare(tmp_path / "again", settings, stored=stored)
    assert again["warm_start"] == f"order_{settings.sft_steps}.safetensors" and again["val"] == trained["val"]
    weights = read_weights(tmp_path / "again" / "model")
    for name, weight in read_weights(tmp_path / "trained" / "model").items():
        assert weight.dtype == torch.float32 and torch.equal(weight, weights[name])


def test_fewer_questions_are_the_first_ones_of_the_same_task_and_start(prepared, tmp_path, monkeypatch):
    from benchmarks import prepare

    folder, settings, report = prepared
    monkeypatch.setattr(prepare, "WARM_STARTS", tmp_path / "starts")
    prepare.prepare(tmp_path / "trained", settings, keep=True)
    few = dataclasses.replace(settings, train_questions=3)
    start = prepare.stored_warm_start(few)
    assert start is not None and prepare.prepare(tmp_path / "few", few, stored=start)["val"] == report["val"]
    all_of_them = json.loads((folder / "tokens.json").read_text())
    those_few = json.loads((tmp_path / "few" / "tokens.json").read_text())
    assert those_few == all_of_them | {"train": all_of_them["train"][:3]}


def test_verl_loads_the_reward_and_scores_every_task_with_it():
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    from benchmarks.real_stack import REWARDS

    config = {"custom_reward_function": {"path": REWARDS, "name": "compute_score", "reward_kwargs": {}}}
    score = get_custom_reward_fn(OmegaConf.create({"reward": config}))
    for name, task in TASKS.items():
        question = task.draw(random.Random(0))
        row = {"data_source": name, "ground_truth": question, "extra_info": {"index": 0}}
        assert score(solution_str=task.answer(random.Random(0), question), **row)["acc"] == 1.0, name
        assert score(solution_str="x", **row)["acc"] == 0.0, name


def test_logits_are_those_of_transformers(prepared):
    from transformers import Qwen2ForCausalLM

    folder = prepared[0] / "model"
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stored = json.loads((prepared[0] / "tokens.json").read_text())
    prompts = [row["ids"] for row in stored["train"][:2]]
    prompts[1] = prompts[1][:-3]  # so that one is padded
    responses = torch.randint(0, 200, (4, 6), generator=torch.Generator().manual_seed(0))
    logits = response_logits(read_weights(folder), Shape.read(folder), pad_prompts(prompts), responses, copies=2)
    for row in range(4):
        prompt = prompts[row // 2]
        with torch.no_grad():
            expected = model(torch.tensor([prompt + responses[row].tolist()])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-4)


def test_the_clipped_loss_is_verls():
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import FSDPActorConfig

    generator = torch.Generator().manual_seed(0)
    old, new, advantages = (torch.randn(16, 10, generator=generator) for _ in range(3))
    mask = torch.rand(16, 10, generator=generator) < 0.8
    config = FSDPActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, optim=OmegaConf.create({}))
    expected, metrics = compute_policy_loss_vanilla(old, new, advantages, mask, config=config)
    tokens = LossTokens(new, old, advantages, mask, prefix_mask=~mask, behavior_log_probs=old)
    loss = masked_mean(loss_of_tokens(tokens, PolicyLossConfig(), LossSettings().clip).loss, mask)
    torch.testing.assert_close(loss, expected)
    assert metrics["actor/pg_clipfrac"] > 0 and metrics["actor/pg_clipfrac_lower"] > 0, "both clips must have bitten"


def test_a_point_runs_on_what_prepare_made(prepared, tmp_path):
    soup = {"mixed_fraction": 0.5, "source": "lookahead", "lookahead": {"age": 1}}
    settings = parse_settings({"steps": 2, "prompts": 4, "n": 4, "samples": 2, "soup": soup})
    result = simulate.run(Assets.read(prepared[0]), settings, tmp_path, {"method": "soup"})
    assert result["start"] == prepared[2]["val"] and result["decode_tokens"] > 0
