"""Numbers are chosen so that ratios are 1.2 (0.3 / 0.25), 2.5 (0.5 / 0.2), 1 and 0.5 (0.2 / 0.4)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl.method import core_algos
from soup_verl.method.core_algos import PREFIX_OBJECTIVES, group_relative_advantage, token_advantages, token_ratio

NAN = float("nan")


def logs(*probabilities):
    return torch.tensor(probabilities).log()


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32)


# ---- ratio ----


def test_ratio_is_current_over_behavior_probability():
    assert_close(token_ratio(logs(0.3, 0.5, 0.7, 0.2), logs(0.25, 0.2, 0.7, 0.4)), numbers(1.2, 2.5, 1.0, 0.5))


def test_ratio_exponent_is_limited_to_20_on_both_sides():
    ratio = token_ratio(numbers(0.0, -1000.0), numbers(-1000.0, 0.0))
    assert_close(ratio, numbers(math.exp(20), math.exp(-20)))


def test_ratio_does_not_hide_nan():
    assert token_ratio(numbers(NAN), numbers(0.0)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64])
def test_joined_log_probs_never_read_the_other_policys_side(dtype):
    mask = torch.tensor([[1, 1, 0, 0]], dtype=dtype)
    joined = core_algos.join_log_probs(
        prefix_mask=mask,
        prefix_log_probs=numbers([-1.0, -2.0, NAN, NAN]),
        other_log_probs=numbers([NAN, NAN, -3.0, -4.0]),
    )
    assert joined.tolist() == [[-1.0, -2.0, -3.0, -4.0]]


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


# ---- how prefix tokens enter ----


def weight(name, old, behavior, cap=2.0):
    return PREFIX_OBJECTIVES[name].weight(old, behavior, cap=cap)


def test_prefix_weight_of_each_objective():
    old, behavior = logs(0.3, 0.5, 0.2), logs(0.25, 0.2, 0.4)  # pi_old / pi_h: 1.2, 2.5, 0.5
    assert weight("behavior", old, behavior).tolist() == [1, 1, 1]
    assert weight("shaped", old, behavior).tolist() == [1, 1, 1]  # its weight follows pi_theta: `shaped_tokens`
    assert weight("shaped_ratio", old, behavior).tolist() == [1, 1, 1]
    assert weight("masked", old, behavior).tolist() == [0, 0, 0]
    assert_close(weight("decoupled", old, behavior), numbers(1.2, 2.0, 0.5))
    assert_close(weight("decoupled", old, behavior, cap=3.0), numbers(1.2, 2.5, 0.5))


def test_decoupled_weight_carries_no_gradient():
    old = logs(0.3).requires_grad_()
    assert not weight("decoupled", old, logs(0.25)).requires_grad


def test_anchor_and_training_of_each_objective():
    facts = {name: (o.anchor_is_behavior, o.trained) for name, o in PREFIX_OBJECTIVES.items()}
    assert facts == {
        "behavior": (True, True),
        "decoupled": (False, True),
        "masked": (True, False),
        "shaped": (True, True),
        "shaped_ratio": (True, True),
    }


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_prefix_tokens_carry_weight_times_advantage_and_the_rest_the_advantage(sign):
    spread = token_advantages(
        numbers(2 * sign),
        response_mask=torch.tensor([[1, 1, 1, 0]]),
        prefix_mask=torch.tensor([[1, 1, 0, 0]], dtype=torch.int8),
        prefix_weight=numbers([1.2, 0.5, NAN, NAN]),
    )
    assert_close(spread, numbers([2.4 * sign, 1.0 * sign, 2.0 * sign, 0.0]))


@pytest.mark.parametrize(("prefix_length", "expected"), [(0, [3, 3, 3]), (3, [6, 6, 6])])
def test_empty_and_full_prefix(prefix_length, expected):
    spread = token_advantages(
        numbers(3),
        response_mask=torch.ones(1, 3),
        prefix_mask=(torch.arange(3) < prefix_length).unsqueeze(0),
        prefix_weight=torch.full((1, 3), 2.0),
    )
    assert spread.tolist() == [expected]


def test_without_a_prefix_the_advantage_is_spread_over_the_response():
    spread = token_advantages(numbers(1, -1), response_mask=torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert spread.tolist() == [[1, 1, 0], [-1, 0, 0]]


def test_tokens_between_generated_ones_get_no_advantage():
    spread = token_advantages(numbers(5), response_mask=torch.tensor([[1, 0, 1]]))
    assert spread.tolist() == [[5, 0, 5]]


def test_tokens_outside_of_the_response_are_never_read():
    spread = token_advantages(
        numbers(2),
        response_mask=torch.tensor([[1, 0, 0]]),
        prefix_mask=torch.tensor([[1, 1, 0]]),
        prefix_weight=numbers([0.5, NAN, NAN]),
    )
    assert spread.tolist() == [[1, 0, 0]]


def test_more_padding_changes_nothing():
    mask, prefix = torch.tensor([[1, 1, 1]]), torch.tensor([[1, 0, 0]])
    short = token_advantages(numbers(2), response_mask=mask, prefix_mask=prefix, prefix_weight=numbers([0.5, NAN, NAN]))
    padded = token_advantages(
        numbers(2),
        response_mask=torch.nn.functional.pad(mask, (0, 2)),
        prefix_mask=torch.nn.functional.pad(prefix, (0, 2)),
        prefix_weight=torch.nn.functional.pad(numbers([0.5, NAN, NAN]), (0, 2), value=NAN),
    )
    assert torch.equal(padded[:, :3], short) and padded[:, 3:].eq(0).all()


# ---- the shaped objective ----

# p = 0.5 with gamma 0.5: gamma p / (p + gamma)^2 = 0.25; p = 0.25 with gamma 0.25 the same, p = 0.75 there 0.1875


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("mask", "anchored", "advantage"),
    [
        ([0, 0, 0], [0.9, 0.8, 0.7], [8, 8, 8]),  # no prefix
        ([1, 0, 0], [0.25, 0.8, 0.7], [2, 8, 8]),
        ([0, 1, 0], [0.9, 0.75, 0.7], [8, 1.5, 8]),  # historical tokens in the middle
        ([0, 1, 1], [0.9, 0.75, 0.25], [8, 1.5, 2]),  # and to the end
        ([1, 1, 1], [0.25, 0.75, 0.25], [2, 1.5, 2]),  # nothing else
    ],
)
def test_shaped_tokens_have_ratio_1_and_a_shaped_advantage(sign, mask, anchored, advantage):
    old_log_probs, advantages = core_algos.shaped_tokens(
        logs([0.25, 0.75, 0.25]),
        logs([0.9, 0.8, 0.7]),
        numbers([8 * sign] * 3),
        prefix_mask=torch.tensor([mask], dtype=torch.int8),
        gamma=0.25,
    )
    assert_close(old_log_probs, logs(anchored))
    assert_close(advantages, sign * numbers(advantage))


def test_shaped_ratio_tokens_take_the_ratio_in_place_of_the_probability():
    """Ratios 2, .5 and (not a prefix token) anything: gamma w / (w + gamma)^2 is 1/9 and 2/9 with gamma 1, times 9 or
    less; a ratio of 1 keeps a quarter."""
    old_log_probs, advantages = core_algos.shaped_ratio_tokens(
        logs([0.5, 0.25, NAN, 0.75]),
        logs([0.25, 0.5, NAN, 0.75]),
        numbers([-9.0, 9.0, 7.0, 4.0]),
        prefix_mask=torch.tensor([[1, 1, 0, 1]], dtype=torch.int8),
        gamma=1.0,
    )
    assert_close(old_log_probs, logs([0.5, 0.25, NAN, 0.75]), equal_nan=True)
    assert_close(advantages, numbers([-2.0, 2.0, 7.0, 1.0]))


def test_shaped_tokens_never_read_outside_of_the_prefix():
    old_log_probs, advantages = core_algos.shaped_tokens(
        logs([0.5, NAN, NAN]),
        numbers([NAN, -2.0, -3.0]),
        numbers([4, 5, 0]),
        prefix_mask=torch.tensor([[True, False, False]]),
        gamma=0.5,
    )
    assert_close(old_log_probs, numbers([math.log(0.5), -2.0, -3.0]))
    assert_close(advantages, numbers([1, 5, 0]))


def test_shaped_tokens_do_not_hide_a_nan_in_the_prefix():
    old_log_probs, advantages = core_algos.shaped_tokens(
        numbers([NAN]), numbers([-1]), numbers([2]), prefix_mask=torch.tensor([[1]]), gamma=0.1
    )
    assert old_log_probs.isnan().all() and advantages.isnan().all()


def test_shaped_tokens_carry_no_gradient_of_their_own():
    log_probs = logs([0.5, 0.5]).requires_grad_()
    changed = core_algos.shaped_tokens(
        log_probs, logs([0.4, 0.4]), numbers([1, 1]), prefix_mask=torch.tensor([[1, 0]]), gamma=0.1
    )
    assert not any(tensor.requires_grad for tensor in changed)


@given(
    st.lists(st.tuples(st.floats(-12, -0.001), st.floats(-3, 3)), min_size=1, max_size=6),
    st.floats(0.01, 2),
)
def test_shaped_tokens_train_by_the_gradient_of_a_p_over_p_plus_gamma(tokens, gamma):
    """The surrogate ratio x advantage at ratio 1, against A p / (p + gamma) itself, by autograd."""
    values, advantages = (
        torch.tensor(column, dtype=torch.float64).unsqueeze(0) for column in zip(*tokens, strict=True)
    )
    mask = torch.ones_like(values)

    variable = values.clone().requires_grad_()
    old, changed = core_algos.shaped_tokens(variable, values - 1, advantages, prefix_mask=mask, gamma=gamma)
    surrogate = torch.autograd.grad((token_ratio(variable, old) * changed).sum(), variable)[0]

    variable = values.clone().requires_grad_()
    p = variable.exp()
    assert_close(surrogate, torch.autograd.grad((advantages * p / (p + gamma)).sum(), variable)[0])


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


# ---- the min_prefix correction ----


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),  # no prefix
        ([1, 1, 1, 0, 0], [1, 2.5, 1.2, 0.5, 0.5]),
        ([0, 1, 1, 0, 0], [1, 1, 1.2, 0.5, 0.5]),  # historical tokens in the middle
        ([0, 0, 0, 1, 1], [1, 1, 1, 1, 4]),  # and to the end: above 1, nothing is truncated
        ([1, 1, 1, 1, 1], [1, 2.5, 1.2, 0.5, 0.5]),
    ],
)
def test_a_token_is_weighted_by_the_smallest_prefix_ratio_before_it(mask, expected):
    # ratios: 2.5, 1.2, 0.5, 4, 1
    weight = core_algos.min_prefix_weight(
        logs([0.5, 0.3, 0.2, 0.8, 0.7]),
        logs([0.2, 0.25, 0.4, 0.2, 0.7]),
        prefix_mask=torch.tensor([mask], dtype=torch.int8),
    )
    assert_close(weight, numbers(expected))


def slow_min_prefix_weight(log_probs, behavior, mask):
    rows = []
    for new, old, rows_mask in zip(log_probs.tolist(), behavior.tolist(), mask.tolist(), strict=True):
        ratios = [math.exp(a - b) for a, b in zip(new, old, strict=True)]
        before = [[r for r, m in zip(ratios[:i], rows_mask[:i], strict=True) if m] for i in range(len(ratios))]
        rows.append([min(found) if found else 1.0 for found in before])
    return torch.tensor(rows, dtype=torch.float64)


@st.composite
def masked_pairs(draw):
    """Two (batch, length) tensors of log-probs and any mask; what the mask leaves out is NaN in the second."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 8))

    def matrix(values, dtype):
        row = st.lists(values, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)), dtype=dtype)

    mask = matrix(st.booleans(), torch.bool)
    current, behavior = (matrix(st.floats(-9, 0), torch.float64) for _ in range(2))
    return current, behavior, mask


