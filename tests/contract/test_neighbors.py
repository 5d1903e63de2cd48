"""What verl's losses, estimators and reward manager do with the settings of recipe/soup/config/neighbors."""

import asyncio
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.testing import assert_close
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from benchmarks import neighbors, verls
from benchmarks.run_inputs import nested as nested_settings
from benchmarks.run_inputs import parse_settings
from benchmarks.update import AGGREGATIONS
from soup_verl.method.policy_losses import LossTokens, loss_of_tokens
from soup_verl.method.sections import PolicyLossConfig
from tests.contract.test_batch_contract import nested
from tests.unit.preflight_files import configure

pytestmark = pytest.mark.contract

BUDGET = 100
RUN = (f"data.max_response_length={BUDGET}", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1")


def settings(name):
    return configure(*RUN, example=f"neighbors={name}")


def actor(name):
    config = settings(name)
    OmegaConf.resolve(config)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


# ---- losses ----


def gradient(name, log_probs, old_log_probs, advantages, mask):
    """d(-loss) / d(log_probs) by the loss and the aggregation that a file names; all (batch, response_length)."""
    config = actor(name)
    variable = log_probs.clone().requires_grad_()
    loss, _ = get_policy_loss_fn(config.policy_loss.loss_mode)(
        old_log_prob=old_log_probs,
        log_prob=variable,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode=config.loss_agg_mode,
        config=_with_scale(config),
    )
    return torch.autograd.grad(-loss, variable)[0]


def _with_scale(config):
    config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor  # as verl's ppo_loss hands it on
    return config


def test_dppo_tv_masks_by_the_distance_of_probabilities_and_cuts_no_ratio_of_the_project():
    """A = 2 above, -2 below; mu and pi so that pi - mu is 0.1, 0.2, -0.2, and 0.0099 with a ratio of 100."""
    mu = torch.tensor([[0.2, 0.2, 0.4, 0.0001]] * 2).double()
    pi = torch.tensor([[0.3, 0.4, 0.2, 0.01]] * 2).double()
    advantages = torch.tensor([[2.0] * 4, [-2.0] * 4]).double()
    expected = torch.tensor([[2 * 1.5, 0, 2 * 0.5, 2 * 100], [-2 * 1.5, -2 * 2, 0, -2 * 100]]).double()
    found = gradient("dppo_tv", pi.log(), mu.log(), advantages, torch.ones(2, 4))
    assert_close(found, expected / 2 / BUDGET)  # the mean of two responses, each a sum over the budget


def test_dppo_kl_masks_by_the_kl_of_token_against_rest():
    """mu = 0.5: KL(0.5 || 0.6) is 0.020, KL(0.5 || 0.7) 0.087 and KL(0.5 || 0.3) the same."""
    mu, pi = torch.full((2, 3), 0.5).double(), torch.tensor([[0.6, 0.7, 0.3]] * 2).double()
    advantages = torch.tensor([[1.0] * 3, [-1.0] * 3]).double()
    expected = torch.tensor([[1.2, 0, 0.6], [-1.2, -1.4, 0]]).double()
    found = gradient("dppo_kl", pi.log(), mu.log(), advantages, torch.ones(2, 3))
    assert_close(found, expected / 2 / BUDGET)


def test_kl_cov_adds_a_penalty_to_the_tokens_of_highest_covariance_and_clips_none():
    """500 tokens, so one is chosen: A is 1 on the likeliest token, which has the largest covariance."""
    pi = torch.full((1, 500), 0.2).double()
    pi[0, 7] = 0.8
    old = torch.full((1, 500), 0.1).double()
    advantages = torch.zeros(1, 500).double()
    advantages[0, 7], advantages[0, 8] = 1.0, 1.0
    found = gradient("kl_cov", pi.log(), old.log(), advantages, torch.ones(1, 500)) * 500
    assert found[0, 7].item() == pytest.approx(8 - 1)  # the ratio is 8; the penalty's slope is 1
    assert found[0, 8].item() == pytest.approx(2)  # past every clip, and not clipped
    assert found[0, 9:].abs().max() == 0


def test_clip_cov_takes_a_token_between_the_bounds_out_of_the_gradient():
    """Two tokens of A = 10 and -10: with log-probs 0 and -0.4 the covariance of each is 10 * 0.2 = 2, within 1 to 5."""
    log_probs = torch.tensor([[0.0, -0.4]]).double()
    advantages = torch.tensor([[10.0, -10.0]]).double()
    found = gradient("clip_cov", log_probs, log_probs, advantages, torch.ones(1, 2))
    assert sorted(found[0].tolist()) in ([-5, 0], [0, 5])  # one of the two, at least one a micro-batch
    weak = gradient("clip_cov", log_probs, log_probs, advantages / 10, torch.ones(1, 2))
    assert_close(weak, advantages / 20)  # 0.2 is below the bounds


def test_a_sum_over_tokens_is_divided_by_the_budget_only_where_the_file_names_it():
    """verl's V1 trainer pads a micro-batch to its longest response, which is what its own denominator would be."""
    mask = nested([1, 1, 1, 1], [1, 1], dtype=torch.int64)
    data = TensorDict(
        {
            "prompts": nested([1], [1], dtype=torch.int64),
            "responses": nested([1, 1, 1, 1], [1, 1], dtype=torch.int64),
            "response_mask": mask,
            "old_log_probs": nested([-1.0] * 4, [-1.0] * 2),
            "advantages": nested([1.0] * 4, [1.0] * 2),
        },
        batch_size=2,
    )
    for key, value in (("dp_size", 1), ("batch_num_tokens", 6), ("global_batch_size", 2)):
        tu.assign_non_tensor_data(data, key, value)
    output = {"log_probs": nested([-1.0] * 5, [-1.0] * 3)}
    config = actor("dr_grpo")
    loss, _ = ppo_loss(config=config, model_output=output, data=data)
    assert loss.item() == pytest.approx(-6 / 2 / BUDGET)
    without = configure(*RUN, "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm")
    OmegaConf.resolve(without)
    loss, _ = ppo_loss(omega_conf_to_dataclass(without.actor_rollout_ref.actor), model_output=output, data=data)
    assert loss.item() == pytest.approx(-6 / 2 / 4)


# ---- the search instrument ----


@pytest.mark.parametrize(
    "name", ["cispo", "clip_cov", "dppo_kl", "dppo_tv", "dr_grpo", "geo_mean", "gspo", "kl_cov", "sapo"]
)
def test_the_instruments_gradient_is_verls_with_the_files_configuration(name):
    generator = torch.Generator().manual_seed(0)
    old, new, advantages = (torch.randn(8, 12, generator=generator).double() for _ in range(3))
    mask = torch.arange(12) < torch.arange(5, 13)[:, None]  # responses of 5 to 12 tokens
    old, new = (torch.where(mask, x.sigmoid().log(), 0.0) for x in (old, new))
    torch.manual_seed(1)  # clip_cov draws
    expected = gradient(name, new, old, advantages, mask)
    loss = parse_settings(nested_settings(neighbors.read(name, response_length=BUDGET, prompts=4))).loss
    variable = torch.where(mask, new, torch.nan).requires_grad_()
    torch.manual_seed(1)
    if loss.mode is not None:
        found, _ = verls.policy_loss(variable, old, advantages, mask, loss)
    else:
        tokens = LossTokens(variable, old, advantages, mask, prefix_mask=torch.zeros_like(mask), behavior_log_probs=old)
        of_tokens = loss_of_tokens(tokens, PolicyLossConfig(), loss.clip)
        found = loss.aggregate(squared=False)(of_tokens.loss, mask)
    assert_close(torch.autograd.grad(-found, variable)[0], expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_instrument_aggregates_as_verl(mode):
    """A response without a token in the loss counts as one, as in verl's trainer, which names the size of the batch."""
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 1, 0, 3])[:, None]
    of_batch = {"dp_size": 1, "batch_num_tokens": 10, "global_batch_size": 4, "loss_scale_factor": 7}
    expected = agg_loss(values, mask, mode, **of_batch)
    assert_close(AGGREGATIONS[mode](torch.where(mask, values, torch.nan), mask, scale=7), expected)


