import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.history import SnapshotSource


def source_of(engine, *, every=1, capacity=3, choice="uniform", seed=0, last_step=10):
    return SnapshotSource(engine, every=every, capacity=capacity, choice=choice, seed=seed, last_step=last_step)


def versions(handed):
    return {s: g[0].by_session[1].policy_version for s, g in handed.items() if g is not None}


def test_the_first_mixed_step_follows_the_second_update(engine, fake_run):
    handed = fake_run.steps(source_of(engine), engine, 1, 4)
    # version 1 is kept after step 1; after step 2 it is history and samples the prefixes of step 3
    assert min(versions(handed)) == 3 and versions(handed)[3] == 1


def test_each_step_borrows_first_and_keeps_the_new_policy_after(engine, fake_run):
    fake_run.steps(source_of(engine), engine, 1, 2)
    assert engine.calls == [("keep", 1), ("borrow", 1), ("sample", 3, 1), ("return", 1), ("keep", 2)]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("oldest", {3: 1, 4: 1, 5: 1, 6: 2, 7: 3, 8: 4}), ("latest", {3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6})],
)
def test_oldest_and_latest_of_the_kept_policies(engine, fake_run, choice, expected):
    assert versions(fake_run.steps(source_of(engine, choice=choice), engine, 1, 8)) == expected


@given(
    every=st.integers(1, 3),
    capacity=st.integers(1, 4),
    choice=st.sampled_from(["uniform", "oldest", "latest"]),
    seed=st.integers(0, 99),
)
def test_a_prefix_is_always_older_than_the_policy_that_continues_it(fake_run, every, capacity, choice, seed):
    engine = fake_run.Engine()
    source = source_of(engine, every=every, capacity=capacity, choice=choice, seed=seed, last_step=12)
    chosen = versions(fake_run.steps(source, engine, 1, 12))
    assert all(1 <= version < step - 1 for step, version in chosen.items())
    assert all(version % every == 0 for version in chosen.values())


@given(st.integers(1, 4), st.integers(1, 4))
def test_the_buffer_holds_the_last_policies_and_the_oldest_goes_first(fake_run, every, capacity):
    engine = fake_run.Engine()
    fake_run.steps(source_of(engine, every=every, capacity=capacity), engine, 1, 10)
    kept = list(range(every, 11, every))
    assert list(engine.kept) == kept[-capacity:]
    assert [v for name, *v in engine.calls if name == "drop"] == [[v] for v in kept[:-capacity]]


def test_uniform_draws_every_kept_policy_and_depends_on_seed_and_step(fake_run):
    def chosen(seed):
        engine = fake_run.Engine()
        return versions(fake_run.steps(source_of(engine, seed=seed, last_step=40), engine, 1, 40))

    assert chosen(0) == chosen(0) != chosen(1)
    assert {step - 1 - version for step, version in chosen(0).items()} == {1, 2, 3}


def test_nothing_is_sampled_beyond_the_last_step(engine, fake_run):
    fake_run.steps(source_of(engine, last_step=4), engine, 1, 4)
    assert [call[1] for call in engine.calls if call[0] == "sample"] == [3, 4]


def test_no_policy_is_borrowed_for_a_step_that_mixes_nothing(engine, fake_run):
    engine.unwanted = {3, 5}
    handed = fake_run.steps(source_of(engine, last_step=6), engine, 1, 6)
    assert set(versions(handed)) == {4, 6}
    assert [call[0] for call in engine.calls].count("borrow") == 2


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["uniform", "oldest", "latest"]))
def test_a_resumed_run_gets_what_an_uninterrupted_one_gets(
    tmp_path_factory, fake_run, interrupted, every, capacity, choice
):
    folder, settings = tmp_path_factory.mktemp("history"), {"every": every, "capacity": capacity, "choice": choice}
    whole = fake_run.Engine()
    expected = fake_run.steps(source_of(whole, **settings), whole, 1, 10, save_at=interrupted, folder=folder)
    second = fake_run.Engine()
    source = source_of(second, **settings)
    fake_run.resume(source, second, interrupted, folder)
    assert fake_run.steps(source, second, interrupted + 1, 10) == {s: expected[s] for s in range(interrupted + 1, 11)}
    assert second.kept == whole.kept


def test_loading_from_a_folder_without_the_file_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="snapshots.json"):
        source_of(engine).load(tmp_path)
