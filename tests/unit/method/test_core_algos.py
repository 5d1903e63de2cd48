"""Numbers are chosen so that ratios are 1.2 (0.3 / 0.25), 2.5 (0.5 / 0.2), 1 and 0.5 (0.2 / 0.4)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl.method import core_algos
from soup_verl.method.core_algos import PREFIX_OBJECTIVES, token_advantages, token_ratio
from tests.unit.method.tensors import NAN, logs, numbers

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
