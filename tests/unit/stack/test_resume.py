"""Which checkpoint a run goes on from, and which it must not."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.stack import checkpoint
from soup_verl.stack.resume import check_settings, check_weights, checkpoint_to_resume, mixes, only_from, run_settings
from tests.unit import preflight_files as files

WRITTEN = Path(__file__).with_name("settings_of_checkpoints.txt")


def settings(folder, **changed):
    trainer = {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(folder)}
    return OmegaConf.create(trainer | changed)


def save(folder):
    folder.mkdir(parents=True)
    checkpoint.write(folder, state={"step": 1}, write_history=lambda _: None)
    return folder


def test_auto_resumes_from_the_newest_intact_checkpoint_and_names_the_torn_one(tmp_path, caplog):
    older, newer = save(tmp_path / "global_step_1"), save(tmp_path / "global_step_2")
    (newer / "soup" / "state.json").unlink()
    assert checkpoint_to_resume(settings(tmp_path)) == older
    assert str(newer / "soup" / "state.json") in caplog.text


def test_auto_without_any_checkpoint_starts_anew(tmp_path):
    assert checkpoint_to_resume(settings(tmp_path)) is None


def test_auto_refuses_when_verl_left_checkpoints_but_none_is_intact(tmp_path):
    folder = save(tmp_path / "global_step_1")
    (folder / "soup" / "manifest.json").unlink()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(ValueError, match="no intact checkpoint"):
        checkpoint_to_resume(settings(tmp_path))


def test_a_named_checkpoint_must_be_intact(tmp_path):
    folder = save(tmp_path / "global_step_1")
    named = settings(tmp_path, resume_mode="resume_path", resume_from_path=str(folder))
    assert checkpoint_to_resume(named) == folder
    (folder / "soup" / "state.json").unlink()
    with pytest.raises(checkpoint.TornCheckpoint):
        checkpoint_to_resume(named)


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_checkpoint_of_another_version_of_this_project_is_refused(tmp_path, mode):
    save(tmp_path / "global_step_1")
    newer = save(tmp_path / "global_step_2")
    (newer / "soup" / "manifest.json").write_text('{"format": 2, "files": {}}')
    with pytest.raises(checkpoint.OtherFormat, match=r"global_step_2/soup/manifest.json: format 2, expected 1"):
        checkpoint_to_resume(settings(tmp_path, resume_mode=mode, resume_from_path=str(newer)))


def test_resuming_can_be_switched_off(tmp_path):
    save(tmp_path / "global_step_1")
    assert checkpoint_to_resume(settings(tmp_path, resume_mode="disable")) is None


def test_verl_is_told_exactly_which_checkpoint_and_gets_its_settings_back(tmp_path):
    trainer = settings(tmp_path)
    with only_from(tmp_path / "global_step_1", trainer):
        assert (trainer.resume_mode, trainer.resume_from_path) == ("resume_path", str(tmp_path / "global_step_1"))
    assert (trainer.resume_mode, trainer.resume_from_path) == ("auto", None)
    with only_from(None, trainer):
        assert trainer.resume_mode == "disable"
    assert trainer.resume_mode == "auto"


def test_a_named_checkpoint_must_exist(tmp_path):
    named = settings(tmp_path, resume_mode="resume_path", resume_from_path=str(tmp_path / "global_step_9"))
    with pytest.raises(ConfigError, match=r"trainer.resume_from_path='.*global_step_9': expected a folder"):
        checkpoint_to_resume(named)


# ---- another model, another number of ranks ----

QWEN = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of two ranks of a small Qwen2."""
    folder = tmp_path / "global_step_3"
    (folder / "actor" / "huggingface").mkdir(parents=True)
    (folder / "actor" / "huggingface" / "config.json").write_text(json.dumps(QWEN))
    for rank in (0, 1):
        (folder / "actor" / f"model_world_size_2_rank_{rank}.pt").touch()
    return folder


