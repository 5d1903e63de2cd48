"""The order of events that SoupTrainer leans on: a run, a step, and both ends of it."""

import time
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer, trainer_base

from tests.contract.verl_trainer import noting, recording, run_of

pytestmark = pytest.mark.contract


@pytest.fixture
def verl_without_loggers(monkeypatch):
    """verl's loop without the loggers, the skipping of rollouts and the transfer queue."""
    for name in ("Tracking", "ValidationGenerationsLogger", "DapoFilteredRewardTableLogger"):
        monkeypatch.setattr(trainer_base, name, lambda **_: SimpleNamespace(log=lambda **_: None))
    monkeypatch.setattr(trainer_base, "SkipManager", SimpleNamespace(init=lambda _: None, set_step=lambda _: None))
    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_clear=lambda **_: None))


def fit(events, config, metrics=lambda *_, **__: None):
    answers = dict.fromkeys(("on_train_begin", "on_step_end", "_save_checkpoint"))
    batch = SimpleNamespace(keys=["a_0_0"], partition_id="train")
    trainer = recording(events, config, step=batch, _validate={"score": 1.0}, **answers)
    trainer.total_training_steps, trainer.steps_per_epoch = config.trainer.total_training_steps, 10
    trainer._consume_sync_metrics = dict
    for name in ("reissue_inflight_prompts", "start_profiling", "stop_profiling"):
        setattr(trainer, f"_{name}", lambda *_, **__: None)
    trainer._compute_metrics = metrics
    trainer._shutdown_dump_executor = lambda: None
    manager = object()
    trainer.fit(manager)
    assert trainer.agent_loop_manager is manager
    return trainer


def test_a_run_begins_counts_steps_saves_and_ends_steps_in_the_order_we_expect(verl_without_loggers):
    events = []
    trainer = fit(events, run_of(val_before_train=True))
    assert "step" in trainer.timing_raw  # where we time prefixes too
    assert events == [
        ("_validate", 0),
        ("on_train_begin", 1),
        ("step", 1),
        ("on_step_end", 1),
        ("step", 2),
        ("_save_checkpoint", 2),
        ("on_step_end", 2),
        ("_validate", 2),
        ("step", 3),
        ("_save_checkpoint", 3),
        ("on_step_end", 3),
        ("_validate", 3),
    ]


@pytest.mark.parametrize(
    ("settings", "validated"),
    [({"val_before_train": False}, [2, 3]), ({"val_only": True}, [0]), ({"test_freq": 0}, [0])],
)
def test_verl_validates_before_training_then_every_so_often_and_at_the_last_step(
    verl_without_loggers, settings, validated
):
    events = []
    fit(events, run_of(**{"val_before_train": True} | settings))
    assert [step for name, step in events if name == "_validate"] == validated


def test_metrics_and_clean_up_are_of_the_rows_that_a_step_returns(verl_without_loggers, monkeypatch):
    """So `SoupTrainer.step` returns those, too, that were not trained on."""
    seen = []
    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_clear=lambda keys, partition_id: seen.append(keys)))
    trainer = fit([], run_of(val_before_train=False), metrics=lambda batch, *_, **__: seen.append(batch.keys))
    assert seen == [["a_0_0"], ["a_0_0"]] * trainer.total_training_steps


class StoppedHere(Exception):
    """The update would begin."""


@pytest.mark.parametrize("n", [2, 4])
def test_batches_and_mini_batches_are_multiples_of_the_responses_of_a_prompt(n):
    """With `soup.down_sampling` both must see those that are trained on, so `rollout.n` says it meanwhile."""
    config = run_of()
    config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.actor.ppo_mini_batch_size = n, 3
    trainer, batch = recording([], config), KVBatchMeta(partition_id="train", keys=[], tags=[])
    trainer.use_critic = False
    assert trainer._get_required_batch_multiple(1) == 3 * n

    def update(given):
        assert given.extra_info["mini_batch_size"] == given.extra_info["global_batch_size"] == 3 * n
        raise StoppedHere

    trainer.actor_rollout_wg = SimpleNamespace(update_actor=update)
    with pytest.raises(StoppedHere):
        trainer._update_actor(batch, {})


