"""Dynamic sampling with mixing: four prompts a step have a signal, and those in place of others their prefixes."""

import json

import pytest

from soup_verl.method.history.store import read_prefixes

MIXED = ("neighbors/dapo_soup", "dapo_soup_resumed", "dapo_replay")


def each(names):
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in names])


@each(MIXED)
def test_refilled_prompts_come_with_prefixes_and_every_log_prob_fits(run, name):
    mixed = run(name)
    assert mixed.code == 0, mixed.output[-3000:]
    steps = mixed.metrics()
    assert sum(metrics["soup/refilled_mixed_prompts_total"] > 0 for metrics in steps.values()) >= 2
    assert all(metrics["soup/alignment_error_max"] < 1e-4 for metrics in steps.values())


@each(MIXED)
def test_a_step_trains_on_as_many_prompts_as_ever_none_of_them_all_right_or_all_wrong(run, name):
    for step, metrics in run(name).metrics().items():
        assert len(run(name).rows(step)) == 16
        assert metrics["soup/prompts_solved_by_all_share"] == metrics["soup/prompts_solved_by_none_share"] == 0


@pytest.mark.runs("neighbors/dapo_soup")
def test_ages_are_logged_as_they_are(run):
    for step, metrics in run("neighbors/dapo_soup").metrics().items():
        ages = {
            step - 1 - int(r["policy_version"]) for r in run("neighbors/dapo_soup").rows(step) if r["prefix_mask"].any()
        }
        assert (step == 1) == (not ages)
        if ages:
            assert (min(ages), max(ages)) == (metrics["soup/policy_age_min"], metrics["soup/policy_age_max"])
            assert min(ages) >= 1


@pytest.mark.runs("neighbors/dapo_soup", "dapo_soup_resumed")
def test_a_resumed_run_goes_on_with_the_prompts_and_the_prefixes_that_were_not_used(run):
    """Which prompts a step takes depends on arrival, in verl too; the first ones of step 4 do not."""
    whole, resumed = run("neighbors/dapo_soup"), run("dapo_soup_resumed")
    folder = whole.folder / "global_step_3" / "soup"
    waiting = read_prefixes(folder / "prefixes_by_ordinal.parquet")
    handed = json.loads((folder / "ordinals.json").read_text())["handed"]
    assert waiting and min(waiting) == handed
    assert sorted(resumed.metrics()) == [4, 5, 6]
    first = {tuple(p.token_ids) for groups in waiting.values() for p in groups[0].by_session.values()}
    for one in (whole, resumed):
        used = [
            tuple(row["responses"][: int(row["prefix_mask"].sum())].tolist())
            for row in one.rows(4)
            if row["prefix_mask"].any()
        ]
        assert used and set(used) <= first


@pytest.mark.runs("dapo_replay")
def test_responses_of_dropped_groups_are_stored_too(run):
    """Four to each prompt that step 1 took, less those that are empty without their end token."""
    first = run("dapo_replay").metrics()[1]
    refilled = first["soup/refilled_prompts_total"]
    assert refilled > 0
    assert 4 * (4 + refilled) - 4 <= first["soup/replay_responses_total"] <= 4 * (4 + refilled)
