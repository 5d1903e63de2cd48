"""What the prefix's ratios do to other tokens, and which of its tokens are left out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl.method import core_algos
from tests.unit.method.tensors import NAN, logs, masked_pairs, numbers

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
