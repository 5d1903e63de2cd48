"""What soup_verl/stack/policy_engine.py leans on, and how settings reach the loss on a worker."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.single_controller.base import decorator
from verl.single_controller.base.decorator import MAGIC_ATTR
from verl.single_controller.base.worker_group import WorkerGroup
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base
from verl.utils import ray_utils, transferqueue_utils
from verl.utils import tensordict_utils as tu
from verl.workers.engine import utils as engine_utils
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_from_nested

from soup_verl.method.step import InLoss
from soup_verl.stack.actor_worker import IN_LOSS
from soup_verl.stack.images import ActorPrompt
from soup_verl.stack.policy_engine import _actor_fields
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract


# ---- the actor's log-probs ----


class Stop(Exception):
    """Ends a function of verl's where what follows needs more than we look at."""


@pytest.fixture
def queue(monkeypatch):
    """A transfer queue of two rows: log-probs and entropy as the model gives them, a place early."""
    mask = torch.nested.as_nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged)
    output = torch.nested.as_nested_tensor([torch.arange(4.0), torch.arange(2.0)], layout=torch.jagged)
    rows = {"log_probs": output, "entropy": 2 * output, "response_mask": mask, "rollout_log_probs": -output}
    written = []

    def put(keys, partition_id, fields):
        written.append({name: [row.tolist() for row in field.unbind()] for name, field in fields.items()})
        raise Stop

    def get(keys, partition_id, select_fields):
        return TensorDict({name: rows[name] for name in select_fields if name in rows}, batch_size=2)

    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=put))
    return written


def old_log_probs_of(bypass_mode):
    """The requests that verl makes of the actor for a batch's old log-probs."""
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.config = files.configure("actor_rollout_ref.rollout.n=4")
    trainer.config.actor_rollout_ref.rollout.temperature = 0.7
    trainer.config.algorithm.rollout_correction.bypass_mode = bypass_mode
    requests = []
    trainer.actor_rollout_wg = SimpleNamespace(compute_log_prob=lambda b: requests.append(dict(b.extra_info)) or b)
    with pytest.raises(Stop):
        trainer._compute_old_log_prob(tq.KVBatchMeta(keys=["a", "b"], tags=[{}, {}], partition_id="train"), {})
    return requests


def test_verl_asks_the_actor_for_log_probs_as_we_do(queue):
    assert old_log_probs_of(False) == [{"calculate_entropy": True, "compute_loss": False, "temperature": 0.7}]
    # both are those of the response's tokens: the model's output for a token stands one place before it
    assert queue == [{"old_log_probs": [[1, 2], [0]], "entropy": [[2, 4], [0]]}]


def test_in_bypass_mode_verl_asks_nothing_of_the_actor_and_takes_the_engines(queue):
    assert old_log_probs_of(True) == []
    assert queue == [{"old_log_probs": [[0, -1, -2, -3], [0, -1]]}]


def test_rows_are_dealt_out_over_the_ranks_of_the_mesh_we_ask_for(monkeypatch):
    """Ranks that hold the same rows are asked once, and what they answered is kept."""
    attributes = getattr(ActorRolloutRefWorker.compute_log_prob, MAGIC_ATTR)
    assert attributes["dispatch_mode"]["dispatch_fn"].args == ("actor",)
    asked = []

    class Group(WorkerGroup):
        world_size = 4

        def _query_dispatch_info(self, mesh):
            asked.append(mesh)
            return [0, 0, 1, 1]

    monkeypatch.setattr(ray_utils, "parallel_put", lambda parts, max_workers: parts)
    group = Group(resource_pool=None)
    batch = TensorDict({"x": torch.arange(4.0)}, batch_size=4)
    for _ in range(2):
        (parts,), _ = decorator.dispatch_lazy_compute_data_proto("actor", group, batch)
        assert [part["x"].tolist() for part in parts] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert asked == ["actor"] and group._dispatch_info == {"actor": [0, 0, 1, 1]}


