import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmarks import real_stack
from benchmarks.grid import GRID, read_points
from benchmarks.run_inputs import Assets, parse_settings
from soup_verl.launch.run_rules import check_run
from soup_verl.launch.series import can_share
from soup_verl.method.config import SoupConfig

ONPOLICY = "soup/onpolicy_reward_mean"


def assets_of(folder):
    return Assets("countdown", folder, 16, ["a"], [], [], {"pass@1": 0.25})


def test_points_are_chosen_by_name_and_the_knob_wins_over_what_holds_for_all():
    points = read_points(GRID, "countdown")
    (age,) = real_stack.chosen(points, ["lookahead_age/64"])
    settings = real_stack.settings_of(age, 3, {"steps": 100, "soup.lookahead.age": 1})
    assert (settings.steps, settings.seed, settings.soup["lookahead"]["age"]) == (100, 3, 64)
    assert real_stack.chosen(points, None) == [p for p in points if not p.method.startswith("neighbor/")]
    with pytest.raises(ValueError, match="--points none: expected some of grpo, temperature/1.1"):
        real_stack.chosen(points, ["none"])


@pytest.mark.e2e  # Hydra takes a second a point
def test_every_point_is_a_run_of_the_recipe_and_most_can_share_processes(tmp_path):
    """A KL to the initial policy needs a reference model in the workers, other batch sizes other workers."""
    configs = {}
    points = read_points(GRID, "countdown")
    for point in real_stack.chosen(points, None) + real_stack.chosen(points, ["neighbor/dppo_tv/8", "neighbor/opo"]):
        settings = real_stack.settings_of(point, 0, {})
        configs[point.name] = real_stack._config(assets_of(tmp_path), point, settings, tmp_path / point.name)
        plain = OmegaConf.to_container(configs[point.name], resolve=True)
        check_run(SoupConfig.parse(plain["soup"]), plain)
    apart = {name for name, config in configs.items() if not can_share(configs["grpo"], config)}
    of_kl = {f"reference_kl/{value}" for value in (0.005, 0.02, 0.05, 0.1)} | {"lookahead_kl/0.02", "lookahead_kl/0.05"}
    of_sizes = {"responses/4", "responses/5", "responses/6", "updates/2", "pods/2", "pods/4"}
    of_sizes |= {"responses_dr_grpo/4", "responses_dr_grpo/5"}
    assert apart == of_kl | of_sizes
    assert configs["gradient_clip/0.3"].actor_rollout_ref.actor.optim.clip_grad == 0.3
    age = configs["lookahead_age/64"]
    assert (age.soup.lookahead.age, age.soup.prefix_length.high, age.soup.mixed_fraction) == (64, 6, 0.5)
    assert age.actor_rollout_ref.actor.optim.lr == 2e-4
    dppo = configs["neighbor/dppo_tv/8"]
    assert dppo.actor_rollout_ref.actor.policy_loss.loss_mode == "dppo_tv" and dppo.soup.lookahead.age == 8
    assert dppo.algorithm.rollout_correction.bypass_mode and dppo.actor_rollout_ref.actor.loss_scale_factor == 14
    assert configs["neighbor/opo"].algorithm.adv_estimator == "opo"


@pytest.mark.e2e  # Hydra, once more
def test_the_command_gives_every_run_its_own_point(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(real_stack.Assets, "read", lambda folder: assets_of(tmp_path))
    monkeypatch.setattr(real_stack, "run_series", given.extend)
    monkeypatch.setattr(real_stack, "write_result", lambda *_: None)
    points = ["--points", "grpo", "masked/8", "--seeds", "1", "--first-seed", "7"]
    command = ["real_stack", "--assets", str(tmp_path), "--out", str(tmp_path / "out"), "--tasks", "countdown", *points]
    monkeypatch.setattr("sys.argv", command)
    real_stack.main()
    assert [(run.soup.mixed_fraction, run.soup.prefix_objective, run.soup.seed) for run in given] == [
        (0, "behavior", 7),
        (0.5, "masked", 7),
    ]
    assert all(Path(run.trainer.default_local_dir).is_relative_to(tmp_path / "out") for run in given)


def test_micro_batches_hold_what_is_trained_on(tmp_path):
    settings = parse_settings({"prompts": 12, "n": 8, "mini_batches": 2, "soup": {"down_sampling": {"train_on": 2}}})
    found = dict(line.split("=", 1) for line in real_stack.overrides(assets_of(tmp_path), settings, tmp_path))
    assert found["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == "12"
    assert found["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"] == "24"


def test_a_folder_goes_on_only_with_the_settings_it_began_with(tmp_path):
    settings = parse_settings({"seed": 1, "soup": {"mixed_fraction": 0.5}})
    for _ in range(2):
        real_stack.claim(tmp_path / "run", settings)
    other = parse_settings({"seed": 1, "lr": 0.5, "soup": {"mixed_fraction": 0.25}})
    said = "settings.json: made with lr=0.0001, now 0.5, soup.mixed_fraction=0.5, now 0.25; choose another --out"
    with pytest.raises(ValueError, match=said):
        real_stack.claim(tmp_path / "run", other)


def test_a_result_is_what_log_and_validation_samples_say(tmp_path):
    """Two questions of two samples: right once, and twice by two answers."""
    samples = [("q", 1.0, "a"), ("q", 0.0, ""), ("r", 1.0, "b"), ("r", 1.0, "c")]
    (tmp_path / real_stack.VALIDATION).mkdir()
    lines = [json.dumps({"input": q, "acc": acc, "pred": pred}) for q, acc, pred in samples]
    (tmp_path / real_stack.VALIDATION / "2.jsonl").write_text("\n".join(lines))
    steps = [
        {"timing_s/step": 2.0, "actor/entropy": 1.0, "soup/onpolicy_tokens_total": 30.0, ONPOLICY: 0.25},
        {
            "timing_s/step": 4.0,
            "actor/entropy": 0.5,
            "soup/onpolicy_tokens_total": 10.0,
            "soup/prefix_tokens_total": 5.0,
            "soup/decode_tokens_total": 12.0,
            "soup/prefix_kl_k3": 0.5,
            ONPOLICY: 0.5,
        },
    ]
    log = [json.dumps({"step": i, "data": data}) for i, data in enumerate(steps, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(log) + "\n")
    (point,) = real_stack.chosen(read_points(GRID, "countdown"), ["lookahead_age/8"])
    result = real_stack.write_result(assets_of(tmp_path), parse_settings({"seed": 1}), point, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    (checkpoint,) = result["checkpoints"]
    assert checkpoint == {"step": 2, "pass@1": 0.75, "pass@2": 1.0, "distinct_valid@2": 1.5, "entropy": 0.5}
    assert (result["decode_tokens"], result["seconds"], result["step_seconds"]) == (42.0, 6.0, 3.0)
    assert result["curve"] == [{"step": 2, "decode_tokens": 42.0, "reward": 0.375}]
    assert (result["prefix_kl"], result["seed"], result["method"], result["value"]) == (0.5, 1, "lookahead_age", 8)
