"""verl's own tool agent loop, a calculator and a model that was taught to call it, at learning rate 0: every policy is
the same one, so the trainer's log-prob of every token must be that under which it was sampled or recorded."""

import pytest
import torch

RUNS = ("tools_lookahead", "tools_replay")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.runs(name)) for name in RUNS])
def finished(request, run):
    made = run(request.param)
    assert made.code == 0, made.output[-3000:]
    return made


def own(row):
    return row["response_mask"].bool()


def turns(row):
    """The turns of a policy in a response."""
    mask = own(row).int()
    return int(mask[0]) + int((mask.diff() == 1).sum())


def test_tools_are_called_turn_by_turn(finished):
    rows = finished.rows(2) + finished.rows(3)
    assert sum(turns(row) > 1 for row in rows) > len(rows) / 2 and max(map(turns, rows)) > 2
    assert all(len(row["responses"]) <= 96 for row in rows)


def test_recorded_and_sampled_tokens_have_the_trainers_log_probs(finished):
    for step in (2, 3):
        for row in finished.rows(step):
            ours, trainers = row["rollout_log_probs"], row["recomputed_log_probs"]
            torch.testing.assert_close(ours[own(row)], trainers[own(row)], atol=1e-4, rtol=0)
            assert (ours[~own(row)] == 0).all()
        metrics = finished.metrics()[step]
        assert metrics["soup/alignment_error_max"] < 1e-4 and metrics["soup/prefix_kl_k3"] < 1e-6


def test_history_is_the_models_own_and_stands_at_the_head_of_its_tokens(finished):
    mixed = [row for step in (2, 3) for row in finished.rows(step) if row["prefix_mask"].any()]
    assert len(mixed) > 10
    for row in mixed:
        historical = row["prefix_mask"].bool()
        assert not (historical & ~own(row)).any()
        assert historical[own(row)].int().diff().max() <= 0  # once it has ended it does not come back


@pytest.mark.runs("tools_lookahead")
def test_a_prefix_of_the_first_turn_is_continued_in_the_loops_own_prompt(run):
    made = run("tools_lookahead")
    for row in made.rows(3):
        first = int((~own(row)).int().argmax()) or len(row["responses"])
        assert row["prefix_mask"].sum() <= min(first, 6) and not row["prefix_mask"][first:].any()
    assert made.metrics()[3]["soup/prefixes_cut_short_total"] == 0


@pytest.mark.runs("tools_replay")
def test_whole_turns_are_played_back_past_the_tools_answers(run):
    made = run("tools_replay")
    beyond = [
        row
        for row in made.rows(2) + made.rows(3)
        if (row["prefix_mask"].bool() & (own(row).logical_not().cumsum(0) > 0)).any()
    ]
    assert len(beyond) > 5, "history in a second turn"
    ages = {made.metrics()[3][f"soup/policy_age_{which}"] for which in ("min", "max")}
    assert ages <= {1.0, 2.0}
    assert made.metrics()[3]["soup/prefixes_cut_short_total"] == 0  # a calculator answers as it did
    assert made.metrics()[3]["soup/replay_responses_total"] > 16


@pytest.mark.runs("tools_replay", "tools_resumed")
def test_a_resumed_run_plays_back_the_same_turns(run):
    first, resumed = run("tools_replay"), run("tools_resumed")
    assert resumed.code == 0, resumed.output[-3000:]
    for a, b in zip(first.rows(3), resumed.rows(3), strict=True):
        assert torch.equal(a["prefix_mask"][: len(b["prefix_mask"])], b["prefix_mask"][: len(a["prefix_mask"])])
        historical = a["prefix_mask"].nonzero().flatten()
        for name in ("responses", "rollout_log_probs"):
            assert torch.equal(a[name][historical], b[name][historical])
