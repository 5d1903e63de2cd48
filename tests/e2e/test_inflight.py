"""Responses that weight updates interrupt, on verl's asynchronous trainer; one run was killed and resumed."""

from collections import Counter, defaultdict

import pytest
import torch

STEPS = (3, 4, 5, 6)
"""After the resume; before it were 1 to 4."""


@pytest.fixture
def finished(run):
    whole = run("partial_rollout")
    assert whole.code == 0, whole.output[-3000:]
    return whole


def all_rows(finished):
    """By step; what the killed run had made of later steps than 2 was made again."""
    return {step: finished.rows(step) for step in (1, 2, *STEPS)}


@pytest.mark.runs("partial_rollout")
def test_prompts_whose_responses_were_whole_at_the_checkpoint_come_back_as_they_were(finished):
    """Step 3 was made twice. A prompt none of whose responses has a token of its policy was done when step 2 was saved;
    the others verl asks again, with all their responses."""
    before, again = by_prompt(finished.rows("3_before")), by_prompt(finished.rows(3))
    done = [uid for uid, of_prompt in before.items() if all(historical(row, 3).all() for row in of_prompt)]
    assert len(done) > 0 and set(done) <= again.keys()
    for row, restored in (
        (row, restored) for uid in done for row, restored in zip(before[uid], again[uid], strict=True)
    ):
        for name in ("index", "session", "responses", "token_versions", "rollout_log_probs"):
            assert torch.equal(torch.as_tensor(row[name]), torch.as_tensor(restored[name])), name


def by_prompt(rows):
    groups = defaultdict(list)
    for row in rows:  # sorted by session
        groups[row["uid"]].append(row)
    return groups


def historical(row, step):
    return row["token_versions"] < step - 1


@pytest.mark.runs("partial_rollout")
def test_the_resumed_run_has_every_step(finished):
    assert list(finished.metrics()) == [1, 2, 3, 4, 5, 6]
    again = finished.output.partition("soup: restart 1 of 1")[2]
    assert "in-flight prompts for step 3" in again or "prompt groups from TransferQueue" in again


@pytest.mark.runs("partial_rollout")
def test_every_session_of_a_prompt_is_there_once_and_no_prompt_more_often_than_it_was_read(finished):
    sessions = Counter()
    for rows in all_rows(finished).values():
        assert len(rows) == 32
        sessions.update((int(row["index"]), row["session"]) for row in rows)
    for index in {index for index, _ in sessions}:
        (times,) = {sessions[index, session] for session in range(4)}
        assert 1 <= times <= 3  # 56 of 24 prompts were read


@pytest.mark.runs("partial_rollout")
def test_tokens_recorded_as_current_have_the_trainers_log_probs_and_older_ones_have_not(finished):
    """The proof that versions, and the places where they change, are right; before the kill and after it."""
    older, rows = [], [*all_rows(finished).values(), finished.rows("3_before")]
    assert any(len(row["token_versions"].unique()) > 1 for of_step in rows for row in of_step)
    for step in STEPS:
        for row in finished.rows(step):
            assert len(row["token_versions"]) == len(row["responses"])
            old, error = historical(row, step), (row["rollout_log_probs"] - row["recomputed_log_probs"]).abs()
            assert error[~old].numel() == 0 or error[~old].max() < 1e-4
            older.append(error[old])
    assert torch.cat(older).max() > 1e-3
    aligned = [m["soup/alignment_error_max"] for m in finished.metrics().values() if "soup/alignment_error_max" in m]
    assert len(aligned) >= 1 and max(aligned) < 1e-4  # a step may have no token of the current policy


@pytest.mark.runs("partial_rollout")
def test_versions_only_rise_within_a_response_and_are_no_newer_than_the_policy(finished):
    """How many responses have several depends on the machine."""
    for step, rows in all_rows(finished).items():
        for row in rows:
            assert (row["token_versions"].diff() >= 0).all() and 0 <= int(row["token_versions"].max()) <= step - 1


