import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.mixing import (
    GATES,
    SHAPES,
    MixingPlanner,
    PrefixRequest,
    Schedule,
    SolvedRates,
    mixed_sessions,
    stable_seed,
)

# ---- schedules ----


def test_linear_is_half_way_in_the_middle():
    schedule = Schedule(0.5, 0.1, 5, "linear")
    assert [schedule.at(step) for step in range(1, 8)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])


def test_cosine_is_slow_at_both_ends_and_half_way_in_the_middle():
    schedule = Schedule(0, 8, 5, "cosine")
    half = math.sqrt(0.5)
    expected = [0, 4 * (1 - half), 4, 4 * (1 + half), 8, 8]
    assert [schedule.at(step) for step in range(1, 7)] == pytest.approx(expected)


def test_constant_stays():
    assert [Schedule(0.5).at(step) for step in (1, 7, 10**6)] == [0.5] * 3
    assert Schedule(0.5, None, 10, "linear").at(10) == 0.5  # nothing to go to


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_of_one_step_is_at_its_end_from_the_first(shape):
    assert Schedule(0.5, 0.25, 1, shape).at(1) == 0.25


@given(
    st.sampled_from(["linear", "cosine"]),
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.integers(2, 1000),
    st.integers(1, 2000),
)
def test_a_schedule_goes_from_start_to_final_without_turning_back(shape, start, final, steps, step):
    schedule = Schedule(start, final, steps, shape)
    assert schedule.at(1) == pytest.approx(start)
    assert schedule.at(steps) == pytest.approx(final) and schedule.at(steps + 9) == schedule.at(steps)
    low, high = sorted((start, final))
    assert low - 1e-9 <= schedule.at(step) <= high + 1e-9
    forward = (schedule.at(step + 1) - schedule.at(step)) * math.copysign(1, final - start)
    assert forward >= -1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_starts_at_0(shape):
    assert SHAPES[shape](0.0) == 0.0


# ---- which sessions ----


@given(st.integers(1, 32), st.floats(0, 1))
def test_mixed_sessions_are_the_last_round_fraction_times_n(n, fraction):
    assert list(mixed_sessions(n=n, mixed_fraction=fraction)) == list(range(n))[n - round(fraction * n) :]


@pytest.mark.parametrize(
    ("n", "fraction", "sessions"), [(4, 0.5, [2, 3]), (4, 0, []), (4, 1, [0, 1, 2, 3]), (5, 0.5, [3, 4]), (1, 0.4, [])]
)
def test_mixed_sessions_by_hand(n, fraction, sessions):
    assert list(mixed_sessions(n=n, mixed_fraction=fraction)) == sessions


# ---- plans ----


def planner(**changes):
    """Seed 0, 4 responses a prompt of which 2 are mixed, 1 to 16 tokens; numbers stand for constant schedules."""
    settings = {"seed": 0, "n": 4, "mixed_fraction": 0.5, "low": 1, "high": 16} | changes
    for name in ("mixed_fraction", "high"):
        if not isinstance(settings[name], Schedule):
            settings[name] = Schedule(settings[name])
    return MixingPlanner(**settings)


def schedules(values):
    return st.builds(
        Schedule, values, st.none() | values, st.integers(1, 20), st.sampled_from(["linear", "cosine", "constant"])
    )


@st.composite
def planners(draw, **fixed):
    low = draw(st.integers(1, 20))
    settings = {
        "seed": draw(st.integers(0, 2**31)),
        "n": draw(st.integers(1, 16)),
        "mixed_fraction": draw(schedules(st.floats(0, 1))),
        "low": low,
        "high": draw(schedules(st.integers(low, low + 50))),
        "position": draw(st.sampled_from(["prefix", "middle", "suffix"])),
        "ages": tuple(draw(st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True))),
    }
    return MixingPlanner(**settings | fixed)


@given(planners(), st.integers(1, 30), st.integers(0, 12))
def test_every_prompt_has_its_share_of_mixed_sessions(planner, step, num_prompts):
    plan = planner.plan_step(step=step, num_prompts=num_prompts)
    assert len(plan) == num_prompts
    count = round(planner.mixed_fraction.at(step) * planner.n)
    for requests in plan:
        assert [r.session for r in requests] == list(range(planner.n - count, planner.n))
    assert planner.mixes(step) is (count > 0)


@given(planners(), st.integers(1, 30), st.integers(0, 9))
def test_no_plan_exceeds_the_response_budget_at_any_position(planner, step, position):
    """The budget is the least that the rules between settings let through."""
    longest = max(planner.low, planner.high.start, planner.high.final or 0)
    budget = {"prefix": longest, "middle": 2 * longest, "suffix": longest}[planner.position] + 1
    for r in planner.plan_prompt(step=step, place=position):
        assert r.share is None
        if planner.position == "prefix":
            assert planner.low <= r.length < budget and r.head == 0 and not r.to_the_end
        elif planner.position == "middle":
            assert planner.low <= r.length and planner.low <= r.head and r.head + r.length < budget
            assert not r.to_the_end
        else:
            assert planner.low <= r.head < budget and r.length == 0 and r.to_the_end


