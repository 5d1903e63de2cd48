"""Interrupted responses on their way from TransferQueue to the loss; `tests/contract/test_inflight_contract.py` has how
their versions get there."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.checkpoint_engine import CheckpointEngineRegistry
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync

from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.step import trained_tokens
from soup_verl.stack import batch as batches
from soup_verl.stack import inflight_trainer
from soup_verl.stack.inflight import RecordingClient
from soup_verl.stack.inflight_trainer import SoupColocateAsyncTrainer, SoupSeparateAsyncTrainer, check_pools
from soup_verl.stack.trainer import SoupStages, verls_name
from tests.unit.stack.test_batch import PADDING, row, stored

__all__ = ["stored"]  # a fixture


def interrupted(response, versions, **fields):
    made = row(response, **fields) | {"token_versions": torch.tensor(versions, dtype=torch.int32)}
    del made["prefix_mask"], made["policy_version"]
    return made


def read(batch):
    return batches.read(batch, planned=False, interrupted=True, current_version=5, recomputed=True)


def test_what_is_older_than_the_current_policy_is_historical(stored):
    rows = [interrupted([5, 6, 2], [3, 4, 5]), interrupted([7, 2], [4, 4]), interrupted([8], [5])]
    batch, _ = stored(rows)
    data = read(batch).responses
    assert data.prefix_mask.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]] and data.stale_apart
    assert data.policy_version.tolist() == [[3, 4, -1], [4, 4, -1], [-1, -1, -1]]
    assert data.is_stale.tolist() == [False, True, False]


def test_tokens_that_no_policy_sampled_are_not_historical(stored):
    asked = interrupted([5, 6, 2], [4, -1, 5], response_mask=torch.tensor([1, 0, 1]))
    batch, _ = stored([asked])
    assert read(batch).responses.prefix_mask.tolist() == [[1, 0, 0]]


def test_the_loss_finds_the_mask_and_the_anchors(stored):
    batch, queue = stored([interrupted([5, 6, 2], [3, 4, 5]), interrupted([8], [5])])
    found = read(batch)
    soup = SoupConfig.parse({"source": "inflight", "mixed_fraction": 1})
    batches.write_trained_tokens(batch, found, trained_tokens(found.responses, soup)[0])
    first, second = (queue.rows[key] for key in batch.keys)
    assert first["prefix_mask"].tolist() == [1, 1, 0] and second["prefix_mask"].tolist() == [0]
    assert first["old_log_probs"].tolist() == [0, -0.25, -1.0]  # the rollout's, then the trainer's


def test_a_padding_row_is_as_long_as_verl_made_it(stored):
    rows = [interrupted([5, 6], [3, 5]), interrupted([2], [3, 5], response_mask=torch.tensor([0]))]
    batch, queue = stored(rows, [{}, PADDING])
    batches.mark_padding_unmixed(batch, interrupted=True)
    assert queue.rows[batch.keys[1]]["token_versions"].shape == (1,)
    assert read(batch).responses.prefix_mask.tolist() == [[1, 0], [0, 0]]


def trainer(kind=SoupColocateAsyncTrainer, **attributes):
    made = kind.__new__(kind)
    vars(made).update(attributes)
    return made


KINDS = {
    "colocate_async": (SoupColocateAsyncTrainer, PPOTrainerColocateAsync, "llm_server_manager"),
    "separate_async": (SoupSeparateAsyncTrainer, PPOTrainerSeparateAsync, "standalone_server_manager"),
}


@pytest.mark.parametrize("name", KINDS)
def test_verl_is_told_what_kind_of_trainer_it_is(name):
    ours, verls, _ = KINDS[name]
    assert issubclass(ours, verls) and verls_name(trainer(ours)) == name


@pytest.mark.parametrize("name", KINDS)
def test_the_client_records_and_asks_the_engines_that_sample(name):
    ours, _, manager = KINDS[name]
    servers = SimpleNamespace(get_client=lambda client_cls: client_cls)
    assert trainer(ours, **{manager: servers}).get_llm_client() is RecordingClient


def pools(*, rollout=1, backend="nixl", module=None):
    engine = {"backend": backend, "custom_backend_module": module}
    own = {"nnodes": 1, "n_gpus_per_node": rollout, "checkpoint_engine": engine}
    return OmegaConf.create({"trainer": {"nnodes": 2, "n_gpus_per_node": 2}, "actor_rollout_ref": {"rollout": own}})


@pytest.fixture
def six_gpus(monkeypatch):
    monkeypatch.setattr(inflight_trainer, "get_resource_name", lambda: "GPU")
    monkeypatch.setattr(inflight_trainer.ray, "cluster_resources", lambda: {"GPU": 6.0})


def test_pools_that_a_cluster_has_not_are_refused(six_gpus):
    check_pools(pools(rollout=2, backend="naive"))
    with pytest.raises(ConfigError) as caught:
        check_pools(pools(rollout=3, backend="naive"))
    assert str(caught.value) == (
        "actor_rollout_ref.rollout.n_gpus_per_node=3: expected 6 GPUs at most on both sides: the cluster has no more, "
        "trainer and rollout ask for 7. They have pools of their own."
    )


def test_a_checkpoint_engine_that_verl_does_not_know_is_refused_and_a_module_of_the_users_may_bring_it(
    six_gpus, tmp_path, monkeypatch
):
    expected = (
        "actor_rollout_ref.rollout.checkpoint_engine.backend='pigeon': expected a checkpoint engine that can be used "
        "here (Checkpoint engine pigeon not registered, registered backends: "
    )
    monkeypatch.setattr(CheckpointEngineRegistry, "_registry", dict(CheckpointEngineRegistry._registry))
    with pytest.raises(ConfigError) as caught:
        check_pools(pools(backend="pigeon"))
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    (tmp_path / "pigeons.py").write_text(
        "from verl.checkpoint_engine import CheckpointEngineRegistry as registry\nregistry.register('pigeon')(object)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check_pools(pools(backend="pigeon", module="pigeons"))


def test_rows_are_in_the_order_of_submission_and_prompts_under_way_keep_their_places(monkeypatch):
    """a, b, c and e were submitted; a is still under way, verl has dropped e, and d comes from a checkpoint."""
    seen = []
    monkeypatch.setattr(
        SoupStages, "_balance_batch", lambda self, batch, *_, **__: seen.append(dict(self._place_of_uid)) or batch
    )
    buffer = SimpleNamespace(prompt_global_steps={"train": dict.fromkeys("abcd", 1)})
    made = trainer(_place_of_uid={"a": 0, "b": 1, "c": 2, "e": 3}, replay_buffer=buffer)
    keys = ["c_0_0", "d_0_0", "b_1_0", "b_0_0"]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
    assert made._balance_batch(batch) is batch
    assert seen == [{"d": 0, "b": 1, "c": 2}] and made._place_of_uid == {"a": 0}