@pytest.mark.runs("partial_rollout")
def test_older_tokens_are_anchored_at_the_policy_that_sampled_them(finished):
    for step in STEPS:
        for row in finished.rows(step):
            old = historical(row, step)
            assert row["prefix_mask"].bool().tolist() == old.tolist()
            assert torch.equal(row["old_log_probs"][old], row["rollout_log_probs"][old])
            assert torch.equal(row["old_log_probs"][~old], row["recomputed_log_probs"][~old])


@pytest.mark.runs("partial_rollout")
def test_metrics_by_segment_and_age(finished):
    metrics = [finished.metrics()[step] for step in STEPS]
    for step, m in zip(STEPS, metrics, strict=True):
        old = [historical(row, step) for row in finished.rows(step)]
        for key in ("soup/stale_clip_fraction", "soup/stale_kl_k3"):  # of responses that no update found under way
            assert (key in m) == any(of_row.all() for of_row in old)
        assert any(key.startswith("soup/prefix_kl_k3_age_") for key in m) == any(of_row.any() for of_row in old)
        segments = ("prefix", "continuation", "onpolicy", "stale")
        assert sum(m[f"soup/{s}_tokens_total"] for s in segments) == m["soup/decode_tokens_total"]
        assert m.get("soup/noise_floor_kl_k3", 0.0) < 1e-6


@pytest.mark.runs("two_pools")
def test_on_two_pools_versions_and_anchors_are_right_in_the_last_of_the_updates_between_two_syncs(run):
    """The actor is an update ahead of the engine there: the anchor is what the engine has."""
    two = run("two_pools")
    assert two.code == 0, two.output[-3000:]
    metrics = two.metrics()
    assert list(metrics) == [1, 2, 3, 4]
    for step, of_step in metrics.items():
        segments = ("prefix", "continuation", "onpolicy", "stale")
        assert sum(of_step[f"soup/{s}_tokens_total"] for s in segments) == of_step["soup/decode_tokens_total"]
        assert of_step.get("soup/alignment_error_max", 0.0) < 1e-4
        rows = two.rows(step)
        assert len(rows) == 16
        for row in rows:
            old, error = historical(row, step), (row["rollout_log_probs"] - row["recomputed_log_probs"]).abs()
            assert (row["token_versions"].diff() >= 0).all() and 0 <= int(row["token_versions"].max()) <= step - 1
            assert error[~old].numel() == 0 or error[~old].max() < 1e-4
            assert row["prefix_mask"].bool().tolist() == old.tolist()
            assert torch.equal(row["old_log_probs"][old], row["rollout_log_probs"][old])
            assert torch.equal(row["old_log_probs"][~old], row["recomputed_log_probs"][~old])
    assert not historical(two.rows(1)[0], 1).any()
    older = [m["soup/prefix_tokens_total"] + m["soup/stale_tokens_total"] for m in metrics.values()]
    assert older[0] == 0 and sum(older) > 0


LOSSES = ("actor/pg_loss", "actor/entropy", "actor/pg_clipfrac", "actor/grad_norm")


@pytest.mark.runs("verl_async", "async_without_mixing")
def test_without_mixing_the_asynchronous_trainer_is_verls_own_bit_for_bit(run):
    verl, ours = run("verl_async"), run("async_without_mixing")
    for each in (verl, ours):
        assert each.code == 0, each.output[-3000:]
    for step in (1, 2, 3):
        for a, b in zip(verl.rows(step), ours.rows(step), strict=True):
            assert (a["index"], a["session"]) == (b["index"], b["session"])
            assert torch.equal(a["responses"], b["responses"]) and torch.equal(a["advantages"], b["advantages"])
        for name in LOSSES:
            assert verl.record(step)["metrics"][name] == ours.record(step)["metrics"][name], (step, name)
    theirs, mine = verl.weights(3), ours.weights(3)
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    assert "token_versions" not in ours.rows(1)[0]
