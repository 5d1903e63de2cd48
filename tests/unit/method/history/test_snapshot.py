import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.history import SnapshotSource
from soup_verl.method.sections import SNAPSHOT_CHOICES, SnapshotConfig

choices = st.sampled_from(SNAPSHOT_CHOICES)


def source_of(engine, *, every=1, capacity=3, choice="uniform", seed=0, last_step=10, target_kl=0.1, **settings):
    return SnapshotSource(
        engine,
        SnapshotConfig(every, capacity, choice),
        seed=seed,
        last_step=last_step,
        target_kl=target_kl,
        **settings,
    )


def versions(handed):
    """Step -> the version that sampled its prefixes."""
    found = {
        s: {p.policy_version for g in groups for p in g.by_session.values()} for s, groups in handed.items() if groups
    }
    assert all(len(v) == 1 for v in found.values())
    return {s: v.pop() for s, v in found.items()}


def tell(source, kl_of_age, *, collapsed=False):
    """A `before_update` that reports a prefix KL by age."""
    return lambda step: source.observe_kl(kl_of_age, collapsed=collapsed)


# ---- the order of a step ----


def test_the_first_mixed_step_follows_the_second_update(engine, fake_run):
    handed = fake_run.steps(source_of(engine), engine, 1, 4)
    # version 1 is kept after step 1; after step 2 it is history and samples the prefixes of step 3
    assert min(versions(handed)) == 3 and versions(handed)[3] == 1


def test_each_step_takes_the_kept_policy_first_and_keeps_the_new_one_after(engine, fake_run):
    fake_run.steps(source_of(engine), engine, 1, 2)
    assert engine.calls == [
        ("keep", 1),
        ("hold", 1),
        ("awake", 1),
        ("sample", 3, 1),
        ("rescore", 3, 1),  # the engine sleeps, the actor still holds pi_h: the fake refuses anything else
        ("back", 2),
        ("keep", 2),
    ]


def test_a_policy_kept_first_is_held_from_its_own_step_on(engine, fake_run):
    """One kept policy, every second step: the batches of steps 3 and 4 come from version 2, at ages 0 and 1."""
    held = source_of(engine, every=2, capacity=1, choice="latest", keep_first=True, warm_start=True)
    assert versions(fake_run.steps(held, engine, 1, 6)) == {2: 0, 3: 2, 4: 2, 5: 4, 6: 4}
    at = engine.calls.index(("keep", 2))
    assert engine.calls[at : at + 4] == [
        ("keep", 2),
        ("awake", 2),
        ("sample", 3, 2),
        ("rescore", 3, 2),
    ]  # nothing moved


@pytest.mark.parametrize("choice", SNAPSHOT_CHOICES)
def test_kept_first_and_every_step_the_latest_policy_is_the_current_one(engine, fake_run, choice):
    found = versions(fake_run.steps(source_of(engine, capacity=1, choice=choice, keep_first=True), engine, 1, 4))
    assert found == {2: 1, 3: 2, 4: 3}


def test_heads_come_from_the_current_policy_before_the_kept_one_continues_them(engine, fake_run):
    handed = fake_run.steps(source_of(engine, heads_first=True), engine, 1, 3)
    assert engine.calls[: engine.calls.index(("keep", 2))] == [
        ("keep", 1),
        ("awake", 2),
        ("heads", 3, 2),
        ("hold", 1),
        ("awake", 1),
        ("sample", 3, 1),
        ("rescore", 3, 1),
        ("back", 2),
    ]
    for group in handed[3]:
        for prefix in group.by_session.values():
            assert (prefix.token_ids, prefix.head, prefix.historical) == ((9, 3, 7), 1, 2)


def test_each_step_gets_the_prefixes_of_its_own_prompts_once(engine, fake_run):
    source = source_of(engine, last_step=4)
    handed = fake_run.steps(source, engine, 1, 4)
    for step in (3, 4):
        assert [g.prompt_key for g in handed[step]] == [f"prompt {i} of {step}" for i in range(2)]
        assert source.prefixes(step) is None


# ---- which policies are kept ----