@given(planners(), st.integers(1, 30), st.integers(0, 9))
def test_no_length_is_above_the_limit_of_its_step(planner, step, position):
    limit = planner.longest(step)
    assert limit == max(planner.low, int(planner.high.at(step)))
    for r in planner.plan_prompt(step=step, place=position):
        assert max(r.length, r.head) <= limit


@given(planners(), st.integers(1, 30), st.integers(0, 20))
def test_ages_are_taken_in_turn(planner, step, num_prompts):
    plan = planner.plan_step(step=step, num_prompts=num_prompts)
    for requests in plan:
        counts = Counter(r.age for r in requests)
        assert set(counts) <= set(planner.ages)
        assert max(counts.values(), default=0) - min((counts[a] for a in planner.ages), default=0) <= 1
    if num_prompts % len(planner.ages) == 0:  # over the batch every age has exactly its share
        counts = Counter(r.age for requests in plan for r in requests)
        assert len({counts[age] for age in planner.ages}) == 1


def test_ages_in_turn_by_hand():
    plan = planner(n=4, mixed_fraction=0.75, ages=(2, 8)).plan_step(step=1, num_prompts=3)
    assert [[r.age for r in requests] for requests in plan] == [[2, 8, 2], [8, 2, 8], [2, 8, 2]]


@given(
    st.floats(0.01, 1),
    schedules(st.floats(0.01, 1)),
    st.integers(0, 2**31),
    st.integers(1, 30),
)
def test_shares_stay_within_their_bounds(low, high, seed, step):
    planned = planner(low=low, high=high, seed=seed, in_shares=True)
    limit = planned.longest(step)
    assert limit == pytest.approx(max(low, high.at(step))) and limit <= 1
    for r in planned.plan_prompt(step=step, place=3):
        assert low - 1e-12 <= r.share <= limit + 1e-12 and r.length == 0 and r.head == 0


def test_shares_of_one_width_are_that_share():
    requests = planner(low=1.0, high=1.0, in_shares=True).plan_prompt(step=1, place=0)
    assert [r.share for r in requests] == [1.0, 1.0]


def test_shares_are_spread_over_their_range():
    planned = planner(low=0.2, high=0.8, in_shares=True).plan_step(step=1, num_prompts=200)
    shares = [r.share for requests in planned for r in requests]
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.03)
    assert min(shares) < 0.22 and max(shares) > 0.78


@pytest.mark.parametrize(("fraction", "mixes"), [(0, False), (0.1, False), (0.2, True), (1, True)])
def test_a_step_mixes_if_the_share_makes_at_least_one_response_mixed(fraction, mixes):
    assert planner(mixed_fraction=fraction).mixes(step=1) is mixes


def test_a_schedule_of_the_mixed_fraction_switches_mixing_off():
    falling = planner(mixed_fraction=Schedule(0.5, 0.0, 5, "linear"))  # 0.5, 0.375, 0.25, 0.125, 0
    counts = [len(falling.plan_prompt(step=s, place=0)) for s in range(1, 7)]
    assert counts == [2, 2, 1, 0, 0, 0]  # round(1.5) is 2, round(0.5) is 0
    assert [falling.mixes(s) for s in range(1, 7)] == [True, True, True, False, False, False]


def test_a_schedule_shortens_prefixes_down_to_the_shortest():
    shrinking = planner(low=3, high=Schedule(12, 1, 12, "linear"))
    assert [shrinking.longest(s) for s in (1, 2, 9, 10, 11, 12, 99)] == [12, 11, 4, 3, 3, 3, 3]
    lengths = {r.length for r in shrinking.plan_prompt(step=11, place=0)}
    assert lengths == {3}


def test_both_ends_of_the_length_range_are_drawn():
    ends = planner(n=2, mixed_fraction=1.0, low=3, high=5)
    lengths = {r.length for requests in ends.plan_step(step=1, num_prompts=30) for r in requests}
    assert lengths == {3, 4, 5}


def test_head_and_stretch_of_a_middle_are_drawn_apart():
    requests = planner(n=64, mixed_fraction=1.0, position="middle").plan_prompt(step=1, place=0)
    assert sum(r.head != r.length for r in requests) > 32
    assert {r.head for r in requests} == set(range(1, 17))


