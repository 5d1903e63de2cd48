"""Behaviour log-probs are those of the very tokens in the response: on the prefix, after it and across the join."""

import math

import pytest
import torch

# Learning rate 0, temperature 1.0, FSDP2; 1e-8, temperature 0.7, FSDP on two ranks, packed with shared prompts; and 0,
# temperature 1.0, FSDP, top_p 0.8 with the engine's log-probs raw.
RUNS = ("frozen_warm", "two_ranks", "truncated_raw")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.runs(name)) for name in RUNS])
def rows(request, run):
    finished = run(request.param)
    assert finished.code == 0, finished.output[-3000:]
    return finished.rows(2) + finished.rows(3)


def mixed(rows):
    found = [row for row in rows if row["prefix_mask"].any()]
    assert len(found) > 10
    return found


def test_prefix_and_continuation_agree_with_the_trainer(rows):
    for row in rows:
        torch.testing.assert_close(row["rollout_log_probs"], row["recomputed_log_probs"], atol=1e-4, rtol=0)


def test_tokens_around_the_join_agree(rows):
    for row in mixed(rows):
        join = int(row["prefix_mask"].sum())
        around = slice(max(0, join - 1), join + 1)
        torch.testing.assert_close(
            row["rollout_log_probs"][around], row["recomputed_log_probs"][around], atol=1e-4, rtol=0
        )


def test_a_shift_by_one_token_would_be_seen(rows):
    """A response that repeats a token it is sure of may look the same; hardly any does."""
    apart = [(row["rollout_log_probs"].roll(1) - row["recomputed_log_probs"]).abs().max() for row in mixed(rows)]
    assert torch.stack(apart).median() > 1e-2


def test_a_mixed_response_starts_with_prefix_tokens_and_then_has_none(rows):
    for row in mixed(rows):
        length = int(row["prefix_mask"].sum())
        assert row["prefix_mask"][:length].all() and not row["prefix_mask"][length:].any()
        assert 1 <= length <= 8


def test_every_field_has_the_length_of_the_response(rows):
    for row in rows:
        names = ("response_mask", "prefix_mask", "rollout_log_probs", "old_log_probs", "advantages")
        assert {len(row[name]) for name in names} == {len(row["responses"])}
        assert len(row["responses"]) <= 16


def test_a_response_without_an_end_token_counts_to_its_last_token(rows):
    end = {int(row["responses"][-1]) for row in rows if len(row["responses"]) < 16}
    assert len(end) <= 1  # nothing but the end token makes a response shorter than the budget
    cut = [row for row in rows if len(row["responses"]) == 16 and int(row["responses"][-1]) not in end]
    assert cut
    for row in cut:
        assert (row["response_mask"].bool() | row["prefix_mask"].bool()).all()  # `masked` takes prefixes out
        assert row["advantages"].isfinite().all()


@pytest.mark.runs("truncated_actor")
def test_with_truncated_sampling_the_actors_log_probs_are_of_the_full_softmax_and_the_engines_are_not(run):
    finished = run("truncated_actor")
    assert finished.code == 0, finished.output[-3000:]
    left_out = []
    for row in mixed(finished.rows(2) + finished.rows(3)):
        prefix = row["prefix_mask"].bool()
        engine, actor = row["rollout_log_probs"], row["recomputed_log_probs"]
        torch.testing.assert_close(engine[prefix], actor[prefix], atol=1e-4, rtol=0)  # rescored by the actor
        left_out.append((engine - actor)[~prefix])  # minus the log of the mass that the engine samples from
    apart = torch.cat(left_out)
    assert apart.min() > -1e-4
    assert apart.max() > 0.05 - math.log(0.8), "top_k never cuts: top_p alone keeps .8 or more"
    kept_mass = [step["soup/alignment_error_mean"] for step in finished.metrics().values()]
    assert min(kept_mass) > 1e-2  # on continuations the engine leaves out what it never samples
