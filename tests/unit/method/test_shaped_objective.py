"""The objectives `shaped` and `shaped_ratio`."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from soup_verl.method import core_algos
from soup_verl.method.core_algos import token_ratio
from tests.unit.method.tensors import NAN, logs, numbers

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