@given(st.integers(1, 4), st.integers(1, 4))
def test_the_buffer_holds_the_last_policies_and_the_oldest_goes_first(fake_run, every, capacity):
    engine = fake_run.Engine()
    source = source_of(engine, every=every, capacity=capacity)
    fake_run.steps(source, engine, 1, 10)
    kept = list(range(every, 11, every))
    assert list(engine.kept) == kept[-capacity:]
    assert engine.most_kept == min(capacity, len(kept)), "one is dropped before the next is kept"
    assert [v for name, *v in engine.calls if name == "drop"] == [[v] for v in kept[:-capacity]]
    assert source.metrics() == {"soup/kept_policies_total": len(engine.kept), "soup/kept_policies_bytes": 7}


@given(every=st.integers(1, 3), capacity=st.integers(1, 4), choice=choices, seed=st.integers(0, 99))
def test_a_prefix_is_always_older_than_the_policy_that_continues_it(fake_run, every, capacity, choice, seed):
    engine = fake_run.Engine()
    source = source_of(engine, every=every, capacity=capacity, choice=choice, seed=seed, last_step=12)
    chosen = versions(fake_run.steps(source, engine, 1, 12))
    assert chosen and all(1 <= version < step - 1 for step, version in chosen.items())
    assert all(version % every == 0 for version in chosen.values())


def test_nothing_is_sampled_beyond_the_last_step(engine, fake_run):
    fake_run.steps(source_of(engine, last_step=4), engine, 1, 4)
    assert [call[1] for call in engine.calls if call[0] == "sample"] == [3, 4]


@pytest.mark.parametrize("heads_first", [False, True])
def test_no_weights_are_moved_for_a_step_that_mixes_nothing(engine, fake_run, heads_first):
    engine.unwanted = {3, 5}
    handed = fake_run.steps(source_of(engine, last_step=6, heads_first=heads_first), engine, 1, 6)
    assert set(versions(handed)) == {4, 6}
    assert [call[0] for call in engine.calls].count("hold") == 2
    assert [call[0] for call in engine.calls].count("awake") == (4 if heads_first else 2)


# ---- warm start ----


def test_a_warm_start_uses_the_initial_policy_until_the_first_is_kept(engine, fake_run):
    source = source_of(engine, every=3, warm_start=True, choice="latest")
    handed = fake_run.steps(source, engine, 1, 6)
    # version 3 is kept at the end of step 3, and is history from step 5 on
    assert versions(handed) == {2: 0, 3: 0, 4: 0, 5: 3, 6: 3}
    assert [call for call in engine.calls if call[0] in ("keep", "drop")] == [
        ("keep", 0),
        ("drop", 0),
        ("keep", 3),
        ("keep", 6),
    ]


def test_the_initial_policy_is_dropped_when_the_first_is_kept_even_if_there_is_room(engine, fake_run):
    fake_run.steps(source_of(engine, capacity=4, warm_start=True), engine, 1, 2)
    assert list(engine.kept) == [1, 2]


def test_without_a_warm_start_the_initial_policy_is_not_kept(engine, fake_run):
    fake_run.steps(source_of(engine), engine, 1, 1)
    assert list(engine.kept) == [1]


def test_a_resumed_run_does_not_warm_start_again(engine, fake_run, tmp_path):
    fake_run.steps(source_of(engine, warm_start=True), engine, 1, 4, save_at=4, folder=tmp_path)
    second = fake_run.Engine()
    fake_run.resume(source_of(second, warm_start=True), second, 4, tmp_path)
    assert 0 not in second.kept and ("keep", 0) not in second.calls


# ---- which of them samples ----


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("oldest", {3: 1, 4: 1, 5: 1, 6: 2, 7: 3, 8: 4}), ("latest", {3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6})],
)
def test_oldest_and_latest_of_the_kept_policies(engine, fake_run, choice, expected):
    assert versions(fake_run.steps(source_of(engine, choice=choice), engine, 1, 8)) == expected


def test_uniform_draws_every_kept_policy_and_depends_on_seed_and_step(fake_run):
    def chosen(seed):
        engine = fake_run.Engine()
        return versions(fake_run.steps(source_of(engine, seed=seed, last_step=40), engine, 1, 40))

    assert chosen(0) == chosen(0) != chosen(1)
    assert {step - 1 - version for step, version in chosen(0).items()} == {1, 2, 3}


