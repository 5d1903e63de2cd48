import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.method.history import GroupPrefixes, LookaheadSource, Prefix
from soup_verl.method.history.lookahead import merged

ages_to_try = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True).map(tuple)


def ages_of(handed):
    """Step -> how old each prefix is, by session, a list a prompt; steps without history are left out."""
    return {
        step: [{s: step - 1 - p.policy_version for s, p in g.by_session.items()} for g in groups]
        for step, groups in handed.items()
        if groups is not None
    }


def asked(engine):
    """The requests, without the rescoring."""
    return [call for call in engine.calls if call[0] == "sample"]


# ---- one age ----


@pytest.mark.parametrize("age", [1, 2, 4])
def test_steps_1_to_age_are_onpolicy_and_every_later_step_is_mixed(fake_run, age):
    engine = fake_run.Engine((age,))
    handed = fake_run.steps(LookaheadSource(engine, ages=(age,), last_step=7), engine, 1, 7)
    assert ages_of(handed) == {step: [{1: age, 2: age}] * 2 for step in range(age + 1, 8)}


def test_each_step_gets_the_prefixes_of_its_own_prompts(fake_run):
    engine = fake_run.Engine((2,))
    handed = fake_run.steps(LookaheadSource(engine, ages=(2,), last_step=6), engine, 1, 6)
    for step in range(3, 7):
        assert [g.prompt_key for g in handed[step]] == [f"prompt {i} of {step}" for i in range(2)]
        assert all(p.token_ids == (step, 7) for g in handed[step] for p in g.by_session.values())


@given(ages_to_try, st.integers(1, 12), st.booleans())
def test_nothing_is_sampled_for_steps_beyond_the_last(fake_run, ages, last_step, warm_start):
    engine = fake_run.Engine(ages)
    source = LookaheadSource(engine, ages=ages, last_step=last_step, warm_start=warm_start)
    fake_run.steps(source, engine, 1, last_step)
    assert all(step <= last_step for _, step, *_ in asked(engine))
    on_time = [("sample", t + a, t - 1, (a,)) for t in range(1, last_step + 1) for a in ages if t + a <= last_step]
    assert asked(engine) == on_time if not warm_start else set(on_time) <= set(asked(engine))


def test_nothing_is_sampled_for_a_step_that_mixes_nothing(fake_run):
    engine = fake_run.Engine((2,))
    engine.unwanted = {3, 5}
    handed = fake_run.steps(LookaheadSource(engine, ages=(2,), last_step=6), engine, 1, 6)
    assert set(ages_of(handed)) == {4, 6}


# ---- several ages ----


def test_each_prefix_has_the_age_its_plan_says(fake_run):
    engine = fake_run.Engine((2, 8))
    handed = fake_run.steps(LookaheadSource(engine, ages=(2, 8), last_step=11), engine, 1, 11)
    young = [{1: 2}, {2: 2}]  # age 8 has no history before step 9
    both = [{1: 2, 2: 8}, {1: 8, 2: 2}]
    assert ages_of(handed) == {step: young if step < 9 else both for step in range(3, 12)}


@given(ages_to_try, st.integers(1, 14))
def test_every_prefix_old_enough_to_exist_is_handed_over_with_its_planned_age(fake_run, ages, last_step):
    engine = fake_run.Engine(ages)
    handed = fake_run.steps(LookaheadSource(engine, ages=ages, last_step=last_step), engine, 1, last_step)
    for step, groups in handed.items():
        for plan, group in zip(engine.plan(step), groups or [], strict=False):
            assert group.prompt_key == plan.prompt_key
        expected = [{r.session: r.age for r in plan.requests if r.age < step} for plan in engine.plan(step)]
        found = ages_of({step: groups}).get(step, [{}, {}])
        assert found == expected
        assert (groups is None) == (step <= min(ages))


def test_groups_of_the_same_prompts_are_taken_together():
    a, b = Prefix((1,), (-1.0,), 0), Prefix((2,), (-1.0,), 5)
    some = [GroupPrefixes("p", {2: a}), GroupPrefixes("q", {})]
    others = [GroupPrefixes("p", {3: b}), GroupPrefixes("q", {2: b})]
    assert merged(some, others) == [GroupPrefixes("p", {2: a, 3: b}), GroupPrefixes("q", {2: b})]
    for wrong in ([GroupPrefixes("x", {}), others[1]], some):  # another prompt; the same session twice
        with pytest.raises(AssertionError):
            merged(some, wrong)
    with pytest.raises(ValueError):
        merged(some, others[:1])


# ---- warm start ----


def test_what_a_warm_start_asks_at_step_1(fake_run):
    engine = fake_run.Engine((2, 5))
    source = LookaheadSource(engine, ages=(2, 5), last_step=9, warm_start=True)
    engine.held = 0
    source.after_submit(1)
    assert engine.calls == [
        ("sample", 3, 0, (2,)),  # as ever
        ("sample", 6, 0, (5,)),
        ("sample", 2, 0, (2, 5)),  # nobody else could
        ("sample", 3, 0, (5,)),
        ("sample", 4, 0, (5,)),
        ("sample", 5, 0, (5,)),
    ]


def test_a_warm_start_asks_at_step_1_only_and_not_beyond_the_last_step(fake_run):
    engine = fake_run.Engine((4,))
    source = LookaheadSource(engine, ages=(4,), last_step=3, warm_start=True)
    fake_run.steps(source, engine, 1, 3)
    assert asked(engine) == [("sample", 2, 0, (4,)), ("sample", 3, 0, (4,))]