@pytest.mark.parametrize(("critic_warmup", "last"), [(0, ["_update_actor"]), (5, [])])
def test_a_step_samples_balances_recomputes_log_probs_and_only_then_has_advantages(critic_warmup, last):
    events, batch = [], SimpleNamespace(extra_info={}, tags=[], keys=[], partition_id="train")
    names = ["_balance_batch", "_compute_old_log_prob", "_compute_advantage", "_update_actor"]
    config = run_of(critic_warmup=critic_warmup)
    trainer = recording(events, config, prepare_step=None, on_sample_end=None, **dict.fromkeys(names, batch))
    trainer.replay_buffer = SimpleNamespace(sample=noting(trainer, events, "sample", (batch, {})))
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.use_reference_policy = trainer.use_critic = False
    trainer.parameter_sync_step, trainer.global_steps = 1, 2
    trainer.step({}, {})
    assert [name for name, _ in events] == ["prepare_step", "sample", "on_sample_end", *names[:3], *last]
    assert batch.extra_info["temperature"] == config.actor_rollout_ref.rollout.temperature


def test_a_step_counts_its_mini_batches_from_0(monkeypatch):
    """By which the samples that are written of a step come from all of them."""
    seen, trainer = [], recording([], OmegaConf.create({"data": {"train_batch_size": 6}}), prepare_step=None)
    batch = KVBatchMeta(partition_id="train", keys=[], tags=[])
    trainer._step_once = lambda metrics, timing, size: seen.append((trainer.local_trigger_step, size)) or batch
    trainer.parameter_sync_step = 3
    trainer.step({}, {})
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_batch_to_generate_is_taken_and_submitted():
    events = []
    trainer = recording(events, None, _next_train_batch="batch")
    trainer._submit_batch_to_rollout = events.append
    trainer._add_batch_to_generate()
    assert events == [("_next_train_batch", 0), "batch"]


def test_the_synchronous_trainer_sleeps_after_sampling_and_syncs_at_both_ends():
    events = []
    trainer = recording(events, None, _setup=None)
    trainer.global_steps, trainer.timing_raw, trainer.curr_step_profile = 7, {}, False
    trainer.checkpoint_manager = SimpleNamespace(
        update_weights=lambda version: events.append(version),
        sleep_replicas=noting(trainer, events, "sleep_replicas", None),
    )
    trainer.init()
    trainer.on_sample_end()
    trainer.on_step_end()
    assert events == [("_setup", 7), 7, ("sleep_replicas", 7), 7]


# ---- the advantage stage ----


def test_the_advantage_stage_reads_once_what_we_wrote_then_penalises_corrects_and_estimates(monkeypatch):
    """Nothing that we put into the queue before it can be missed, and nothing is corrected after it was estimated."""
    events, put = [], {}

    def jagged(*rows):
        return torch.nested.as_nested_tensor([torch.tensor(r) for r in rows], layout=torch.jagged)

    def get(keys, partition_id, select_fields):
        events.append(set(select_fields))
        ones = jagged([1.0, 1.0], [1.0])
        stored = dict.fromkeys(("rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob"), ones)
        mask = jagged([1, 1], [1])
        return TensorDict(stored | {"uid": NonTensorStack("u", "u"), "response_mask": mask}, batch_size=2)

    def estimate(data, **given):
        events.append((given["adv_estimator"], given["batch_keys"]))
        data.batch["advantages"] = data.batch["returns"] = data.batch["token_level_rewards"]
        return data

    def noted(name):
        def stage(data, *_, **__):
            events.append(name)
            data.batch["token_level_rewards"] = data.batch["token_level_scores"]
            return data, {name: 1.0}

        return stage

    queue = SimpleNamespace(kv_batch_get=get, kv_batch_put=lambda fields, **_: put.update(fields))
    monkeypatch.setattr(trainer_base, "tq", queue)
    monkeypatch.setattr(trainer_base, "apply_kl_penalty", noted("penalty"))
    monkeypatch.setattr(trainer_base, "compute_rollout_correction_and_add_to_batch", noted("correction"))
    monkeypatch.setattr(trainer_base, "compute_advantage_for_multi_trajectories", estimate)
    config, metrics = run_of(), {}
    config.algorithm.use_kl_in_reward = True
    trainer = recording([], config)
    trainer.kl_ctrl_in_reward = None
    trainer._compute_advantage(KVBatchMeta(partition_id="train", keys=["u_0_0", "u_1_0"], tags=[{}, {}]), metrics)
    fields, *stages = events
    assert {"uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs"} <= fields
    assert stages == ["penalty", "correction", ("soup", ["u_0_0", "u_1_0"])]
    assert metrics == {"penalty": 1.0, "correction": 1.0}
    assert [row.tolist() for row in put["advantages"].unbind()] == [[1, 1], [1]]


def test_the_replay_buffer_naps_as_long_as_we_say(monkeypatch):
    naps = []
    monkeypatch.setattr(replay_buffer.time, "sleep", naps.append)
    replay_buffer.ReplayBuffer._wait_for_next_poll(SimpleNamespace(poll_interval=0.25), "train", time.time())
    assert naps == [0.25]