@pytest.mark.parametrize("name", ["opo", "grpo_passk"])
def test_the_instruments_advantages_are_verls(name):
    """Rewards 1, 0, 0 of responses of 1, 2 and 3 tokens: OPO's baseline is 1 / 6."""
    rewards, mask = torch.tensor([1.0, 0, 0]), torch.arange(3) < torch.tensor([1, 2, 3])[:, None]
    estimator = neighbors.read(name, response_length=BUDGET, prompts=4)["adv_estimator"]
    found = verls.advantages(estimator, rewards, ["a"] * 3, mask, norm_by_std=False)
    by_hand = {"opo": [5 / 6, -1 / 6, -1 / 6], "grpo_passk": [1.0, 0.0, 0.0]}[name]
    assert_close(found, torch.where(mask, torch.tensor(by_hand)[:, None], 0.0))


# ---- estimators ----


def test_grpo_passk_trains_the_best_response_alone_and_fails_on_a_group_of_one():
    algorithm = settings("grpo_passk").algorithm
    estimate = get_adv_estimator_fn(algorithm.adv_estimator)
    rewards = torch.tensor([[0, 1.0], [0, 0], [0, 0], [0, 0], [0, 1.0], [0, 1.0]])
    uids = np.array(list("aaaabb"), dtype=object)
    found, _ = estimate(rewards, torch.ones(6, 2), index=uids, config=algorithm)
    assert_close(found[0], torch.full((2,), 1 / 0.5), atol=1e-4, rtol=0)  # the group's std is 0.5
    assert not found[1:].any()  # two right answers: the best is no better than the second
    with pytest.raises(ValueError, match="at least 2 samples per group"):
        estimate(rewards[:1], torch.ones(1, 2), index=uids[:1], config=algorithm)


# ---- DAPO's reward ----


@pytest.mark.parametrize(("tokens", "reward"), [(50, 1.0), (80, 1.0), (90, 0.5), (100, 0.0)])
def test_dapo_takes_from_the_reward_over_the_last_fifth_of_the_budget(tokens, reward):
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return "x" * len(ids)

    def score(**_):
        return {"score": 1.0, "acc": 1.0}

    config = settings("dapo")
    manager_class = get_reward_manager_cls(config.reward.reward_manager.name)
    data = DataProto(
        batch=TensorDict(
            {"responses": torch.ones(1, tokens).long(), "attention_mask": torch.ones(1, tokens + 3).long()},
            batch_size=1,
        ),
        non_tensor_batch={
            "data_source": np.array(["x"], dtype=object),
            "reward_model": np.array([{"ground_truth": "4"}], dtype=object),
        },
    )

    async def run():
        return await manager_class(config=config, tokenizer=Tokenizer(), compute_score=score).run_single(data)

    found = asyncio.run(run())
    assert math.isclose(float(found["reward_score"]), reward, abs_tol=1e-6)
    assert found["reward_extra_info"] == {"score": 1.0, "acc": 1.0}