@given(masked_pairs())
def test_min_prefix_weight_is_what_a_loop_over_the_tokens_finds(pair):
    current, behavior, mask = pair
    poisoned = torch.where(mask, behavior, NAN)
    found = core_algos.min_prefix_weight(current, poisoned, prefix_mask=mask)
    assert_close(found, slow_min_prefix_weight(current, behavior, mask))


def test_min_prefix_weight_is_detached_and_shows_a_nan_of_the_prefix():
    log_probs = logs([0.5, 0.5, 0.5]).requires_grad_()
    assert not core_algos.min_prefix_weight(
        log_probs, logs([0.4, 0.4, 0.4]), prefix_mask=torch.tensor([[1, 1, 0]])
    ).requires_grad
    weight = core_algos.min_prefix_weight(log_probs, numbers([NAN, -1, -1]), prefix_mask=torch.tensor([[1, 1, 0]]))
    assert weight[0, 0] == 1 and weight[0, 1:].isnan().all()


# ---- the cumulative correction ----


@pytest.mark.parametrize(
    ("mask", "unclipped", "t"),
    [
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),  # no prefix
        ([1, 1, 1, 0, 0], [1, 2.5, 3, 1.5, 1.5], [0, 1, 2, 3, 3]),
        ([0, 1, 1, 0, 0], [1, 1, 1.2, 0.6, 0.6], [0, 0, 1, 2, 2]),  # in the middle: t counts tokens, not places
        ([0, 0, 1, 1, 1], [1, 1, 1, 0.5, 2], [0, 0, 0, 1, 2]),  # to the end
        ([1, 0, 0, 0, 1], [1, 2.5, 2.5, 2.5, 2.5], [0, 1, 1, 1, 1]),
    ],
)
def test_a_token_is_weighted_by_the_product_of_the_historical_ratios_before_it(mask, unclipped, t):
    tensors = logs([0.5, 0.3, 0.2, 0.8, 0.7]), logs([0.2, 0.25, 0.4, 0.2, 0.7])  # ratios: 2.5, 1.2, 0.5, 4, 1
    mask = torch.tensor([mask], dtype=torch.int8)
    assert_close(core_algos.cumulative_unclipped_weight(*tensors, prefix_mask=mask), numbers(unclipped))
    # every product here is past CTPO's edge or exactly 1
    edge = [math.exp((0.05 if w > 1 else -0.025) * math.sqrt(k)) for w, k in zip(unclipped, t, strict=True)]
    expected = [1 if w == 1 else e for w, e in zip(unclipped, edge, strict=True)]
    assert_close(core_algos.cumulative_weight(*tensors, prefix_mask=mask), numbers(expected))


