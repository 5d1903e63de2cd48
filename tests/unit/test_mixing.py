import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.mixing import MixingPlanner, PrefixRequest, mixed_sessions, stable_seed


@st.composite
def planners(draw):
    low = draw(st.integers(1, 20))
    return MixingPlanner(
        seed=draw(st.integers(0, 2**31)),
        n=draw(st.integers(1, 16)),
        mixed_fraction=draw(st.floats(0, 1)),
        low=low,
        high=low + draw(st.integers(0, 50)),
    )


@given(st.integers(1, 32), st.floats(0, 1))
def test_mixed_sessions_are_the_last_round_fraction_times_n(n, fraction):
    assert list(mixed_sessions(n=n, mixed_fraction=fraction)) == list(range(n))[n - round(fraction * n) :]


@pytest.mark.parametrize(
    ("n", "fraction", "sessions"), [(4, 0.5, [2, 3]), (4, 0, []), (4, 1, [0, 1, 2, 3]), (5, 0.5, [3, 4]), (1, 0.4, [])]
)
def test_mixed_sessions_by_hand(n, fraction, sessions):
    assert list(mixed_sessions(n=n, mixed_fraction=fraction)) == sessions


@given(planners(), st.integers(0, 10**6), st.integers(0, 12))
def test_every_prompt_has_its_share_of_prefixes_with_lengths_in_bounds(planner, step, num_prompts):
    plan = planner.plan_step(step=step, num_prompts=num_prompts)
    assert len(plan) == num_prompts
    for requests in plan:
        assert len(requests) == round(planner.mixed_fraction * planner.n)
        assert all(planner.low <= r.length <= planner.high for r in requests)


@pytest.mark.parametrize(("fraction", "mixes"), [(0, False), (0.1, False), (0.2, True), (1, True)])
def test_a_step_mixes_if_the_share_makes_at_least_one_response_mixed(fraction, mixes):
    assert MixingPlanner(seed=0, n=4, mixed_fraction=fraction, low=1, high=2).mixes(step=1) is mixes


def test_both_ends_of_the_length_range_are_drawn():
    planner = MixingPlanner(seed=0, n=2, mixed_fraction=1.0, low=3, high=5)
    lengths = {r.length for requests in planner.plan_step(step=1, num_prompts=30) for r in requests}
    assert lengths == {3, 4, 5}


@given(planners(), st.integers(1, 1000), st.integers(1, 10), st.integers(1, 10), st.randoms())
def test_plan_is_the_same_in_any_order_and_over_any_number_of_workers(planner, step, num_prompts, workers, random):
    plan = planner.plan_step(step=step, num_prompts=num_prompts)
    order = random.sample(range(num_prompts), num_prompts)
    chunks = [order[i::workers] for i in range(workers)]
    again = MixingPlanner(planner.seed, planner.n, planner.mixed_fraction, planner.low, planner.high)
    planned = {i: again.plan_prompt(step=step, position=i) for chunk in chunks for i in chunk}
    assert [planned[i] for i in range(num_prompts)] == plan


def test_seed_step_position_and_session_each_change_the_lengths():
    def lengths(seed, step, position):
        planner = MixingPlanner(seed=seed, n=8, mixed_fraction=1.0, low=1, high=10**6)
        return [r.length for r in planner.plan_prompt(step=step, position=position)]

    base = lengths(0, 1, 0)
    assert len(set(base)) == 8
    for other in (lengths(1, 1, 0), lengths(0, 2, 0), lengths(0, 1, 1)):
        assert not set(other) & set(base)


def test_a_known_plan_stays_the_same_for_ever():
    plan = MixingPlanner(seed=7, n=4, mixed_fraction=0.5, low=1, high=16).plan_step(step=3, num_prompts=3)
    assert plan == [
        (PrefixRequest(2, 14), PrefixRequest(3, 1)),
        (PrefixRequest(2, 1), PrefixRequest(3, 9)),
        (PrefixRequest(2, 8), PrefixRequest(3, 12)),
    ]


def test_stable_seed_has_31_bits_and_stays_the_same_for_ever():
    assert stable_seed("prefix_length", 0, 1, 0, 2) == 977961103
    assert all(0 <= stable_seed(i) < 2**31 for i in range(200))


def test_stable_seed_keeps_parts_apart():
    assert len({stable_seed(1, 23), stable_seed(12, 3), stable_seed(123), stable_seed(1, 2, 3)}) == 4
