"""pass@k and maj@k by hand and against every subset; intervals against what resampling must give."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.estimators import Ballot, bootstrap_intervals, majority_at, pass_at_k, powers_of_two


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),  # 3 of the 6 pairs hold the right one
        (4, 2, 2, 5 / 6),  # all pairs but the one of both wrong ones
        (4, 2, 3, 1.0),  # three samples cannot all be wrong
        (4, 0, 4, 0.0),
        (4, 4, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n, correct, k, expected):
    assert pass_at_k(n=n, correct=correct, k=k) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(combinations(right, k))
    assert pass_at_k(n=len(right), correct=sum(right), k=k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_where_binomials_leave_the_range_of_floats():
    assert pass_at_k(n=2000, correct=1, k=1000) == 0.5


@pytest.mark.parametrize(
    ("answers", "right", "k", "expected"),
    [
        (["7", "7", "3"], [True, True, False], 3, 1.0),
        (["7", "3", "3"], [True, False, False], 3, 0.0),
        (["7", "3"], [True, False], 2, 0.5),  # a tie is drawn for
        (["7", "7", "3", "3", "5"], [True, True, False, False, False], 5, 0.5),  # of the two leaders only
        (["7", "8", "3"], [True, True, False], 3, 2 / 3),  # two of three leaders are right
        (["7", "", ""], [True, False, False], 3, 1.0),  # no answer, no vote
        (["", "", ""], [False, False, False], 2, 0.0),  # nobody votes: wrong
        (["7", "", ""], [True, False, False], 1, 1 / 3),
        (["7", "7", "3"], [True, True, False], 2, (1 + 0.5 + 0.5) / 3),  # pairs 77, 73, 73
        (["7", "7"], [True, False], 2, 0.5),  # one answer judged both ways: its share that was right
    ],
)
def test_majority_by_hand(answers, right, k, expected):
    assert majority_at(Ballot.count(answers, right), [k]) == pytest.approx([expected])


def _brute_force(answers, right, k):
    merits = {a: np.mean([r for b, r in zip(answers, right, strict=True) if a == b]) for a in set(answers)}
    total = 0.0
    for subset in combinations(answers, k):
        votes = {a: subset.count(a) for a in subset if a}
        leaders = [a for a in votes if votes[a] == max(votes.values())]
        total += np.mean([merits[a] for a in leaders]) if leaders else 0.0
    return total / comb(len(answers), k)


@given(st.lists(st.tuples(st.sampled_from(["", "1", "2", "3", "4"]), st.booleans()), min_size=1, max_size=9))
def test_majority_is_the_mean_over_all_subsets(samples):
    answers, right = [a for a, _ in samples], [r and a != "" for a, r in samples]
    sizes = list(range(1, len(samples) + 1))
    expected = [_brute_force(answers, right, k) for k in sizes]
    assert majority_at(Ballot.count(answers, right), sizes) == pytest.approx(expected)


def test_one_vote_is_one_sample():
    answers, right = ["a", "b", "b", "c", ""], [True, False, False, True, False]
    assert majority_at(Ballot.count(answers, right), [1]) == pytest.approx([pass_at_k(n=5, correct=2, k=1)])


def test_majority_of_many_samples_neither_overflows_nor_rounds_away():
    ballot = Ballot((60, 40), (1.0, 0.0))
    at_100, at_1 = majority_at(ballot, [100, 1])
    assert (at_100, at_1) == (1.0, pytest.approx(0.6))


def test_interval_of_a_mean_has_the_width_that_theory_gives():
    values = np.array([[0.0], [1.0]] * 200)
    ((low, high),) = bootstrap_intervals(values, seed=3)
    assert 0.5 - low == pytest.approx(1.96 * 0.5 / 20, rel=0.08)
    assert high - 0.5 == pytest.approx(1.96 * 0.5 / 20, rel=0.08)


def test_intervals_depend_on_the_seed_alone_and_columns_share_their_resamples():
    values = np.random.default_rng(0).random((30, 1))
    doubled = np.hstack([values, 2 * values])
    first, second = bootstrap_intervals(doubled, seed=5, resamples=500)
    assert second == pytest.approx([2 * end for end in first])
    assert bootstrap_intervals(doubled, seed=5, resamples=500) == [first, second]
    assert bootstrap_intervals(doubled, seed=6, resamples=500) != [first, second]


def test_many_problems_are_resampled_in_blocks(monkeypatch):
    values = np.array([[0.0], [1.0]] * 50)
    whole = bootstrap_intervals(values, seed=1, resamples=400)
    monkeypatch.setattr("soup_verl.method.estimators._BLOCK", 700)
    assert bootstrap_intervals(values, seed=1, resamples=400) == whole


def test_one_problem_has_no_interval():
    assert bootstrap_intervals(np.array([[0.5, 1.0]]), seed=0) == [None, None]


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])])
def test_ks_are_powers_of_two_and_n(n, expected):
    assert powers_of_two(n) == expected
