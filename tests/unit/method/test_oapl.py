"""OAPL by hand, and its gradient against the squares as written."""

import math

import pytest
import torch
from torch.testing import assert_close

from soup_verl.method.oapl import oapl_loss, paired_advantage, soft_value_advantage

TWO = 1 / math.log(2)
"""As b1: exp(R / b1) is 2^R. As b2: b2 s counts doublings."""


def numbers(*values):
    return torch.tensor(values).double()


# ---- the value of the policy that sampled ----


def test_the_soft_value_of_a_group_by_hand():
    """2^R is 1, 1, 4: their mean 2, so V = 1."""
    assert_close(soft_value_advantage(numbers(0, 0, 2), ["a"] * 3, b1=TWO), numbers(-1, -1, 1))


def test_every_group_has_a_value_of_its_own_and_a_response_alone_has_no_advantage():
    found = soft_value_advantage(numbers(0, 5, 0, 2, 3), ["a", "b", "a", "a", "c"], b1=TWO)
    assert_close(found, numbers(-1, 0, -1, 1, 0))


def test_rows_that_do_not_count_get_an_advantage_and_give_none():
    counted = torch.tensor([True, True, True, False])
    assert_close(soft_value_advantage(numbers(0, 0, 2, 9), ["a"] * 4, b1=TWO, counted=counted), numbers(-1, -1, 1, 8))


@pytest.mark.parametrize(("b1", "value"), [(1e9, 1.0), (1e-3, 3.0)])
def test_the_value_goes_from_the_mean_to_the_maximum(b1, value):
    rewards = numbers(0, 0, 3, 1)
    found = soft_value_advantage(rewards, ["a"] * 4, b1=b1)
    assert_close(found, rewards - value, atol=2e-3, rtol=0)


# ---- pairs ----


def test_the_mean_residual_of_a_group_by_hand():
    """b2 s - R is 1, -1, -3: their mean -1."""
    found = paired_advantage(numbers(0, 0, 3), ["a"] * 3, log_ratio=numbers(2, -2, 0), b2=0.5)
    assert_close(found, numbers(-1, -1, 2))


def test_where_nothing_has_moved_pairs_are_compared_with_the_mean_reward():
    found = paired_advantage(numbers(0, 7, 3), ["a", "b", "a"], log_ratio=torch.zeros(3).double(), b2=0.5)
    assert_close(found, numbers(-1.5, 0, 1.5))


# ---- the square ----


def random_rows(rows=4, length=5):
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(rows, length, generator=generator).double() for _ in range(2))
    return new.requires_grad_(), old, torch.randn(rows, 1, generator=generator).double()


def loss_of(new, old, advantages, *, b2, trained=None):
    trained = torch.ones_like(old).bool() if trained is None else trained
    s = (new.detach() - old).sum(dim=-1, keepdim=True)
    return oapl_loss(new, advantages.expand_as(old), log_ratio=s, trained=trained, b2=b2) * trained


def test_two_tokens_by_hand():
    """Two ratios of 2 and A = -1: two doublings, a residual of 3, a square of 9; its slope is 2 b2 3."""
    new, old = numbers(0.5, 0.5)[None].log().requires_grad_(), numbers(0.25, 0.25)[None].log()
    loss = loss_of(new, old, numbers(-1)[None], b2=TWO)
    assert_close(loss.detach(), numbers(4.5, 4.5)[None])
    assert_close(torch.autograd.grad(loss.sum(), new)[0], numbers(6 * TWO, 6 * TWO)[None])


def test_value_and_gradient_are_those_of_the_square_as_written():
    new, old, advantages = random_rows()
    square = (0.3 * (new - old).sum(dim=-1, keepdim=True) - advantages).square().sum()
    loss = loss_of(new, old, advantages, b2=0.3).sum()
    assert_close(loss, square)
    assert_close(torch.autograd.grad(loss, new)[0], torch.autograd.grad(square, new)[0])


def test_a_token_cut_from_the_loss_counts_in_the_sum_and_has_no_gradient():
    new, old, advantages = random_rows()
    trained = torch.ones_like(old).bool()
    trained[:, 0] = False
    whole, cut = (loss_of(new, old, advantages, b2=0.3, trained=t).sum() for t in (torch.ones_like(trained), trained))
    assert_close(cut, whole)
    gradient = torch.autograd.grad(cut, new)[0]
    assert gradient[:, 0].eq(0).all() and torch.equal(gradient[:, 1:], torch.autograd.grad(whole, new)[0][:, 1:])


def test_before_the_first_update_pairs_have_the_gradient_of_all_squares_of_pairs():
    new, old, _ = random_rows()
    rewards, b2 = numbers(0, 1, 1, 3), 0.3
    s = (new - old).sum(dim=-1)
    pairs = sum((b2 * (s[i] - s[j]) - (rewards[i] - rewards[j])) ** 2 for i in range(4) for j in range(i))
    advantages = paired_advantage(rewards, ["a"] * 4, log_ratio=s.detach(), b2=b2)
    loss = loss_of(new, old, advantages[:, None], b2=b2).sum()
    assert_close(4 * loss, pairs)
    assert_close(4 * torch.autograd.grad(loss, new)[0], torch.autograd.grad(pairs, new)[0])
