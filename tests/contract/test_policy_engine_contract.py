"""What soup_verl/policy_engine.py leans on, and how settings reach the loss on a worker."""

import inspect

import pytest
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.single_controller.base import decorator
from verl.single_controller.base.decorator import MAGIC_ATTR
from verl.single_controller.base.worker_group import WorkerGroup
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils import transferqueue_utils
from verl.workers.engine import utils as engine_utils
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_from_nested

from soup_verl.actor_worker import PREFIX_CORRECTION, SHAPED_GAMMA
from soup_verl.policy_engine import _actor_fields

pytestmark = pytest.mark.contract


# ---- the actor's log-probs ----


def test_verl_asks_the_actor_for_log_probs_as_we_do():
    source = inspect.getsource(PPOTrainer._compute_old_log_prob)
    for text in (
        '"calculate_entropy": True',
        '"compute_loss": False',
        '"temperature": self.config.actor_rollout_ref.rollout.temperature',
        "self.actor_rollout_wg.compute_log_prob(batch)",
        'response_from_nested(data.pop("log_probs"), data["response_mask"])',
    ):
        assert text in source, text


def test_rows_are_dealt_out_over_the_ranks_of_the_mesh_we_ask_for():
    attributes = getattr(ActorRolloutRefWorker.compute_log_prob, MAGIC_ATTR)
    assert attributes["dispatch_mode"]["dispatch_fn"].args == ("actor",)
    source = inspect.getsource(decorator.dispatch_lazy_compute_data_proto)
    assert "worker_group._dispatch_info[mesh_name] = worker_group._query_dispatch_info(mesh_name)" in source
    assert "dp_size = max(dp_rank_mapping) + 1" in source
    assert "self._dispatch_info = {}" in inspect.getsource(WorkerGroup.__init__)


def test_without_dynamic_batches_each_rank_needs_a_multiple_of_the_micro_batch_size_we_read():
    source = inspect.getsource(ActorRolloutRefWorker.init_model)
    assert "self.config.actor.use_dynamic_bsz == self.config.rollout.log_prob_use_dynamic_bsz" in source
    setting = (
        "infer_micro_batch_size_per_gpu = (\n                self.config.rollout.log_prob_micro_batch_size_per_gpu"
    )
    assert setting in source
    three = TensorDict({"x": torch.zeros(3, 1)}, batch_size=3)
    tu.assign_non_tensor(three, micro_batch_size_per_gpu=2, use_dynamic_bsz=False, sp_size=1)
    with pytest.raises(AssertionError, match="divisible"):
        engine_utils.prepare_micro_batches(three)


def test_a_sequence_has_the_fields_verls_agent_loop_gives_it():
    rows = [_actor_fields([1, 2], [5, 6, 7]), _actor_fields([3], [9])]
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


def test_what_a_batch_carries_beside_its_rows_reaches_the_worker_as_entries():
    source = inspect.getsource(transferqueue_utils._async_meta_to_realdata)
    assert "meta_info = copy.deepcopy(meta.extra_info)" in source
    assert "tu.assign_non_tensor_data(tensor_dict=tensordict, key=key, val=val)" in source
    assert "batch.extra_info.update(extra_info)" in inspect.getsource(PPOTrainer._update_actor)


def test_entries_survive_mini_batches_and_micro_batches():
    data = TensorDict({"x": torch.arange(8.0).unsqueeze(1)}, batch_size=8)
    tu.assign_non_tensor(data, **{SHAPED_GAMMA: 0.25, PREFIX_CORRECTION: "min_prefix"})
    mini_batches = list(
        tu.make_iterator(data, mini_batch_size=4, epochs=1, seed=1, dataloader_kwargs={"shuffle": True})
    )
    assert len(mini_batches) == 2
    for part in [micro for mini in mini_batches for micro in tu.chunk_tensordict(mini, 2)]:
        assert tu.get_non_tensor_data(part, SHAPED_GAMMA, 0.0) == 0.25
        assert tu.get_non_tensor_data(part, PREFIX_CORRECTION, "none") == "min_prefix"
    assert tu.get_non_tensor_data(part, "another", "none") == "none"