def test_within_its_edges_the_product_is_not_touched():
    log_ratio = numbers([0.02, 0.03, -0.06, 0.5])  # products .02, .05, -.01 in logs; edges .05, .0707 and -.0433
    mask = torch.tensor([[1, 1, 1, 0]])
    for weight in (core_algos.cumulative_weight, core_algos.cumulative_unclipped_weight):
        found = weight(log_ratio, torch.zeros_like(log_ratio), prefix_mask=mask)
        assert_close(found.log(), numbers([0, 0.02, 0.05, -0.01]))


@pytest.mark.parametrize("name", ["cumulative", "cumulative_unclipped"])
def test_ratios_of_1_change_nothing_to_the_last_bit(name):
    advantages, log_probs = torch.randn(3, 9), torch.randn(3, 9)
    mask = torch.rand(3, 9) < 0.6
    behavior = torch.where(mask, log_probs, NAN)
    weight = core_algos.PREFIX_CORRECTIONS[name](log_probs, behavior, prefix_mask=mask)
    assert torch.equal(advantages * weight, advantages)


def test_the_limit_of_log_ratios_bounds_the_unclipped_product():
    mask = torch.ones(2, 4)
    log_ratio = torch.tensor([[15.0, 15, -25, 0], [-15, -15, 0, 0]])
    found = core_algos.cumulative_unclipped_weight(log_ratio, torch.zeros(2, 4), prefix_mask=mask)
    assert_close(found.log(), torch.tensor([[0, 15.0, 20, 5], [0, -15, -20, -20]]))