def run_with(folder, model, ranks=2):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(model))
    given = {"actor_rollout_ref": {"model": {"path": str(folder / "model")}}}
    return OmegaConf.create(given | {"trainer": {"nnodes": 1, "n_gpus_per_node": ranks}})


def test_the_same_model_and_ranks_may_go_on(stored, tmp_path):
    check_weights(stored, run_with(tmp_path, QWEN))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 32}, r"hidden_size=64 \(it has 32\)"),
        ({"vocab_size": 99, "num_hidden_layers": 3}, r"vocab_size=100 \(it has 99\) and num_hidden_layers=2"),
        ({"model_type": "llama"}, r"model_type=qwen2 \(it has llama\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(stored, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=rf"actor_rollout_ref.model.path=.*{message}.*global_step_3"):
        check_weights(stored, run_with(tmp_path, QWEN | changed))


def test_a_checkpoint_of_another_number_of_ranks_is_refused(stored, tmp_path):
    with pytest.raises(ConfigError, match=r"n_gpus_per_node=4: expected 2 ranks, as in .*global_step_3"):
        check_weights(stored, run_with(tmp_path, QWEN, ranks=4))


# ---- other settings ----


def settings_of(soup=None, **verl):
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 8}, "actor": {"optim": {"lr": 1e-6}}}})
    for key, value in verl.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return run_settings(SoupConfig.parse(soup or {}), config)


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    check_settings(tmp_path, settings_of(), settings_of(), history_only=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"soup": {"prefix_objective": "masked"}}, r"soup.prefix_objective='masked': expected 'behavior'"),
        ({"soup": {"mixed_fraction": 0}}, r"soup.mixed_fraction=0: expected 0.5"),
        ({"soup": {"lookahead": {"age": [2, 8]}}}, r"soup.lookahead.age=\[2, 8\]: expected \[4\]"),
        ({"soup": {"kl_control": {"max_prefix_kl": 0.1}}}, r"soup.kl_control.max_prefix_kl=0.1: expected None"),
        ({"actor_rollout_ref__actor__optim__lr": 2e-6}, r"optim.lr=2e-06: expected 1e-06"),
        ({"actor_rollout_ref__actor__optim__betas": [0.9, 0.99]}, r"optim.betas=\[0.9, 0.99\]: expected None"),
        (
            {"algorithm__rollout_correction__rollout_is": "token"},
            r"rollout_correction.rollout_is='token': expected None",
        ),
        ({"actor_rollout_ref__model__lora_rank": 8}, r"actor_rollout_ref.model.lora_rank=8: expected None"),
        ({"data__train_files": "hdfs://b"}, r"data.train_files=\['hdfs://b'\]: expected None"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(tmp_path, given, message):
    folder = tmp_path / "global_step_3"
    with pytest.raises(ConfigError, match=rf"{message}.*global_step_3.*another trainer.default_local_dir"):
        check_settings(folder, settings_of(), settings_of(**given), history_only=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "min_variance"}, "soup.baseline='min_variance': expected 'shared'"),
        ({"sampling_seed": 1}, "soup.sampling_seed=1: expected None"),
        ({"policy_loss": {"exo_k": 2.0}}, "soup.policy_loss.exo_k=2.0: expected 5.0"),
    ],
)
def test_what_trains_without_mixing_is_compared_without_mixing_too(tmp_path, changed, message):
    stored, other = (settings_of({"mixed_fraction": 0} | given) for given in ({}, changed))
    with pytest.raises(ConfigError, match=message):
        check_settings(tmp_path, stored, other, history_only=False)


@pytest.mark.parametrize("key", ["data.train_files", "reward.custom_reward_function.path"])
def test_a_file_may_move_but_not_change(tmp_path, key):
    given = key.replace(".", "__")
    (tmp_path / "there").mkdir()
    file, moved = tmp_path / "a", tmp_path / "there" / "b"
    file.write_text("one")
    moved.write_text("one")
    stored = settings_of(**{given: str(file)})
    check_settings(tmp_path, stored, settings_of(**{given: str(moved)}), history_only=False)
    file.write_text("two")
    # of "two" and of "one", as sha256sum prints them
    message = rf"{key}=\['sha256:3fc4ccfe745870e2'\]: expected \['sha256:7692c3ad3540bb80'\]"
    with pytest.raises(ConfigError, match=message):
        check_settings(tmp_path, stored, settings_of(**{given: str(file)}), history_only=False)