def test_without_dynamic_batches_each_rank_needs_a_multiple_of_the_micro_batch_size_we_read():
    """That it is the size we read: test_worker_contract.py."""
    three = TensorDict({"x": torch.zeros(3, 1)}, batch_size=3)
    tu.assign_non_tensor(three, micro_batch_size_per_gpu=2, use_dynamic_bsz=False, sp_size=1)
    with pytest.raises(AssertionError, match="divisible"):
        engine_utils.prepare_micro_batches(three)


def test_a_sequence_has_the_fields_verls_agent_loop_gives_it():
    rows = [_actor_fields(ActorPrompt.of_text(p), r) for p, r in (([1, 2], [5, 6, 7]), ([3], [9]))]
    fields = tu.list_of_dict_to_tensordict(rows)
    assert len(fields) == 2
    for name in ("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids"):
        assert fields[name].is_nested, name
    assert [row.tolist() for row in fields["input_ids"].unbind()] == [[1, 2, 5, 6, 7], [3, 9]]
    # the model's output for a token stands one place before it
    output = torch.nested.as_nested_tensor([torch.arange(5.0), torch.arange(2.0)], layout=torch.jagged)
    scores = response_from_nested(output, fields["response_mask"])
    assert [row.tolist() for row in scores.unbind()] == [[1, 2, 3], [0]]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (tq.kv_batch_put, {"keys": [], "partition_id": "p", "fields": None, "tags": []}),
        (tq.kv_batch_get, {"keys": [], "partition_id": "p", "select_fields": []}),
        (tq.kv_clear, {"keys": [], "partition_id": "p"}),
    ],
)
def test_the_queue_takes_what_we_pass(function, arguments):
    inspect.signature(function).bind(**arguments)


# ---- settings on their way into the loss ----


def test_what_a_batch_carries_beside_its_rows_reaches_the_worker_as_entries(monkeypatch):
    async def get_data(meta):
        return TensorDict({"x": torch.zeros(2)}, batch_size=2)

    monkeypatch.setattr(transferqueue_utils.tq, "get_client", lambda: SimpleNamespace(async_get_data=get_data))
    meta = SimpleNamespace(extra_info={IN_LOSS: InLoss("shaped")}, size=2)
    data = asyncio.run(transferqueue_utils._async_meta_to_realdata(meta))
    assert tu.get_non_tensor_data(data, IN_LOSS, InLoss()) == InLoss("shaped")


def test_verl_adds_its_own_to_what_a_batch_carries_and_names_the_actors_metrics():
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.config = files.configure("actor_rollout_ref.rollout.n=4")
    batch, metrics = tq.KVBatchMeta(keys=[], tags=[], partition_id="train", extra_info={IN_LOSS: InLoss("shaped")}), {}
    output = {"metrics": {"mfu": [0.5], "loss": [1.0, 3.0]}}
    trainer.actor_rollout_wg = SimpleNamespace(update_actor=lambda b: output)
    trainer._update_actor(batch, metrics)
    assert batch.extra_info[IN_LOSS] == InLoss("shaped") and batch.extra_info["epochs"] == 1
    assert metrics == {"perf/mfu/actor": 0.5, "actor/loss": 2.0}


def test_entries_survive_mini_batches_and_micro_batches():
    data = TensorDict({"x": torch.arange(8.0).unsqueeze(1)}, batch_size=8)
    tu.assign_non_tensor(data, **{IN_LOSS: InLoss("shaped", "min_prefix", 0.25)})
    mini_batches = list(
        tu.make_iterator(data, mini_batch_size=4, epochs=1, seed=1, dataloader_kwargs={"shuffle": True})
    )
    assert len(mini_batches) == 2
    for part in [micro for mini in mini_batches for micro in tu.chunk_tensordict(mini, 2)]:
        assert tu.get_non_tensor_data(part, IN_LOSS, InLoss()) == InLoss("shaped", "min_prefix", 0.25)
    assert tu.get_non_tensor_data(part, "another", "none") == "none"