def slow_cumulative_weight(log_probs, behavior, mask, *, clip):
    rows = []
    for new, old, rows_mask in zip(log_probs.tolist(), behavior.tolist(), mask.tolist(), strict=True):
        row, total, t = [], 0.0, 0
        for a, b, m in zip(new, old, rows_mask, strict=True):
            low, high = (-0.025 * math.sqrt(t), 0.05 * math.sqrt(t)) if clip else (-20, 20)
            row.append(math.exp(min(max(total, low), high)))
            total, t = (total + a - b, t + 1) if m else (total, t)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@given(masked_pairs())
def test_the_cumulative_weights_are_what_a_loop_over_the_tokens_finds(pair):
    current, behavior, mask = pair
    poisoned = torch.where(mask, behavior, NAN)
    for clip, weight in ((True, core_algos.cumulative_weight), (False, core_algos.cumulative_unclipped_weight)):
        found = weight(current, poisoned, prefix_mask=mask)
        assert_close(found, slow_cumulative_weight(current, behavior, mask, clip=clip))


def test_the_sum_over_8192_tokens_in_float32_is_as_exact_as_its_docstring_says():
    """Added up one by one, the worst order; a single ratio is off by some 10% here."""
    log_ratio = (0.1 * np.random.default_rng(0).standard_normal(8192)).astype(np.float32)
    error = np.abs(np.cumsum(log_ratio) - np.cumsum(log_ratio, dtype=np.float64))
    assert 1e-6 < error.max() < 1e-4
    on, zero = torch.ones(1, 8192), torch.zeros(1, 8192)
    found = core_algos.cumulative_unclipped_weight(torch.tensor(log_ratio)[None], zero, prefix_mask=on).log()
    exact = np.cumsum(log_ratio, dtype=np.float64)[:-1]
    assert np.abs(found[0, 1:].double().numpy() - exact).max() < 1e-4 and np.abs(exact).max() < 20


