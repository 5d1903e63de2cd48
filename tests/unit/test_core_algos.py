"""Numbers are chosen so that ratios are 1.2 (0.3 / 0.25), 2.5 (0.5 / 0.2), 1 and 0.5 (0.2 / 0.4)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl import core_algos
from soup_verl.core_algos import PREFIX_OBJECTIVES, group_relative_advantage, token_advantages, token_ratio

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
    is_mixed = torch.tensor([1, 0, 1, 0], dtype=torch.int8)
    groups = core_algos.GROUPINGS["split"](["a", "a", "a", "a"], is_mixed)
    # mixed: 1, 3 with mean 2; on-policy: 10, 20 with mean 15
    assert group_relative_advantage(numbers(1, 10, 3, 20), groups, norm_by_std=False).tolist() == [-1, -5, 1, 5]


def test_split_baseline_never_joins_two_prompts():
    is_mixed = torch.tensor([True, True])
    assert len(set(core_algos.GROUPINGS["split"](["a", "b"], is_mixed))) == 2


# ---- how prefix tokens enter ----


def weight(name, old, behavior, cap=2.0):
    return PREFIX_OBJECTIVES[name].weight(old, behavior, cap=cap)


def test_prefix_weight_of_each_objective():
    old, behavior = logs(0.3, 0.5, 0.2), logs(0.25, 0.2, 0.4)  # pi_old / pi_h: 1.2, 2.5, 0.5
    assert weight("behavior", old, behavior).tolist() == [1, 1, 1]
    assert weight("shaped", old, behavior).tolist() == [1, 1, 1]  # its weight follows pi_theta: `shaped_tokens`
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
    ):
        whole = function(current, behavior, prefix_mask=mask, **extra)
        assert torch.equal(function(padded[0], padded[1], prefix_mask=padded[2], **extra)[:, :length], whole)
        flipped = function(current.flip(0), behavior.flip(0), prefix_mask=mask.flip(0), **extra)
        assert torch.equal(flipped, whole.flip(0))


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
