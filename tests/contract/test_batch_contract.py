"""Batch fields, padding, estimator call and metrics on their way through verl."""

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
from verl.trainer.ppo.ray_trainer import AdvantageEstimator
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.metric import Metric, reduce_metrics
from verl.utils.py_functional import rename_dict
from verl.workers.config import RolloutConfig
from verl.workers.utils.padding import no_padding_2_padding, response_from_nested, response_to_nested

from soup_verl.method import step
from soup_verl.method.metrics import finish_update_metrics, update_sums
from soup_verl.stack.actor_worker import SUM_PREFIX
from soup_verl.stack.register import estimating_with

pytestmark = pytest.mark.contract


def nested(*rows, dtype=torch.float32):
    return torch.nested.as_nested_tensor([torch.tensor(r, dtype=dtype) for r in rows], layout=torch.jagged)


# ---- fields ----


def test_nested_fields_keep_the_lengths_of_the_response_mask():
    mask = nested([1, 1, 1], [1], dtype=torch.int64)
    back = response_to_nested(torch.arange(8.0).reshape(2, 4), mask)
    assert [row.tolist() for row in back.unbind()] == [[0, 1, 2], [4]]


def test_verls_model_output_is_shifted_by_one_token():
    data = {"prompts": nested([1, 2], dtype=torch.int64), "responses": nested([3, 4], dtype=torch.int64)}
    output = nested([0.0, 1.0, 2.0, 3.0])
    assert [r.tolist() for r in response_from_nested(output, data["responses"]).unbind()] == [[1, 2]]
    assert no_padding_2_padding(output, TensorDict(data, batch_size=1)).tolist() == [[1, 2]]


def test_a_padding_row_has_one_masked_token_but_copies_fields_it_does_not_know():
    """Why SoupTrainer writes its own fields for padding rows."""
    source = {
        "position_ids": torch.arange(4),
        "prefix_mask": torch.tensor([1, 0, 0], dtype=torch.int8),
        "policy_version": torch.tensor(3),
    }
    row, tag = construct_minimal_padding_template(source, {"seq_len": 4}, eos_token_id=2)
    assert tag["is_padding"] is True
    for name in ("responses", "response_mask", "loss_mask", "rm_scores", "rollout_log_probs"):
        assert row[name].shape == (1,)
    assert row["response_mask"].tolist() == row["loss_mask"].tolist() == row["rm_scores"].tolist() == [0]
    assert row["prefix_mask"].shape == (3,) and row["policy_version"] == 3


def test_rollout_log_probs_are_those_of_the_sampling_temperature():
    assert RolloutConfig.__dataclass_fields__["logprobs_mode"].default == "processed_logprobs"


# ---- the estimator ----


def compute_advantage(keys, uids, rewards, mask, adv_estimator):
    data = DataProto.from_single_dict(
        {
            "token_level_rewards": rewards.clone(),
            "response_mask": mask,
            "uid": np.array(uids, dtype=object),
        }
    )
    out = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=keys,
        adv_estimator=adv_estimator,
        num_repeat=2,
        norm_adv_by_std_in_grpo=True,
        config={},
    )
    return out.batch["advantages"]


def test_verl_hands_the_estimator_every_row_and_our_counted_rows_make_it_grpo():
    """Sessions with several outputs: verl's GRPO counts the last one of each and gives its advantage to the others.
    Ours gets all rows; the reward of a session stands in each of its rows."""
    keys = ["u_0_0", "u_0_1", "u_1_0", "u_2_0"]
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [0.0, 6.0]])
    counted = torch.tensor([False, True, True, True])
    estimate = partial(step.advantages, versions=[-1] * 4, baseline="shared", norm_by_std=True, counted=counted)
    with estimating_with(estimate):
        ours = compute_advantage(keys, ["u"] * 4, rewards, mask, "soup")
    assert torch.equal(ours, compute_advantage(keys, ["u"] * 4, rewards, mask, AdvantageEstimator.GRPO))


# ---- metrics ----


def sums_of(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 4)
    return update_sums(
        log_probs=-torch.rand(shape, generator=generator),
        old_log_probs=-torch.rand(shape, generator=generator) * 2,
        advantages=torch.randn(shape, generator=generator),
        response_mask=torch.ones(shape),
        prefix_mask=torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]),
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=3.0,
    )


def collected(key, parts):
    metric = Metric(aggregation="max" if key.endswith("_max") else "sum")
    for part in parts:
        metric.append(Metric(value=part[key], aggregation=metric.aggregation))
    return metric


def test_no_key_of_ours_is_reduced_by_its_name_in_a_way_we_do_not_mean():
    for key in sums_of(0):
        assert "min" not in key
        assert ("max" in key) == key.endswith("_max")


def test_segment_sums_survive_micro_batches_ranks_and_mini_batches():
    """2 mini-batches x 2 ranks x 2 micro-batches, reduced as TrainingWorker and PPOTrainer._update_actor do
    (test_worker_contract.py, test_policy_engine_contract.py)."""
    everything, mini_batches = [], {}
    for mini in range(2):
        ranks = []
        for rank in range(2):
            parts = [sums_of(4 * mini + 2 * rank + micro) for micro in range(2)]
            everything += parts
            ranks.append({key: collected(key, parts) for key in parts[0]})
        for key in ranks[0]:
            mini_batches.setdefault(SUM_PREFIX + key, []).append(Metric.aggregate_dp([r[key] for r in ranks]))
    reduced = reduce_metrics(rename_dict(mini_batches, "actor/"))
    prefix = f"actor/{SUM_PREFIX}"
    assert all(key.startswith(prefix) for key in reduced)
    got = finish_update_metrics({key.removeprefix(prefix): value for key, value in reduced.items()})
    whole = {k: (max if k.endswith("_max") else sum)(p[k] for p in everything) for k in everything[0]}
    assert got == pytest.approx(finish_update_metrics(whole))