@pytest.mark.parametrize("name", ["cumulative", "cumulative_unclipped"])
def test_the_cumulative_weights_are_detached_and_show_a_nan_of_the_prefix(name):
    weight = core_algos.PREFIX_CORRECTIONS[name]
    log_probs, mask = logs([0.5, 0.5, 0.5]).requires_grad_(), torch.tensor([[1, 1, 0]])
    assert not weight(log_probs, logs([0.4, 0.4, 0.4]), prefix_mask=mask).requires_grad
    found = weight(log_probs, numbers([NAN, -1, -1]), prefix_mask=mask)
    assert found[0, 0] == 1 and found[0, 1:].isnan().all()


# ---- the KL limit ----

# k3 of ratio 2 is 1 - ln 2 = 0.307, of ratio 1 is 0


@pytest.mark.parametrize(
    ("mask", "limit", "cut"),
    [
        ([1, 1, 1, 1, 0], 0.31, [0, 0, 0, 0, 0]),  # means 0, 0.153, 0.204, 0.153
        ([1, 1, 1, 1, 0], 0.20, [0, 0, 1, 1, 0]),  # over it at the third, and past it for good
        ([1, 1, 1, 1, 0], 0.15, [0, 1, 1, 1, 0]),
        ([0, 1, 1, 1, 0], 0.30, [0, 1, 1, 1, 0]),  # a segment's mean starts at the segment: 0.307, 0.307, 0.204
        ([0, 0, 0, 1, 1], 0.15, [0, 0, 0, 0, 1]),  # means 0, 0.153
        ([0, 0, 0, 0, 0], 1e-9, [0, 0, 0, 0, 0]),  # no prefix
        ([1, 1, 1, 1, 1], 0.20, [0, 0, 1, 1, 1]),  # nothing but prefix
    ],
)
def test_prefix_tokens_are_cut_from_where_the_running_mean_is_over_the_limit(mask, limit, cut):
    past = core_algos.past_kl_limit(
        logs([0.5, 0.5, 0.5, 0.5, 0.5]),
        logs([0.5, 0.25, 0.25, 0.5, 0.25]),
        prefix_mask=torch.tensor([mask], dtype=torch.int8),
        max_kl=limit,
    )
    assert past.dtype == torch.bool and past.int().tolist() == [cut]