@pytest.mark.parametrize(
    ("target_kl", "age"), [(0.001, 1), (0.1, 1), (0.14, 1), (0.16, 2), (0.2, 2), (0.26, 3), (9, 3)]
)
def test_auto_takes_the_policy_whose_kl_is_nearest_to_the_target(engine, fake_run, target_kl, age):
    """KL grows by 0.1 a step of age; when step 6 is sampled, policies of age 1, 2 and 3 are kept."""
    source = source_of(engine, choice="auto", target_kl=target_kl, last_step=6)
    handed = fake_run.steps(source, engine, 1, 6, before_update=tell(source, {1: 0.1, 2: 0.2, 3: 0.3}))
    assert 5 - versions(handed)[6] == age


def test_auto_takes_the_youngest_while_nothing_is_known(engine, fake_run):
    handed = fake_run.steps(source_of(engine, choice="auto", target_kl=9.0), engine, 1, 6)
    assert versions(handed) == {3: 1, 4: 2, 5: 3, 6: 4}


@pytest.mark.parametrize("choice", ["latest", "uniform", "auto"])
def test_a_collapse_makes_it_take_the_oldest(engine, fake_run, choice):
    source = source_of(engine, choice=choice, target_kl=0.001, last_step=8)
    handed = fake_run.steps(source, engine, 1, 8, before_update=tell(source, {1: 0.0001}, collapsed=True))
    assert versions(handed) == {3: 1, 4: 1, 5: 1, 6: 2, 7: 3, 8: 4}


def test_the_choice_comes_back_when_the_collapse_is_over(engine, fake_run):
    source = source_of(engine, choice="latest", last_step=8)

    def report(step):
        source.observe_kl({1: 0.0001}, collapsed=step == 5)

    assert versions(fake_run.steps(source, engine, 1, 8, before_update=report)) == {3: 1, 4: 2, 5: 3, 6: 2, 7: 5, 8: 6}


# ---- checkpoints ----


@given(
    interrupted=st.integers(1, 9),
    every=st.integers(1, 3),
    capacity=st.integers(1, 3),
    choice=choices,
    warm_start=st.booleans(),
    collapse_at=st.integers(1, 12),
)
def test_a_resumed_run_gets_what_an_uninterrupted_one_gets(
    tmp_path_factory, fake_run, interrupted, every, capacity, choice, warm_start, collapse_at
):
    folder = tmp_path_factory.mktemp("history")
    settings = {"every": every, "capacity": capacity, "choice": choice, "warm_start": warm_start, "target_kl": 0.25}

    def observing(source):  # what the history is told depends on the step: it must be remembered
        return lambda step: source.observe_kl({1 + step % 3: 0.1 * (1 + step % 3)}, collapsed=step == collapse_at)

    whole = fake_run.Engine()
    source = source_of(whole, **settings)
    expected = fake_run.steps(source, whole, 1, 10, save_at=interrupted, folder=folder, before_update=observing(source))
    second = fake_run.Engine()
    source = source_of(second, **settings)
    fake_run.resume(source, second, interrupted, folder)
    handed = fake_run.steps(source, second, interrupted + 1, 10, before_update=observing(source))
    assert handed == {s: expected[s] for s in range(interrupted + 1, 11)}
    assert second.kept == whole.kept


def test_loading_from_a_folder_without_the_file_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="snapshots.json"):
        source_of(engine).load(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        "not json",
        "[1, 2]",
        "{}",
        '{"versions": 3, "kl_by_age": {}, "collapsed": false}',
        '{"versions": [1], "kl_by_age": [], "collapsed": false}',
        '{"versions": [1], "kl_by_age": {"x": 1}, "collapsed": false}',
        '{"versions": [1], "kl_by_age": {}}',
    ],
)
def test_a_damaged_list_of_policies_is_refused_by_its_path(engine, tmp_path, state):
    (tmp_path / "snapshots.json").write_text(state)
    with pytest.raises(ValueError, match=str(tmp_path / "snapshots.json")):
        source_of(engine).load(tmp_path)


def test_the_list_of_policies_is_plain_json(engine, fake_run, tmp_path):
    source = source_of(engine, capacity=2)
    fake_run.steps(source, engine, 1, 3, save_at=3, folder=tmp_path, before_update=tell(source, {2: 0.5}))
    assert json.loads((tmp_path / "snapshots.json").read_text()) == {
        "versions": [1, 2],
        "kl_by_age": {"2": 0.5},
        "collapsed": False,
    }
