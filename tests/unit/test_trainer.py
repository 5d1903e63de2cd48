"""The parts of the trainer that need no cluster; whole steps run in tests/e2e."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict

from soup_verl import checkpoint, trainer
from soup_verl.config import ConfigError, SoupConfig
from soup_verl.prompt_stream import ReadAheadLoader
from soup_verl.trainer import SessionsFailed, SoupTrainer, prompt_key

CHAT = [{"role": "user", "content": "1+1?"}]


def bare_trainer(**attributes):
    """A trainer without its set-up, which would start a cluster."""
    instance = SoupTrainer.__new__(SoupTrainer)
    vars(instance).update(attributes)
    return instance


def test_prompt_key_is_the_same_in_every_process_and_for_any_order_of_keys():
    assert prompt_key(CHAT) == "f9321022f2fcaa8f"
    assert prompt_key([{"content": "1+1?", "role": "user"}]) == prompt_key(CHAT)


@pytest.mark.parametrize(
    "other",
    [[{"role": "user", "content": "1+2?"}], [{"role": "system", "content": "1+1?"}], CHAT * 2, []],
)
def test_prompt_key_tells_prompts_apart(other):
    assert prompt_key(other) != prompt_key(CHAT)


def test_only_the_last_output_of_a_session_counts():
    keys = ["u_0_0", "u_0_1", "u_1_0", "v_0_10", "v_0_9"]
    assert SoupTrainer._counted_rows(SimpleNamespace(keys=keys)).tolist() == [False, True, True, True, False]


def test_non_tensor_fields_come_back_one_a_row():
    batch = TensorDict({"x": torch.zeros(2)}, batch_size=2)
    batch["raw"] = NonTensorStack(NonTensorData("a"), NonTensorData("b"))
    assert trainer._items(batch["raw"]) == ["a", "b"]


class Batches:
    """A data loader over batches of one prompt each, numbered."""

    def __iter__(self):
        return iter({"raw_prompt": [i]} for i in range(8))

    def __len__(self):
        return 8

    def state_dict(self):
        return {}


@pytest.mark.parametrize(
    ("train_batch_size", "gen_batch_size", "step", "prompts"),
    [(1, None, 2, [1]), (1, None, 5, [4]), (2, 1, 2, [2, 3]), (2, 1, 5, [0, 1])],  # an epoch has 8 batches
)
def test_prompts_of_a_step_to_come_when_step_1_was_fetched(train_batch_size, gen_batch_size, step, prompts):
    loader = ReadAheadLoader(Batches())
    for _ in range(train_batch_size):
        next(loader)
    config = OmegaConf.create({"data": {"train_batch_size": train_batch_size, "gen_batch_size": gen_batch_size}})
    instance = bare_trainer(config=config, train_dataloader=loader, _fetched_step=1)
    assert instance._prompts_of(step) == prompts


def resuming_trainer(folder, **settings):
    config = {"trainer": {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(folder)}}
    config["trainer"].update(settings)
    return bare_trainer(config=OmegaConf.create(config))


def save(folder):
    folder.mkdir(parents=True)
    checkpoint.write(folder, state={"step": 1}, write_history=lambda _: None, include_verl=True)
    return folder


def test_auto_resumes_from_the_newest_intact_checkpoint_and_names_the_torn_one(tmp_path, caplog):
    older, newer = save(tmp_path / "global_step_1"), save(tmp_path / "global_step_2")
    (newer / "soup" / "state.json").unlink()
    assert resuming_trainer(tmp_path)._checkpoint_to_resume() == older
    assert str(newer / "soup" / "state.json") in caplog.text


def test_auto_without_any_checkpoint_starts_anew(tmp_path):
    assert resuming_trainer(tmp_path)._checkpoint_to_resume() is None


def test_auto_refuses_when_verl_left_checkpoints_but_none_is_intact(tmp_path):
    folder = save(tmp_path / "global_step_1")
    (folder / "soup" / "manifest.json").unlink()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(ValueError, match="no intact checkpoint"):
        resuming_trainer(tmp_path)._checkpoint_to_resume()


def test_a_named_checkpoint_must_be_intact(tmp_path):
    folder = save(tmp_path / "global_step_1")
    instance = resuming_trainer(tmp_path, resume_mode="resume_path", resume_from_path=str(folder))
    assert instance._checkpoint_to_resume() == folder
    (folder / "soup" / "state.json").unlink()
    with pytest.raises(checkpoint.TornCheckpoint):
        instance._checkpoint_to_resume()


def test_resuming_can_be_switched_off(tmp_path):
    save(tmp_path / "global_step_1")
    assert resuming_trainer(tmp_path, resume_mode="disable")._checkpoint_to_resume() is None


def test_verl_is_told_exactly_which_checkpoint_and_gets_its_settings_back(tmp_path):
    instance = resuming_trainer(tmp_path)
    settings = instance.config.trainer
    with instance._resume_from(tmp_path / "global_step_1"):
        assert (settings.resume_mode, settings.resume_from_path) == ("resume_path", str(tmp_path / "global_step_1"))
    assert (settings.resume_mode, settings.resume_from_path) == ("auto", None)
    with instance._resume_from(None):
        assert settings.resume_mode == "disable"
    assert settings.resume_mode == "auto"


def test_the_cause_of_a_failed_session_replaces_what_verl_stumbles_over():
    manager = SimpleNamespace(take_errors=lambda: ["ValueError: bad reward", "other"])
    instance = bare_trainer(agent_loop_manager=manager, global_steps=3)
    with pytest.raises(SessionsFailed, match="2 responses failed at step 3; first: ValueError: bad reward"):
        with instance._failures_explained():
            raise RuntimeError("Received an empty list as keys")


def test_an_error_with_no_failed_session_is_left_alone():
    instance = bare_trainer(agent_loop_manager=SimpleNamespace(take_errors=list), global_steps=3)
    with pytest.raises(RuntimeError, match="empty"), instance._failures_explained():
        raise RuntimeError("empty")


class NotingGroup:
    """Stands in for a worker group or checkpoint manager: notes the calls."""

    def __init__(self, name, calls):
        self._name, self._calls = name, calls

    def __getattr__(self, method):
        return lambda *args: self._calls.append((method, *args))


def test_a_borrowed_policy_is_in_the_engine_inside_the_block_and_the_actor_has_its_own_back_after():
    calls = []
    instance = bare_trainer(
        actor_rollout_wg=NotingGroup("actor", calls), checkpoint_manager=NotingGroup("engine", calls)
    )
    with instance.borrowed_policy(2):
        calls.append("sample")
    assert calls == [
        ("save_model_to_cpu", "current"),
        ("restore_model_from_cpu", 2),
        ("update_weights", 2),
        "sample",
        ("sleep_replicas",),
        ("restore_model_from_cpu", "current"),
        ("clear_cpu_model", "current"),
    ]


def mixing_trainer(source, **config):
    return bare_trainer(
        _soup=SoupConfig(),
        _source=source,
        config=OmegaConf.create(
            {
                "actor_rollout_ref": {"rollout": {"n": 4}},
                "data": {"train_batch_size": 8},
                "trainer": {"resume_mode": "auto", "resume_from_path": None, **config},
            }
        ),
    )


def test_a_history_made_with_other_settings_is_refused(tmp_path, monkeypatch):
    loaded = []
    instance = mixing_trainer(SimpleNamespace(load=loaded.append), default_local_dir=str(tmp_path))
    monkeypatch.setattr(trainer.PPOTrainerSync, "_load_checkpoint", lambda self: None)
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    settings = instance._history_settings()
    state = {"step": 4, "settings": settings}
    checkpoint.write(folder, state=state, write_history=lambda _: None, include_verl=True)
    instance._load_checkpoint()
    assert loaded == [folder / "soup"]

    instance._soup = SoupConfig(seed=1)
    with pytest.raises(ConfigError, match=r"soup.seed=1: expected 0, as in .*global_step_4"):
        instance._load_checkpoint()