def slow_past_kl_limit(current, behavior, mask, limit):
    rows = []
    for new, old, rows_mask in zip(current.tolist(), behavior.tolist(), mask.tolist(), strict=True):
        total, count, over, row = 0.0, 0, False, []
        for a, b, m in zip(new, old, rows_mask, strict=True):
            if m:
                total += math.expm1(a - b) - (a - b)
                count += 1
                over = over or total / count > limit
            row.append(bool(m) and over)
        rows.append(row)
    return torch.tensor(rows)


@given(masked_pairs(), st.floats(0.001, 5))
def test_the_kl_limit_is_what_a_loop_over_the_tokens_finds(pair, limit):
    current, behavior, mask = pair
    poisoned = torch.where(mask, behavior, NAN)
    found = core_algos.past_kl_limit(current, poisoned, prefix_mask=mask, max_kl=limit)
    assert torch.equal(found, slow_past_kl_limit(current, behavior, mask, limit))


@given(masked_pairs(), st.floats(0.001, 5), st.integers(1, 3))
def test_rows_do_not_touch_each_other_and_padding_is_inert(pair, limit, more):
    current, behavior, mask = pair
    padded = [torch.nn.functional.pad(t, (0, more), value=v) for t, v in ((current, NAN), (behavior, NAN), (mask, 0))]
    length = current.shape[1]
    for function, extra in (
        (core_algos.past_kl_limit, {"max_kl": limit}),
        (core_algos.min_prefix_weight, {}),
        (core_algos.cumulative_weight, {}),
        (core_algos.cumulative_unclipped_weight, {}),
    ):
        whole = function(current, behavior, prefix_mask=mask, **extra)
        assert torch.equal(function(padded[0], padded[1], prefix_mask=padded[2], **extra)[:, :length], whole)
        flipped = function(current.flip(0), behavior.flip(0), prefix_mask=mask.flip(0), **extra)
        assert torch.equal(flipped, whole.flip(0))


def left_out(limit, *, own, historical=(0.1, 0.5, -0.2, 0.3)):
    """Which of the historical tokens are left out beside `own` tokens of the current policy, and the mean before; by
    their log-ratios, whose squares are .01, .25, .04 and .09."""
    padding = 2
    ratio = torch.tensor([[NAN] * own + [*historical] + [NAN] * padding]).double()
    prefix = torch.tensor([[0] * own + [1] * (len(historical) + padding)])
    response = torch.tensor([[1] * (own + len(historical)) + [0] * padding])
    old = torch.zeros_like(ratio)
    mask, mean = core_algos.past_second_moment(old, ratio, prefix_mask=prefix, response_mask=response, limit=limit)
    assert mask.dtype == torch.bool and not mask[0, :own].any() and not mask[0, own + len(historical) :].any()
    return mask[0, own : own + len(historical)].int().tolist(), mean


@pytest.mark.parametrize(
    ("limit", "own", "cut"),
    [
        (0.04, 6, [0, 0, 0, 0]),  # .39 / 10
        (0.03, 6, [0, 1, 0, 0]),  # .14 / 9 without the largest
        (0.01, 6, [0, 1, 0, 1]),  # .05 / 8
        (1e-6, 6, [1, 1, 1, 1]),  # only tokens of the current policy are left
        (0.04, 0, [0, 1, 0, 1]),  # .05 / 2, and .14 / 3 = .047 with the third
        (0.01, 0, [0, 1, 1, 1]),  # one stays, though .01 is not below the limit
    ],
)
def test_the_largest_second_moments_are_left_out_until_the_mean_is_below_the_limit(limit, own, cut):
    found, mean = left_out(limit, own=own)
    assert found == cut and mean == pytest.approx(0.39 / (own + 4))


def test_without_historical_tokens_nothing_is_left_out():
    assert left_out(0.04, own=3, historical=()) == ([], 0.0)


# ---- clipping ----


