"""Steering pass rates by the length of a cut: by hand, and against known curves of length and success."""

import json
import random
import tracemalloc
from statistics import fmean

import pytest

from soup_verl.method.history import PassRateControl


def control(target=0.5, low=0.0, high=1.0):
    return PassRateControl(target, low=low, high=high)


def share(made):
    return made.state()["p"][1]


def test_a_prompt_is_steered_by_hand():
    """Gains 1/2, 1/3 and 1/4; successes are cut longer where too few pass, failures where too many do."""
    made = control()
    assert made.cut("p") is None
    made.observe({"p": 0.0}, {})
    assert made.cut("p") == ("latest_right", 0.5)
    made.observe({"p": 0.0}, {"p": 0.0})
    assert made.cut("p") == ("latest_right", 0.75)  # + 1/2 of 0.5
    made.observe({"p": 1.0}, {"p": 0.8})
    assert made.cut("p") == ("latest_wrong", pytest.approx(0.65))  # - 1/3 of 0.3, by the way it had been cut
    made.observe({"p": 1.0}, {"p": 0.9})
    assert made.cut("p") == ("latest_wrong", pytest.approx(0.75))  # + 1/4 of 0.4


def test_at_the_target_nothing_is_cut_and_the_share_is_kept():
    made = control(target=0.25)
    made.observe({"p": 0.0}, {})
    made.observe({"p": 0.25}, {"p": 0.25})
    assert made.cut("p") is None and share(made) == 0.5


def test_mixed_responses_have_no_say_in_which_way_to_steer():
    made = control()
    made.observe({"p": 0.0}, {})
    made.observe({"p": 0.0}, {"p": 1.0})  # they all pass, thanks to the prefix
    assert made.cut("p") == ("latest_right", 0.25)


def test_the_share_stays_within_its_bounds_and_the_gain_does_not_vanish():
    made = control(low=0.2, high=0.6)
    made.observe({"p": 0.0}, {})
    assert share(made) == 0.4
    for rate, expected in ((0.0, 0.6), (1.0, 0.6 - 0.5 / 3)):
        made.observe({"p": 0.0}, {"p": rate})
        assert share(made) == pytest.approx(expected)
    for _ in range(50):
        made.observe({"p": 0.0}, {"p": 1.0})
    assert share(made) == 0.2  # from where it is still seen: nothing gets stuck
    made.observe({"p": 0.0}, {"p": 0.0})
    assert share(made) == pytest.approx(0.2 + 0.1 * 0.5)


CURVES = {
    "slow": lambda p, s: p + (1 - p) * s,
    "late": lambda p, s: p + (1 - p) * s**3,
    "early": lambda p, s: p + (1 - p) * s**0.5,
    "steep": lambda p, s: p + (1 - p) / (1 + 2.718281828 ** (-15 * (s - 0.6))),
}


@pytest.mark.parametrize("target", [0.5, 0.3])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("policy", [0.0, 0.1, 0.9, 1.0])
def test_a_known_curve_of_length_and_success_reaches_the_target_within_a_tenth(curve, policy, target):
    """Four on-policy and four mixed responses a visit; failures lower the rate as successes raise it. The mean over 40
    prompts of the pass rate at visits 21 to 40; each prompt's own mean is within .2."""
    rng, made, seen = random.Random(0), control(target), {p: [] for p in map(str, range(40))}

    def rate(probability):
        return sum(rng.random() < probability for _ in range(4)) / 4

    for visit in range(1, 41):
        mixed = {}
        for prompt, rates in seen.items():
            if cut := made.cut(prompt):
                choice, s = cut
                passes = curve(policy, s) if choice == "latest_right" else 1 - curve(1 - policy, s)
                mixed[prompt] = rate(passes)
                if visit > 20:
                    rates.append(passes)
        made.observe({prompt: rate(policy) for prompt in seen}, mixed)
    means = [fmean(rates) for rates in seen.values()]
    assert abs(fmean(means) - target) < 0.1, fmean(means)
    assert max(abs(mean - target) for mean in means) < 0.2, means


def test_what_it_knows_is_counted_and_grows_with_the_prompts_alone():
    made = control()
    for visit in range(3):
        made.observe({"p": 0.0, "q": 0.5}, {"p": 0.5} if visit else {})
    assert made.metrics() == {
        "soup/balanced_prompts_total": 2.0,
        "soup/balanced_steered_prompts_total": 1.0,
        "soup/balanced_share_mean": 0.5,
    }
    assert "soup/balanced_share_mean" not in control().metrics()


def test_a_prompt_takes_some_200_bytes():
    keys = [f"{i:016x}" for i in range(20_000)]
    tracemalloc.start()
    made = control()
    for _ in range(3):
        made.observe({key.upper(): hash(key) % 5 / 7 for key in keys}, {})
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(keys) < 250, used / len(keys)


def test_its_state_goes_through_json_bit_for_bit():
    made, again = control(), control()
    made.observe({"p": 1 / 3}, {})
    made.observe({"p": 1 / 7}, {"p": 1 / 3})
    again.take_up(json.loads(json.dumps(made.state())))
    for both in (made, again):
        both.observe({"p": 0.2}, {"p": 0.1})
    assert again.state() == made.state() and again.cut("p") == made.cut("p")
