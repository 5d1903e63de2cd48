import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.config import SoupConfig
from soup_verl.method.history.kl_control import CollapseWatch, KlByAge, NoiseWatch

kl_values = st.floats(0, 10)


# ---- collapse ----


def test_a_collapse_is_called_at_the_patience_th_step_in_a_row_and_ends_with_the_first_other():
    watch = CollapseWatch(min_kl=0.01, patience=3)
    seen = []
    for kl in (0.005, 0.005, 0.02, 0.005, 0.009, 0.0, 0.001, 0.01, 0.005):  # 0.01 itself is not too low
        watch.observe(kl)
        seen.append((watch.low_steps, watch.collapsed))
    assert seen == [
        (1, False),
        (2, False),
        (0, False),
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (0, False),
        (1, False),
    ]


def test_without_a_lower_limit_nothing_ever_collapses():
    watch = CollapseWatch(min_kl=None, patience=1)
    watch.observe(0.0)
    assert not watch.collapsed and watch.low_steps == 0


@given(st.lists(kl_values), st.floats(0.1, 5), st.integers(1, 4))
def test_a_collapse_means_that_the_last_patience_steps_were_all_too_low(values, limit, patience):
    watch = CollapseWatch(limit, patience)
    for kl in values:
        watch.observe(kl)
    last = values[-patience:]
    assert watch.collapsed is (len(last) == patience and all(kl < limit for kl in last))


def test_the_count_goes_on_after_a_resume():
    watch = CollapseWatch(min_kl=0.01, patience=3, low_steps=2)
    watch.observe(0.001)
    assert watch.collapsed


# ---- noise ----

AUTO = {"source": "snapshot", "snapshot": {"choice": "auto"}, "kl_control": {"target_kl": 0.01}}
NOISY = {"soup/prefix_kl_k3": 4e-4, "soup/noise_floor_kl_k3": 2.5e-4}


def noise_watch(section, **changes):
    return NoiseWatch(SoupConfig.parse({**section, **changes}))


@pytest.mark.parametrize(
    ("section", "reader"),
    [
        ({"kl_control": {"min_prefix_kl": 1e-3}}, "soup.kl_control.min_prefix_kl would"),
        (AUTO, "0.0004: soup.snapshot.choice=auto would"),
        (
            {**AUTO, "kl_control": {"target_kl": 0.01, "min_prefix_kl": 1e-3}},
            "min_prefix_kl and soup.snapshot.choice=auto would",
        ),
    ],
)
def test_a_control_that_reads_noise_is_told_of_once(section, reader):
    watch = noise_watch(section)
    assert watch.warning(NOISY | {"soup/noise_floor_kl_k3": 2e-4}) is None  # half is not more than half
    assert watch.warning({}) is None
    assert reader in watch.warning(NOISY)
    assert watch.warning(NOISY) is None


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"kl_control": {"target_kl": 0.01}, "snapshot": {"choice": "auto"}},  # of a source that is not in use
        {"kl_control": {"max_prefix_kl": 0.1}},
        {**AUTO, "behavior_log_probs": "actor"},
    ],
)
def test_nothing_is_told_where_no_control_reads_the_engines_log_probs(section):
    assert noise_watch(section).warning(NOISY) is None


# ---- KL by age ----


def test_a_new_step_counts_three_tenths():
    known = KlByAge()
    known.observe({2: 1.0, 4: 5.0})
    known.observe({2: 2.0})
    assert known.means == pytest.approx({2: 1.3, 4: 5.0})


@pytest.mark.parametrize(
    ("age", "kl"),
    [
        (2, 0.2),  # seen
        (8, 0.5),
        (1, 0.1),  # between 0 at age 0 and the first
        (5, 0.35),  # half way
        (3, 0.25),
        (16, 1.0),  # beyond the last: on along the line through the origin, 0.5 / 8 a step
        (9, 0.5625),
    ],
)
def test_prediction_at_between_and_beyond_the_ages_seen(age, kl):
    assert KlByAge({2: 0.2, 8: 0.5}).predict(age) == pytest.approx(kl)
    assert KlByAge({8: 0.5, 2: 0.2}).predict(age) == pytest.approx(kl)  # seen in another order


def test_nothing_is_predicted_before_anything_was_seen():
    assert KlByAge().predict(3) is None
    assert KlByAge().nearest([4, 2, 9], 0.5) == 2


@given(st.dictionaries(st.integers(1, 50), kl_values, min_size=1), st.integers(1, 99))
def test_a_prediction_lies_between_its_neighbours(means, age):
    predicted = KlByAge(means).predict(age)
    points = {0: 0.0} | means
    if age in means:
        assert predicted == means[age]
    elif age < max(means):
        ends = points[max(a for a in points if a < age)], points[min(a for a in points if a > age)]
        assert min(ends) - 1e-9 <= predicted <= max(ends) + 1e-9
    else:
        assert predicted == pytest.approx(means[max(means)] * age / max(means))


@pytest.mark.parametrize(("target", "age"), [(0.0, 1), (0.19, 2), (0.29, 3), (0.5, 8), (7.0, 8)])
def test_the_age_nearest_to_the_target(target, age):
    assert KlByAge({2: 0.2, 8: 0.5}).nearest([8, 3, 1, 2], target) == age  # expected 0.5, 0.25, 0.1, 0.2


def test_of_two_equally_near_the_younger_is_taken():
    assert KlByAge({2: 0.5, 4: 0.5}).nearest([4, 2], 0.1) == 2


@pytest.mark.parametrize("ages", [[], [0, 2], [-1]])
def test_a_kept_policy_is_older_than_the_current_one(ages):
    with pytest.raises(AssertionError):
        KlByAge({2: 0.5}).nearest(ages, 0.1)