def test_the_order_of_the_files_is_that_of_the_prompts(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    stored, other = (settings_of(data__train_files=[str(p) for p in some]) for some in (paths, paths[::-1]))
    with pytest.raises(ConfigError, match="data.train_files="):
        check_settings(tmp_path, stored, other, history_only=False)


def test_settings_that_the_checkpoint_does_not_know_are_not_compared(tmp_path):
    """It was written before they were."""
    stored = settings_of()
    del stored["data.train_files"], stored["soup.when"]
    other = settings_of({"when": "unsolved"}, data__train_files="hdfs://b")
    check_settings(tmp_path, stored, other, history_only=False)
    with pytest.raises(ConfigError, match="soup.seed=1: expected 0"):
        check_settings(tmp_path, stored, settings_of({"seed": 1}), history_only=False)


@pytest.mark.parametrize("changed", [{"trainer__total_training_steps": 9}, {"data__val_files": "other.parquet"}])
def test_a_run_may_be_extended_and_validated_otherwise(tmp_path, changed):
    check_settings(tmp_path, settings_of(), settings_of(**changed), history_only=False)


def test_a_checkpoint_from_before_the_table_is_compared_in_all_its_settings():
    """The keys that were written until then, less `soup.*`: one that is gone would look changed."""
    assert set(WRITTEN.read_text().split()) <= settings_of().keys()


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
def test_the_settings_of_the_recipe_are_json_and_come_back_as_they_were(mixed_fraction):
    config = files.configure("actor_rollout_ref.rollout.n=4", soup__mixed_fraction=mixed_fraction)
    found = run_settings(SoupConfig.parse(OmegaConf.to_container(config.soup)), config)
    assert json.loads(json.dumps(found)) == found
    assert found["actor_rollout_ref.actor.optim.betas"] == [0.9, 0.999] and found["data.train_batch_size"] == 1024


def test_what_is_only_looked_at_may_change(tmp_path):
    other = settings_of({"log_samples": {"every": 1}, "max_skipped_steps": 9, "replay": {"choice": "latest"}})
    check_settings(tmp_path, settings_of(), other, history_only=False)


def test_a_named_checkpoint_may_start_a_run_that_trains_otherwise_but_not_with_another_history(tmp_path):
    other = settings_of({"prefix_objective": "masked"}, actor_rollout_ref__actor__optim__lr=2e-6)
    check_settings(tmp_path, settings_of(), other, history_only=True)
    with pytest.raises(ConfigError, match="soup.prefix_length.low=3"):
        check_settings(tmp_path, settings_of(), settings_of({"prefix_length": {"low": 3}}), history_only=True)


def test_a_run_that_does_not_mix_has_no_settings_of_soup():
    grpo, soup = settings_of({"mixed_fraction": 0, "lookahead": {"age": 9}}), settings_of()
    assert mixes(soup) and not mixes(grpo)
    trains_grpo_too = {f"soup.policy_loss.{key}" for key in ("name", "exo_k", "oapl_b1", "oapl_b2")}
    trains_grpo_too |= {"soup.down_sampling.train_on", "soup.down_sampling.choice"}
    trains_grpo_too |= {"soup.baseline", "soup.sampling_seed"}  # `min_variance` is OPO's; the seed is of every session
    assert {key for key in grpo if key.startswith("soup.")} == {"soup.mixed_fraction", *trains_grpo_too}
    chosen = settings_of({"mixed_fraction": 0, "down_sampling": {"train_on": 2}, "seed": 3})
    assert chosen.keys() - grpo.keys() == {"soup.seed"}  # which draws between equal rewards
