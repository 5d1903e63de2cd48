"""Dynamic sampling with mixing: four prompts a step have a signal, and those in place of others their prefixes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from soup_verl.method.history.ordinals import PREFIX_FILE, STATE_FILE
from soup_verl.method.history.store import read_prefixes

MIXED = ("neighbors/dapo_soup", "dapo_replay")
NOT_TRAINED = ("evicted_samples", "discarded_surplus_samples")
"""How verl counts the groups that a step samples and does not train on: without a signal, and beyond the batch."""


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
    """A step whose prompts nobody foresaw, because others took many, has none."""
    for step, metrics in run("neighbors/dapo_soup").metrics().items():
        ages = {
            step - 1 - int(r["policy_version"]) for r in run("neighbors/dapo_soup").rows(step) if r["prefix_mask"].any()
        }
        assert step > 1 or not ages
        if ages:
            assert (min(ages), max(ages)) == (metrics["soup/policy_age_min"], metrics["soup/policy_age_max"])
            assert min(ages) >= 1


@pytest.mark.runs("neighbors/dapo_soup")
def test_the_resumed_run_has_every_step(run):
    whole = run("neighbors/dapo_soup")
    assert list(whole.metrics()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.runs("neighbors/dapo_soup")
def test_every_prompt_is_taken_once_an_epoch_and_trained_or_counted(run):
    """Over the kill too; the reward's data have eight prompts."""
    whole, taken = run("neighbors/dapo_soup"), []
    for step, metrics in whole.metrics().items():
        ordinals, indices, _ = zip(*whole.record(step)["taken"], strict=True)
        dropped = [metrics.get(f"training/filter_groups/{why}", 0) for why in NOT_TRAINED]
        assert len(ordinals) == len(whole.rows(step)) / 4 + sum(dropped)
        assert {row["index"] for row in whole.rows(step)} <= set(indices)
        taken += zip(ordinals, indices, strict=True)
    assert [ordinal for ordinal, _ in taken] == list(range(len(taken))) and len(taken) > 24
    for epoch in range(len(taken) // 8):
        assert sorted(int(index) for _, index in taken[8 * epoch : 8 * epoch + 8]) == list(range(8))


def said(group):
    """What the history says of a prompt: by session the policy, its tokens and their log-probs."""
    return group and {
        session: (prefix.policy_version, prefix.token_ids, np.float32(prefix.log_probs).tolist())
        for session, prefix in group.by_session.items()
    }


def waiting_at(run, step):
    """By ordinal, what the history of a checkpoint says of prompts to come."""
    groups = read_prefixes(run.folder / f"global_step_{step}" / "soup" / PREFIX_FILE)
    return {ordinal: said(group) for ordinal, (group,) in groups.items()}


def taken_with(*records):
    """By ordinal, the prefixes that prompts were submitted with."""
    return {ordinal: said(group) for record in records for ordinal, _, group in record["taken"]}


@pytest.mark.runs("neighbors/dapo_soup")
def test_the_history_says_the_same_before_the_kill_and_after_the_resume_and_no_unused_prefix_is_lost(run):
    """How many prompts a step takes depends on arrival, in verl too: step 4 of both has at least four."""
    whole = run("neighbors/dapo_soup")
    waiting, left = waiting_at(whole, 3), waiting_at(whole, 6)
    first = json.loads((whole.folder / "global_step_3" / "soup" / STATE_FILE).read_text())["handed"]
    assert min(waiting) == first and any(waiting.values())
    before = taken_with(replace(whole, folder=whole.folder / "before_kill", steps={}).record(4))
    after = taken_with(*(whole.record(step) for step in (4, 5, 6)))
    assert min(before) == min(after) == first
    assert all(before[ordinal] == waiting[ordinal] for ordinal in before.keys() & waiting.keys())
    assert {ordinal: (after | left)[ordinal] for ordinal in waiting} == waiting


@pytest.mark.runs("neighbors/dapo_soup")
def test_tokens_recorded_as_current_have_the_trainers_log_probs_and_the_prefixes_have_not(run):
    rows = [row for step in (2, 3, 4, 5, 6) for row in run("neighbors/dapo_soup").rows(step)]
    prefix = torch.cat([row["prefix_mask"].bool() for row in rows])
    error = torch.cat([(row["rollout_log_probs"] - row["recomputed_log_probs"]).abs() for row in rows])
    assert error[~prefix].max() < 1e-4 and error[prefix].max() > 1e-3


@pytest.mark.runs("dapo_replay")
def test_responses_of_dropped_groups_are_stored_too(run):
    """Four to each prompt that step 1 took, less those that are empty without their end token."""
    first = run("dapo_replay").metrics()[1]
    refilled = first["soup/refilled_prompts_total"]
    assert refilled > 0
    assert 4 * (4 + refilled) - 4 <= first["soup/replay_responses_total"] <= 4 * (4 + refilled)
