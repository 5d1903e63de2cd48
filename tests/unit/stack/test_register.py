import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

from soup_verl.stack.register import (
    compute_soup_advantage,
    compute_soup_policy_loss,
    estimating_with,
    losing_with,
)

REWARDS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_verl_finds_the_estimator_by_its_name():
    assert get_adv_estimator_fn("soup") is compute_soup_advantage


def test_the_trainers_function_gets_rewards_uids_and_mask():
    def estimate(rewards, uids, mask):
        assert rewards.tolist() == [1, 3] and uids == ["a", "b"] and mask is MASK
        return torch.full((2, 3), 7.0)

    with estimating_with(estimate):
        advantages, returns = compute_soup_advantage(REWARDS, MASK, ("a", "b"), config=None, reward_baselines=None)
    assert returns is advantages and advantages.tolist() == [[7.0] * 3] * 2


def test_outside_of_a_step_the_estimator_says_what_is_missing():
    with estimating_with(lambda rewards, uids, mask: mask):
        compute_soup_advantage(REWARDS, MASK, ["a", "a"])
    with pytest.raises(ValueError, match="trainer.v1.trainer_mode=soup"):
        compute_soup_advantage(REWARDS, MASK, ["a", "a"])


def test_a_block_that_fails_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), estimating_with(lambda rewards, uids, mask: mask):
        raise ZeroDivisionError
    with pytest.raises(ValueError):
        compute_soup_advantage(REWARDS, MASK, ["a", "a"])


# ---- the policy loss ----


class ActorConfig:
    global_batch_info: dict = {}


def policy_loss(**changes):
    """Losses 1 to 6, of which five count; log-probs one nat apart."""
    losses = torch.arange(1.0, 7).view(2, 3)
    with losing_with(lambda log_probs, old_log_probs, advantages: losses):
        return compute_soup_policy_loss(-MASK - 1.0, -MASK - 2.0, REWARDS, MASK.bool(), config=ActorConfig(), **changes)


def test_verl_finds_the_policy_loss_by_its_name():
    assert get_policy_loss_fn("soup") is compute_soup_policy_loss


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("token-mean", 3), ("token-sum", 15), ("seq-mean-token-sum", 7.5), ("seq-mean-token-mean", 3.25)],
)
def test_losses_are_aggregated_as_verl_does(mode, expected):
    loss, metrics = policy_loss(loss_agg_mode=mode)
    assert loss.item() == pytest.approx(expected) and metrics == {"actor/ppo_kl": pytest.approx(1)}


def test_verls_correction_weights_each_token():
    assert policy_loss(rollout_is_weights=torch.full((2, 3), 2.0))[0].item() == pytest.approx(6)


def test_outside_of_the_actor_the_loss_says_what_is_missing():
    with pytest.raises(ValueError, match="soup.policy_loss.name"):
        compute_soup_policy_loss(REWARDS, REWARDS, REWARDS, MASK)