def test_a_warm_start_of_age_1_changes_nothing(fake_run):
    engine = fake_run.Engine((1,))
    fake_run.steps(LookaheadSource(engine, ages=(1,), last_step=3, warm_start=True), engine, 1, 3)
    assert asked(engine) == [("sample", 2, 0, (1,)), ("sample", 3, 1, (1,))]


@given(ages_to_try, st.integers(2, 14))
def test_after_a_warm_start_every_step_but_the_first_has_all_its_prefixes(fake_run, ages, last_step):
    """As old as planned, or from the initial policy where no policy is that old."""
    engine = fake_run.Engine(ages)
    source = LookaheadSource(engine, ages=ages, last_step=last_step, warm_start=True)
    handed = ages_of(fake_run.steps(source, engine, 1, last_step))
    assert set(handed) == set(range(2, last_step + 1))
    for step, groups in handed.items():
        planned = [{r.session: min(r.age, step - 1) for r in plan.requests} for plan in engine.plan(step)]
        assert groups == planned


# ---- the order of a step ----


def test_prefixes_are_waited_for_before_the_engine_sleeps_and_scored_before_the_update(fake_run):
    engine = fake_run.Engine((1,))
    source = LookaheadSource(engine, ages=(1,), last_step=9)
    engine.held = 0
    source.after_submit(1)
    source.before_sleep()  # the fake refuses a later `result`
    engine.held = None
    assert source.prefixes(2) is None, "not scored yet"
    source.before_update(1)  # the fake refuses another policy's scores
    assert engine.calls == [("sample", 2, 0, (1,)), ("rescore", 2, 0)]
    assert source.prefixes(2) is not None


def test_the_rescored_prefixes_are_those_handed_over(fake_run):
    class Rescoring(fake_run.Engine):
        def rescored(self, step, groups):
            scored = {s: Prefix((s,), (-9.0,), 0) for s in (1, 2)}
            return [GroupPrefixes(g.prompt_key, {s: scored[s] for s in g.by_session}) for g in groups]

    engine = Rescoring((1, 2))
    source = LookaheadSource(engine, ages=(1, 2), last_step=9, warm_start=True)
    handed = fake_run.steps(source, engine, 1, 3)
    assert {p.log_probs for g in handed[2] + handed[3] for p in g.by_session.values()} == {(-9.0,)}


def test_prefixes_are_handed_over_once(fake_run):
    engine = fake_run.Engine((1,))
    source = LookaheadSource(engine, ages=(1,), last_step=9)
    fake_run.steps(source, engine, 1, 1)
    assert source.prefixes(2) is not None and source.prefixes(2) is None


# ---- what is said in advance, and resuming ----


@pytest.mark.parametrize(
    ("ages", "last_step", "steps"), [((3,), 9, [1, 2, 3]), ((8, 2), 9, [1, 2]), ((5,), 3, [1, 2, 3]), ((1,), 9, [1])]
)
def test_the_steps_without_history_are_known_at_the_start(fake_run, ages, last_step, steps):
    engine = fake_run.Engine(ages)
    source = LookaheadSource(engine, ages=ages, last_step=last_step)
    assert source.without_history(1) == steps
    handed = fake_run.steps(source, engine, 1, last_step)
    assert [s for s, groups in handed.items() if groups is None] == steps


def test_steps_that_mix_nothing_anyway_are_not_counted_as_without_history(engine):
    engine.unwanted = {1, 3}
    assert LookaheadSource(engine, ages=(4,), last_step=9).without_history(1) == [2, 4]


@settings(max_examples=30)
@given(ages_to_try, st.integers(1, 8), st.booleans(), st.sampled_from([(), (1,), (1, 2)]))
def test_a_resumed_run_gets_what_an_uninterrupted_one_gets(
    tmp_path_factory, fake_run, ages, interrupted, warm_start, empty
):
    folder = tmp_path_factory.mktemp("history")
    shape = {"ages": ages, "last_step": 8, "warm_start": warm_start}
    whole, second = fake_run.Engine(ages), fake_run.Engine(ages)
    whole.empty = second.empty = set(empty)  # a prompt whose prefixes came out empty keeps its place
    expected = fake_run.steps(LookaheadSource(whole, **shape), whole, 1, 8, save_at=interrupted, folder=folder)
    source = LookaheadSource(second, **shape)
    fake_run.resume(source, second, interrupted, folder)
    assert source.without_history(interrupted + 1) == [s for s in range(interrupted + 1, 9) if expected[s] is None]
    handed = fake_run.steps(source, second, interrupted + 1, 8)
    assert handed == {step: expected[step] for step in range(interrupted + 1, 9)}
    assert second.calls == [call for call in whole.calls if call[2] >= interrupted]


def test_saving_while_prefixes_are_under_way_is_refused(engine, tmp_path):
    source = LookaheadSource(engine, ages=(1,), last_step=9)
    engine.held = 0
    source.after_submit(1)
    for hook in (lambda: None, source.before_sleep):  # under way; sampled but not scored
        hook()
        with pytest.raises(AssertionError, match="still being sampled"):
            source.save(tmp_path)


def test_loading_from_a_folder_without_the_file_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="pending_prefixes.parquet"):
        LookaheadSource(engine, ages=(1,), last_step=9).load(tmp_path)


def test_the_first_step_of_a_warm_start_is_known_to_have_no_history(fake_run):
    engine = fake_run.Engine((4,))
    source = LookaheadSource(engine, ages=(4,), last_step=9, warm_start=True)
    assert source.without_history(1) == [1]
