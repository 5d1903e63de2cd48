"""Which checkpoint a run goes on from, and which it must not."""

import json

import pytest
from omegaconf import OmegaConf

from soup_verl import checkpoint
from soup_verl.config import ConfigError, SoupConfig
from soup_verl.resume import check_settings, check_weights, checkpoint_to_resume, mixes, only_from, run_settings


def settings(folder, **changed):
    trainer = {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(folder)}
    return OmegaConf.create(trainer | changed)


def save(folder):
    folder.mkdir(parents=True)
    checkpoint.write(folder, state={"step": 1}, write_history=lambda _: None, include_verl=True)
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
    """As a checkpoint has them: through JSON."""
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 8}, "actor": {"optim": {"lr": 1e-6}}}})
    for key, value in verl.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return json.loads(json.dumps(run_settings(SoupConfig.parse(soup or {}), config)))


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
    ],
)
def test_a_run_does_not_go_on_with_other_settings(tmp_path, given, message):
    folder = tmp_path / "global_step_3"
    with pytest.raises(ConfigError, match=rf"{message}.*global_step_3.*another trainer.default_local_dir"):
        check_settings(folder, settings_of(), settings_of(**given), history_only=False)


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
    assert {key for key in grpo if key.startswith("soup.")} == {"soup.mixed_fraction"}
