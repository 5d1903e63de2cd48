"""Which responses are trained on, by hand and against every subset."""

from itertools import combinations
from statistics import pvariance

import pytest

from soup_verl.method.down_sampling import CHOICES, trained_rows


def chosen(rewards, train_on, choice="max_variance", seed=0, step=1, place=0):
    """Rows of one prompt."""
    return trained_rows(rewards, [place] * len(rewards), train_on=train_on, choice=choice, seed=seed, step=step)


def test_the_largest_variance_may_need_more_low_rewards_than_high_ones():
    """Of 0, .1, .2, .9 three: {0, .9, .2} has .149, {0, .1, .9} has .162, {.1, .2, .9} .127."""
    assert chosen([0.9, 0.1, 0.2, 0.0], 3) == [0, 1, 3]


def test_the_highest_alone_or_the_lowest_alone_are_among_the_sets():
    """Two of -1, 0, 0: the lowest and either 0; four of 1, 1, 1, 1, 0 in which the 0 must be."""
    assert 0 in chosen([-1.0, 0.0, 0.0], 2)
    assert 4 in chosen([1.0, 1.0, 1.0, 1.0, 0.0], 4)


@pytest.mark.parametrize("right", range(9))
def test_right_and_wrong_answers_are_halved_as_far_as_there_are_both(right):
    """Eight responses, four of them trained on."""
    rewards = [float(i < right) for i in range(8)]
    rows = chosen(rewards, 4)
    assert sum(rewards[row] for row in rows) == (2 if 2 <= right <= 6 else max(right - 4, min(right, 2)))


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_no_set_of_as_many_has_a_larger_variance(count):
    rewards = [0.3, 0.25, 1.0, 0.0, 0.7, 0.3, 0.95]
    best = max(pvariance(some) for some in combinations(rewards, count))
    assert pvariance([rewards[row] for row in chosen(rewards, count)]) == pytest.approx(best)


@pytest.mark.parametrize("choice", CHOICES)
def test_all_of_them_are_all_of_them_in_their_order(choice):
    assert chosen([0.5, 0.0, 1.0, 0.5], 4, choice) == [0, 1, 2, 3]
    assert chosen([0.5, 0.0, 1.0], 4, choice) == [0, 1, 2]  # a prompt that has fewer
    assert chosen([0.5, 0.0, 1.0], None, choice) == [0, 1, 2]


def test_the_highest_rewards():
    assert chosen([0.2, 0.9, 0.1, 0.8], 2, "max_reward") == [1, 3]


@pytest.mark.parametrize(
    ("choice", "rewards"),
    [("max_variance", [1.0, 1, 0, 0]), ("max_reward", [1.0] * 4), ("random", [0.1, 0.2, 0.3, 0.4])],
)
def test_equals_are_drawn_by_seed_step_and_place_and_by_nothing_else(choice, rewards):
    draws = {
        name: [tuple(chosen(rewards, 2, choice, **{name: value})) for value in range(60)]
        for name in ("seed", "step", "place")
    }
    for found in draws.values():
        expected = {(0, 2), (0, 3), (1, 2), (1, 3)} if choice == "max_variance" else set(combinations(range(4), 2))
        assert set(found) == expected
    assert draws["step"] == [tuple(chosen(rewards, 2, choice, step=step)) for step in range(60)]


def test_equal_sets_are_drawn_too():
    """Three of two right and two wrong ones: two right and a wrong one, or a right and two wrong ones."""
    rewards = [1.0, 1.0, 0.0, 0.0]
    assert {sum(rewards[row] for row in chosen(rewards, 3, seed=seed)) for seed in range(40)} == {1.0, 2.0}


def test_equal_variances_are_equal_whatever_the_rewards_are():
    """Of .1, .1 and .9, and of .1, .9 and .9; rounded, one of the two would be larger. And of five equal ones."""
    assert {tuple(chosen([0.1, 0.1, 0.9, 0.9], 3, seed=seed)) for seed in range(60)} == set(combinations(range(4), 3))
    assert len({tuple(chosen([0.1] * 5, 2, seed=seed)) for seed in range(90)}) == 10


def test_prompts_are_chosen_from_apart_and_rows_stay_in_order():
    rewards = [0.0, 1.0, 0.0, 5.0, 4.0, 5.0]
    rows = trained_rows(rewards, [7, 7, 3, 3, 7, 3], train_on=2, choice="max_variance", seed=0, step=1)
    assert rows == sorted(rows) and {0, 4, 2} < set(rows) and len(rows) == 4
    alone = chosen([0.0, 1.0, 4.0], 2, place=7)
    assert [row for row in rows if row in (0, 1, 4)] == [(0, 1, 4)[i] for i in alone]  # whatever else is in the batch
