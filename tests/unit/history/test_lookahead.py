import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.history import LookaheadSource


def ages(handed):
    return {
        step: [step - 1 - p.policy_version for g in groups for p in g.by_session.values()]
        for step, groups in handed.items()
        if groups is not None
    }


@pytest.mark.parametrize("age", [1, 2, 4])
def test_steps_1_to_age_are_onpolicy_and_every_later_step_is_mixed(engine, fake_run, age):
    handed = fake_run.steps(LookaheadSource(engine, age=age, last_step=7), engine, 1, 7)
    assert ages(handed) == {step: [age] for step in range(age + 1, 8)}


def test_each_step_gets_the_prefixes_of_its_own_prompts(engine, fake_run):
    handed = fake_run.steps(LookaheadSource(engine, age=2, last_step=6), engine, 1, 6)
    assert [handed[s][0].prompt_key for s in range(3, 7)] == [f"prompt of {s}" for s in range(3, 7)]


@given(st.integers(1, 5), st.integers(1, 8))
def test_nothing_is_sampled_for_steps_beyond_the_last(fake_run, age, last_step):
    engine = fake_run.Engine()
    fake_run.steps(LookaheadSource(engine, age=age, last_step=last_step), engine, 1, last_step)
    assert engine.calls == [("sample", t + age, t - 1) for t in range(1, last_step - age + 1)]


def test_nothing_is_sampled_for_a_step_that_mixes_nothing(engine, fake_run):
    engine.unwanted = {3, 5}
    handed = fake_run.steps(LookaheadSource(engine, age=2, last_step=6), engine, 1, 6)
    assert set(ages(handed)) == {4, 6}


def test_prefixes_are_waited_for_before_the_engine_sleeps(engine):
    source = LookaheadSource(engine, age=1, last_step=9)
    engine.held = 0
    source.after_submit(1)
    source.before_sleep()  # the fake refuses a later `result`
    engine.held = None
    assert source.prefixes(2) is not None


def test_prefixes_are_handed_over_once(engine, fake_run):
    source = LookaheadSource(engine, age=1, last_step=9)
    fake_run.steps(source, engine, 1, 1)
    assert source.prefixes(2) is not None and source.prefixes(2) is None


@given(st.integers(1, 4), st.integers(1, 8))
def test_a_resumed_run_gets_what_an_uninterrupted_one_gets(tmp_path_factory, fake_run, age, interrupted):
    folder = tmp_path_factory.mktemp("history")
    whole = fake_run.Engine()
    expected = fake_run.steps(
        LookaheadSource(whole, age=age, last_step=8), whole, 1, 8, save_at=interrupted, folder=folder
    )
    second = fake_run.Engine()
    source = LookaheadSource(second, age=age, last_step=8)
    fake_run.resume(source, second, interrupted, folder)
    handed = fake_run.steps(source, second, interrupted + 1, 8)
    assert handed == {step: expected[step] for step in range(interrupted + 1, 9)}
    assert second.calls == [call for call in whole.calls if call[2] >= interrupted]


def test_saving_while_prefixes_are_under_way_is_refused(engine, tmp_path):
    source = LookaheadSource(engine, age=1, last_step=9)
    engine.held = 0
    source.after_submit(1)
    with pytest.raises(AssertionError, match="still being sampled"):
        source.save(tmp_path)


def test_loading_from_a_folder_without_the_file_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="pending_prefixes.parquet"):
        LookaheadSource(engine, age=1, last_step=9).load(tmp_path)


def test_reads_ahead_as_far_as_its_age(engine):
    assert LookaheadSource(engine, age=3, last_step=9).read_ahead == 3
