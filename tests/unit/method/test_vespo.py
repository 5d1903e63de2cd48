"""VESPO's weight of a response by hand."""

import math

import torch
from torch.testing import assert_close

from soup_verl.method.vespo import vespo_weight


def weight(w, advantages):
    return vespo_weight(torch.tensor([[w]]).double().log(), torch.tensor([advantages]).double(), limit=20.0)[0]


def test_the_weight_is_exactly_1_at_a_ratio_of_1():
    assert weight(1.0, [2.0, 0.0, -2.0]).tolist() == [1, 1, 1]


def test_the_weight_at_a_ratio_of_2_by_hand():
    """exp(3 + 2 ln 2 - 6) where A >= 0, exp(2 + 3 ln 2 - 4) where A < 0."""
    expected = torch.tensor([4 * math.exp(-3), 4 * math.exp(-3), 8 * math.exp(-2)]).double()
    assert_close(weight(2.0, [1.0, 0.0, -1.0]), expected)


def test_the_weight_is_largest_at_k_over_lambda():
    for advantage, top in ((1.0, 2 / 3), (-1.0, 3 / 2)):
        at_top = weight(top, [advantage])
        assert at_top > 1 and at_top > weight(top * 1.05, [advantage]) and at_top > weight(top / 1.05, [advantage])


def test_a_ratio_of_any_size_has_a_weight_near_0():
    for w in (1e-300, 1e300):
        assert 0 <= weight(w, [1.0]).item() < 1e-10 and 0 <= weight(w, [-1.0]).item() < 1e-10