@pytest.mark.parametrize(
    ("advantage", "ratio", "lost"),
    [
        (1, 1.29, True),  # above 1 + high
        (1, 1.27, False),
        (1, 0.1, False),  # a good token that became unlikely keeps its gradient
        (1, 5.0, True),
        (-1, 0.79, True),  # below 1 - low
        (-1, 0.81, False),
        (-1, 1.5, False),  # a bad token that became likely keeps its gradient
        (-1, 2.9, False),
        (-1, 3.1, True),  # up to c = 3
        (0, 9.0, False),
        (0, 0.1, False),
    ],
)
def test_gradient_is_lost_where_the_clip_is_active(advantage, ratio, lost):
    mask = core_algos.zero_gradient_mask(
        numbers([ratio]), numbers([advantage]), clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0
    )
    assert mask.tolist() == [[lost]]


# ---- divergence ----


def test_kl_estimators_by_hand():
    current, behavior = logs(0.5, 0.25, 0.25), logs(0.25, 0.5, 0.25)  # r = 2, 0.5, 1
    ln2 = math.log(2)
    assert_close(core_algos.kl_k1(current, behavior), numbers(-ln2, ln2, 0))
    assert_close(core_algos.kl_k3(current, behavior), numbers(1 - ln2, ln2 - 0.5, 0))


def test_kl_estimators_are_unbiased_over_a_known_distribution():
    behavior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    current = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    exact = 0.5 * math.log(0.5 / 0.2) + 0.2 * math.log(0.2 / 0.5)
    for estimator in (core_algos.kl_k1, core_algos.kl_k3):
        estimate = (behavior * estimator(current.log(), behavior.log())).sum()
        assert estimate.item() == pytest.approx(exact)


@given(st.floats(-25, 0), st.floats(-25, 0))
def test_k3_is_never_negative(current, behavior):
    assert core_algos.kl_k3(numbers(current), numbers(behavior)).item() >= 0


def test_effective_sample_share_by_hand():
    mask = torch.tensor([1, 1, 0])
    # (1 + 3)^2 / (2 * (1 + 9)) = 16 / 20
    assert core_algos.effective_sample_share(numbers(1, 3, NAN), mask).item() == pytest.approx(0.8)


def test_effective_sample_share_is_1_for_equal_ratios_and_1_over_n_when_one_dominates():
    mask = torch.ones(4)
    assert core_algos.effective_sample_share(numbers(2.5, 2.5, 2.5, 2.5), mask).item() == pytest.approx(1)
    assert core_algos.effective_sample_share(numbers(7, 0, 0, 0), mask).item() == pytest.approx(1 / 4)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_effective_sample_share_lies_between_1_over_n_and_1(ratios):
    share = core_algos.effective_sample_share(torch.tensor(ratios), torch.ones(len(ratios))).item()
    assert 1 / len(ratios) - 1e-5 <= share <= 1 + 1e-5


# ---- unlearning ----


def test_unlearning_loss_by_hand():
    """Ratios 1, 1.2, 2.5, 0.8 and 0.5 with e = 0.3: only the last is past the edge."""
    log_probs = torch.tensor([[0.5, 0.6, 0.5, 0.4, 0.1]]).log().requires_grad_()
    old = torch.tensor([[0.5, 0.5, 0.2, 0.5, 0.2]]).log()
    loss = core_algos.unlearning_loss(log_probs, old, clip=0.3)
    assert_close(loss, torch.tensor([[1.0, 1.2, 2.5, 0.8, 0.7]]))
    loss.sum().backward()
    assert_close(log_probs.grad, torch.tensor([[1.0, 1.2, 2.5, 0.8, 0.0]]))


def test_from_the_policy_itself_a_step_lowers_the_mean_log_prob():
    """The clip does not bind in the first step: its gradient is that of the mean log-prob."""
    log_probs = torch.tensor([[0.9, 0.01]]).log().requires_grad_()
    core_algos.unlearning_loss(log_probs, log_probs.detach(), clip=0.3).mean().backward()
    assert_close(log_probs.grad, torch.full((1, 2), 0.5))