@given(planners(), st.booleans(), st.integers(1, 1000), st.integers(1, 10), st.integers(1, 10), st.randoms())
def test_plan_is_the_same_in_any_order_and_over_any_number_of_workers(
    planner, shares, step, num_prompts, workers, random
):
    settings = vars(planner)
    if shares:
        settings = settings | {"low": 0.25, "high": Schedule(0.75), "in_shares": True, "position": "prefix"}
    plan = MixingPlanner(**settings).plan_step(step=step, num_prompts=num_prompts)
    order = random.sample(range(num_prompts), num_prompts)
    chunks = [order[i::workers] for i in range(workers)]
    planned = {i: MixingPlanner(**settings).plan_prompt(step=step, place=i) for chunk in chunks for i in chunk}
    assert [planned[i] for i in range(num_prompts)] == plan


def test_seed_step_position_and_session_each_change_the_lengths():
    def lengths(seed, step, position):
        huge = planner(seed=seed, n=8, mixed_fraction=1.0, high=10**6)
        return [r.length for r in huge.plan_prompt(step=step, place=position)]

    base = lengths(0, 1, 0)
    assert len(set(base)) == 8
    for other in (lengths(1, 1, 0), lengths(0, 2, 0), lengths(0, 1, 1)):
        assert not set(other) & set(base)


def test_a_known_plan_stays_the_same_for_ever():
    assert planner(seed=7).plan_step(step=3, num_prompts=3) == [
        (PrefixRequest(2, 14), PrefixRequest(3, 1)),
        (PrefixRequest(2, 1), PrefixRequest(3, 9)),
        (PrefixRequest(2, 8), PrefixRequest(3, 12)),
    ]


def test_a_whole_response_is_historical_from_its_first_token_to_its_end():
    requests = planner(n=4, mixed_fraction=0.5, position="whole", ages=(1, 3)).plan_prompt(step=1, place=0)
    assert requests == tuple(PrefixRequest(s, to_the_end=True, age=a) for s, a in ((2, 1), (3, 3)))


@pytest.mark.parametrize("position", ["middle", "suffix"])
def test_a_position_moves_the_drawn_lengths_and_draws_no_others(position):
    prefix = planner(seed=7).plan_prompt(step=3, place=0)
    moved = planner(seed=7, position=position).plan_prompt(step=3, place=0)
    drawn = [r.head if position == "suffix" else r.length for r in moved]
    assert drawn == [r.length for r in prefix]


def test_stable_seed_has_31_bits_and_stays_the_same_for_ever():
    assert stable_seed("prefix_length", 0, 1, 0, 2) == 977961103
    assert all(0 <= stable_seed(i) < 2**31 for i in range(200))


def test_stable_seed_keeps_parts_apart():
    assert len({stable_seed(1, 23), stable_seed(12, 3), stable_seed(123), stable_seed(1, 2, 3)}) == 4


# ---- gates ----


@pytest.mark.parametrize(
    ("when", "admitted"),
    [
        ("always", [0.0, 0.25, 0.875, 1.0]),
        ("unsolved", [0.0]),
        ("saturated", [1.0]),
        ("medium", [0.25, 0.875]),
    ],
)
def test_a_gate_looks_at_the_last_solved_rate(when, admitted):
    solved = SolvedRates(when)
    for rate in (0.0, 0.25, 0.875, 1.0):
        solved.record("p", 1.0 - rate)
        solved.record("p", rate)  # the last one counts
        assert solved.admits("p") is (rate in admitted)


@pytest.mark.parametrize("when", GATES)
def test_a_prompt_that_was_never_trained_on_is_admitted(when):
    solved = SolvedRates(when)
    solved.record("other", 0.5)
    assert solved.admits("p")


def test_nothing_is_remembered_that_no_gate_reads():
    always, unsolved = SolvedRates("always"), SolvedRates("unsolved")
    for solved in (always, unsolved):
        solved.record("p", 0.5)
    assert always.rates == {} and unsolved.rates == {"p": 0.5}


def test_mixing_starts_with_the_first_batch_that_is_solved_often_enough_for_good():
    waiting, at_once, admitted = SolvedRates(start_above=0.5), SolvedRates(), []
    for rate in (0.25, 0.5, 0.75, 0.0):
        for solved in (waiting, at_once):
            solved.record_batch(rate)
        admitted.append((waiting.admits("p"), at_once.admits("p")))
    assert admitted == [(False, True), (False, True), (True, True), (True, True)]


@pytest.mark.parametrize(("mixed", "rest"), [((2, 3), (0, 1)), ((3,), (0, 1, 2)), ((), ())])
def test_the_rest_of_a_prompt_is_every_other_response_whole_where_anything_is_mixed(mixed, rest):
    planner = MixingPlanner(seed=0, n=4, mixed_fraction=Schedule(0.5), low=1, high=Schedule(8))
    found = planner.rest(tuple(PrefixRequest(s, 3) for s in mixed), response_length=16)
    assert found == tuple(PrefixRequest(s, head=16) for s in rest)
