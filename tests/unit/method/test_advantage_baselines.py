"""What a reward is compared with: group-relative advantages and baselines."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl.method import core_algos
from soup_verl.method.core_algos import group_relative_advantage
from tests.unit.method.tensors import NAN, logs, numbers

# ---- group-relative advantage ----


def test_advantage_is_distance_from_group_mean_in_standard_deviations():
    # group a: 0, 2, 4 has mean 2 and std 2; group b: 1, 1 has no spread
    advantage = group_relative_advantage(numbers(0, 1, 2, 1, 4), ["a", "b", "a", "b", "a"])
    assert_close(advantage, numbers(-1, 0, 0, 0, 1))


def test_epsilon_is_added_to_the_standard_deviation():
    advantage = group_relative_advantage(numbers(0, 2, 4), ["a"] * 3, epsilon=2.0)
    assert advantage.tolist() == [-0.5, 0.0, 0.5]


def test_advantage_without_std_is_distance_from_group_mean():
    assert group_relative_advantage(numbers(0, 2, 4), ["a"] * 3, norm_by_std=False).tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("norm_by_std", [True, False])
@pytest.mark.parametrize("reward", [3.0, -3.0, 0.0])
def test_group_of_one_keeps_its_reward(norm_by_std, reward):
    assert_close(group_relative_advantage(numbers(reward), ["a"], norm_by_std=norm_by_std), numbers(reward))


def test_rows_that_do_not_count_stay_out_of_the_statistics_but_get_an_advantage():
    counted = torch.tensor([True, True, True, False])
    advantage = group_relative_advantage(numbers(0, 2, 4, 102), ["a"] * 4, counted=counted)
    assert_close(advantage, numbers(-1, 0, 1, 50))


@pytest.mark.parametrize("counted", [[False, False, False], [True, False, False]])
def test_group_in_which_at_most_one_row_counts_keeps_its_rewards(counted):
    advantage = group_relative_advantage(numbers(1, 2, 5), ["a"] * 3, counted=torch.tensor(counted))
    assert_close(advantage, numbers(1, 2, 5))


def test_advantage_does_not_hide_a_nan_reward_and_keeps_it_in_its_group():
    advantage = group_relative_advantage(numbers(1, NAN, 0, 2), ["a", "a", "b", "b"])
    assert advantage[:2].isnan().all() and advantage[2:].isfinite().all()


@given(st.data(), st.booleans())
def test_permuting_rows_permutes_advantages(data, norm_by_std):
    size = data.draw(st.integers(1, 8))
    rewards = torch.tensor(data.draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size)), dtype=torch.float64)
    groups = data.draw(st.lists(st.sampled_from("ab"), min_size=size, max_size=size))
    counted = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    order = data.draw(st.permutations(range(size)))
    before = group_relative_advantage(rewards, groups, counted=counted, norm_by_std=norm_by_std)
    after = group_relative_advantage(
        rewards[order], [groups[i] for i in order], counted=counted[order], norm_by_std=norm_by_std
    )
    assert_close(after, before[order])


def test_shared_baseline_compares_mixed_and_onpolicy_responses():
    groups = core_algos.GROUPINGS["shared"](["a", "a", "a", "b"], torch.tensor([True, False, False, True]))
    assert_close(group_relative_advantage(numbers(0, 2, 4, 9), groups), numbers(-1, 0, 1, 9))


def test_split_baseline_compares_within_mixed_and_within_onpolicy():
    groups = core_algos.GROUPINGS["split"](["a", "a", "a", "a"], [0, -1, 4, -1])
    # mixed: 1, 3 with mean 2; on-policy: 10, 20 with mean 15
    assert group_relative_advantage(numbers(1, 10, 3, 20), groups, norm_by_std=False).tolist() == [-1, -5, 1, 5]


def test_split_baseline_never_joins_two_prompts():
    assert len(set(core_algos.GROUPINGS["split"](["a", "b"], [3, 3]))) == 2


def test_sampler_baseline_compares_within_each_policy_of_a_prompt():
    groups = core_algos.GROUPINGS["sampler"](["a", "a", "a", "a", "b"], [0, -1, 4, 0, 0])
    assert groups[0] == groups[3] and len(set(groups)) == 4


# ---- the baseline of least variance ----


def test_the_log_ratio_of_a_response_is_that_of_its_historical_tokens():
    log_probs = logs([0.5, 0.3, 0.2], [0.8, 0.7, 0.1]).requires_grad_()  # ratios 2.5, 1.2, and none
    behavior = torch.stack([numbers(*logs([0.2, 0.25, 0.4])[0, :2], NAN), numbers(NAN, NAN, NAN)])
    found = core_algos.historical_log_ratio(log_probs, behavior, prefix_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert_close(found.exp(), torch.tensor([3.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=0)
    assert not found.requires_grad


def least_variance(rewards, lengths, log_ratio, norm_by_std=False, **given):
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    ratio = None if log_ratio is None else torch.tensor(log_ratio, dtype=torch.float64)
    log_weight = core_algos.variance_log_weight(mask, ratio)
    groups = given.pop("groups", ["a"] * len(lengths))
    return group_relative_advantage(rewards, groups, log_weight=log_weight, norm_by_std=norm_by_std, **given)


def test_the_baseline_weighs_a_reward_by_w_squared_times_length():
    # weights 4 * 3 and 1 * 2: (12 * 1 + 2 * 3) / 14 = 9 / 7
    found = least_variance(numbers(1, 3), [3, 2], [math.log(2), 0])
    assert_close(found, numbers(-2 / 7, 12 / 7))
    # without history it is OPO's: (3 * 1 + 2 * 3) / 5
    assert_close(least_variance(numbers(1, 3), [3, 2], None), numbers(-0.8, 1.2))


def test_it_is_where_the_weighted_squares_have_their_least():
    rewards, lengths, log_ratio = numbers(0, 1, 0.5, 1).double(), [1, 5, 2, 8], [0.3, -0.7, 0, 1.1]
    b = (rewards - least_variance(rewards, lengths, log_ratio))[0].requires_grad_()
    weight = (2 * torch.tensor(log_ratio, dtype=torch.float64)).exp() * torch.tensor(lengths)
    (slope,) = torch.autograd.grad((weight * (rewards - b) ** 2).sum(), b)
    assert abs(slope.item()) < 1e-12 < 0.05 < abs(b.item() - rewards.mean().item())


@pytest.mark.parametrize("far", [900.0, 5000.0])  # e^900 is no float64
def test_no_weight_overflows(far):
    assert least_variance(numbers(1, 3), [3, 2], [far, 0]).tolist() == [0, 2]  # its own reward is the baseline
    assert least_variance(numbers(1, 3), [3, 2], [-far, 0]).tolist() == [-2, 0]
    assert_close(least_variance(numbers(1, 3), [3, 2], [far, far]), numbers(-0.8, 1.2))


def test_the_standard_deviation_is_not_weighted():
    found = least_variance(numbers(1, 3), [3, 2], [math.log(2), 0], norm_by_std=True)
    assert_close(found, numbers(-2 / 7, 12 / 7) / (math.sqrt(2) + 1e-6))


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_equal_weights_and_lengths_make_it_the_mean(norm_by_std):
    """Number for number where the mean is exact, as of rewards 0 and 1 in groups of 4 or 8; else within rounding."""
    for rewards in (numbers(0, 1, 1, 1), numbers(0, 0, 1, 0, 1, 0, 0, 0)):
        n = len(rewards)
        plain = group_relative_advantage(rewards, ["a"] * n, norm_by_std=norm_by_std)
        assert torch.equal(least_variance(rewards, [5] * n, [0.7] * n, norm_by_std), plain)
        assert torch.equal(least_variance(rewards, [5] * n, None, norm_by_std), plain)
    rewards = torch.randn(7, generator=torch.Generator().manual_seed(0))
    plain = group_relative_advantage(rewards, ["a"] * 7, norm_by_std=norm_by_std)
    assert_close(least_variance(rewards, [3] * 7, [-0.2] * 7, norm_by_std), plain)


def test_groups_rows_that_do_not_count_and_empty_responses():
    counted = torch.tensor([True, True, False, True, True])
    groups, lengths = ["a", "a", "a", "b", "b"], [3, 2, 8, 4, 0]
    found = least_variance(numbers(1, 3, 9, 5, 7), lengths, [0] * 5, groups=groups, counted=counted)
    assert_close(found, numbers(-0.8, 1.2, 7.2, 0, 2))  # an empty response weighs nothing
    spoilt = least_variance(numbers(1, 3, 9, 5, 7), lengths, [0, NAN, 0, 0, 0], groups=groups)
    assert spoilt[:3].isnan().all() and spoilt[3:].isfinite().all()
