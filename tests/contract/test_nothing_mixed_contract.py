"""`mixed_fraction: 0` on each of verl's trainers: what ranks are given and asked between sampling and the next step is
verl's own. tests/e2e/test_grpo_identity.py and test_inflight.py compare whole runs of the first two."""

from types import SimpleNamespace

import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from soup_verl.method.observation import History
from soup_verl.method.step import plan_of_run
from soup_verl.stack import inflight_trainer
from soup_verl.stack.inflight_trainer import SoupColocateAsyncTrainer, SoupSeparateAsyncTrainer
from soup_verl.stack.trainer import SoupTrainer
from tests.contract.test_stages_on_queue import STEP, Actor, stored
from tests.unit import preflight_files as files
from tests.unit.stack.transfer_queue import Queue

pytestmark = pytest.mark.contract
PAIRS = {
    "sync": (PPOTrainerSync, SoupTrainer),
    "colocate_async": (PPOTrainerColocateAsync, SoupColocateAsyncTrainer),
    "separate_async": (PPOTrainerSeparateAsync, SoupSeparateAsyncTrainer),
}
REWARDS = ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
"""Of three responses to each of a mini-batch's two prompts."""
OURS = {"prefix_mask", "policy_version", "token_versions"}
"""Fields that our worker adds where it mixes."""


class NotingActor(Actor):
    """Also notes how it is told to keep weights and take them back, which is how `separate_async` anchors updates."""

    def __init__(self, queue):
        super().__init__(queue, ranks=2)
        self.told = []

    def save_model_to_cpu(self, number):
        self.told.append(("save", number))

    def restore_model_from_cpu(self, number):
        self.told.append(("restore", number))

    def clear_cpu_model(self, number):
        self.told.append(("clear", number))


def trainer_of(kind, mode, estimator):
    config = files.configure(
        "data.train_batch_size=4",
        "actor_rollout_ref.rollout.n=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
        "data.max_response_length=8",
        "soup.mixed_fraction=0",
        f"trainer.v1.trainer_mode={mode}",
        f"algorithm.adv_estimator={estimator}",
    )
    trainer = kind(config)
    trainer.global_steps, trainer.distillation_config, trainer.timing_raw = STEP, None, {}
    trainer.local_trigger_step = 1  # the second update between two syncs of weights
    trainer.tokenizer = files.byte_tokenizer()
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 2)
    if hasattr(trainer, "_soup"):
        trainer._history = History(trainer._soup, plan_of_run(trainer._soup, n=3, response_length=8, last_step=9))
        trainer._place_of_uid = {"u0": 0, "u1": 1}
        trainer._key_of_uid = {"u0": "key 0", "u1": "key 1"}
    return trainer


def step(trainer, monkeypatch):
    """What each rank reads for the update, by row; what the actor was told; the metrics."""
    queue = Queue().stand_in(monkeypatch)
    for i, rewards in enumerate(REWARDS):
        for session, reward in enumerate(rewards):
            key, fields, tag = stored(f"u{i}", session, i, "text", 2 + i + session, 0, reward)
            given = {name: value for name, value in fields.items() if name not in OURS}
            queue.kv_batch_put([key], "train", list_of_dict_to_tensordict([given]), [tag])
    trainer.actor_rollout_wg = NotingActor(queue)
    keys, metrics = list(queue.rows), {}
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[queue.tags[key] for key in keys])
    batch.extra_info["temperature"] = 1.0
    for stage in (trainer._balance_batch, trainer._compute_old_log_prob, trainer._compute_advantage):
        batch = stage(batch, metrics=metrics)
    batch = trainer._update_actor(batch, metrics=metrics)
    names = ("input_ids", "advantages", "old_log_probs", "response_mask", "loss_mask")
    read = {
        tuple(row["input_ids"].tolist()): row
        for share in trainer.actor_rollout_wg.updated
        for row in ({name: share[name].unbind()[i] for name in names} for i in range(len(share)))
    }
    return read, trainer.actor_rollout_wg.told, metrics


@pytest.mark.parametrize("mode", PAIRS)
def test_the_ranks_are_given_and_asked_what_verls_own_trainer_does(mode, monkeypatch):
    monkeypatch.setattr(inflight_trainer, "check_pools", lambda config: None)  # of a cluster
    verls, ours = PAIRS[mode]
    expected, told, verls_metrics = step(trainer_of(verls, mode, "grpo"), monkeypatch)
    found, told_by_ours, metrics = step(trainer_of(ours, mode, "soup"), monkeypatch)
    assert len(expected) == 6 and found.keys() == expected.keys()
    assert any(row["advantages"].abs().max() > 0 for row in expected.values())
    for key, row in expected.items():
        for name, value in row.items():
            torch.testing.assert_close(found[key][name], value, rtol=0, atol=0, msg=name)
    assert told_by_ours == told and bool(told) == (mode == "separate_async")
    assert verls_metrics.items() <= metrics.items()
