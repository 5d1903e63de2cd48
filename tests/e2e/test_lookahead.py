"""Look-ahead: same prompts, same order, same budget, through a SIGKILL, a torn checkpoint and a resume."""

import json

import pytest
import torch

from soup_verl.launch.finished import FINISHED
from soup_verl.records import sample_log

STEPS = (4, 5, 6)


def prompts(run, step):
    return sorted({int(row["index"]) for row in run.rows(step)})


@pytest.mark.runs("six_steps")
def test_every_prompt_is_trained_once_an_epoch(run):
    whole = run("six_steps")
    assert whole.code == 0, whole.output[-3000:]
    for epoch in ((1, 2, 3), (4, 5, 6)):
        seen = [index for step in epoch for index in prompts(whole, step)]
        assert sorted(seen) == list(range(24))


@pytest.mark.runs("six_steps")
def test_every_session_of_a_prompt_is_there_once(run):
    """tests/faults/load.py counts the same over many more of them."""
    for step in range(1, 7):
        samples = [(int(row["index"]), row["session"]) for row in run("six_steps").rows(step)]
        assert len(set(samples)) == len(samples) == 32


@pytest.mark.runs("six_steps")
def test_history_starts_at_step_age_plus_one_and_is_age_steps_old(run):
    whole = run("six_steps")
    for step in range(1, 7):
        mixed = [row for row in whole.rows(step) if row["prefix_mask"].any()]
        if step <= 2:
            assert mixed == []
        else:  # a prefix that met its end token at once leaves its response on-policy
            assert 12 <= len(mixed) <= 16
            assert {int(row["policy_version"]) for row in mixed} == {step - 1 - 2}
    assert "steps 1-2 have no history yet" in whole.output


@pytest.mark.runs("six_steps")
def test_old_log_probs_are_the_behaviour_log_probs_on_the_prefix_only(run):
    for row in run("six_steps").rows(6):
        prefix = row["prefix_mask"].bool()
        assert torch.equal(row["old_log_probs"][prefix], row["rollout_log_probs"][prefix])
        assert torch.equal(row["old_log_probs"][~prefix], row["recomputed_log_probs"][~prefix])


@pytest.mark.runs("six_steps")
def test_segment_metrics_are_plain_numbers_in_the_file_log(run):
    metrics = run("six_steps").metrics()
    assert sorted(metrics) == [1, 2, 3, 4, 5, 6]
    for name in (
        "prefix_tokens_share",
        "prefix_kl_k3",
        "prefix_clip_fraction",
        "policy_age_mean",
        "prefix_entropy_mean",
    ):
        assert isinstance(metrics[6][f"soup/{name}"], float), name
    assert metrics[6]["soup/policy_age_mean"] == 2
    assert metrics[6]["soup/alignment_error_max"] < 1e-4
    assert "soup/prefix_kl_k3" not in metrics[2]


@pytest.mark.runs("six_steps")
def test_the_runs_servers_are_on_the_loopback_interface(run):
    assert "LLMServerManager: ['127.0.0.1:" in run("six_steps").output


@pytest.mark.runs("six_steps")
def test_a_few_responses_are_logged_with_every_tokens_ratio(run):
    whole = run("six_steps")
    logged = sample_log.read(whole.folder)
    assert {step: len(records) for step, records in logged.items()} == {1: 5, 3: 5, 6: 5}
    of_row = {(int(row["index"]), row["session"]): row for row in whole.rows(6)}
    for record in logged[6]:
        row = of_row[record["index"], record["session"]]
        assert record["prefix_mask"] == row["prefix_mask"].tolist()
        expected = (row["recomputed_log_probs"] - row["rollout_log_probs"]).exp()
        torch.testing.assert_close(torch.tensor(record["ratio"]), expected, atol=1e-4, rtol=1e-4)
    assert {any(record["prefix_mask"]) for record in logged[6]} == {True, False}


@pytest.mark.runs("six_steps", "resumed")
def test_a_killed_and_resumed_run_trains_on_the_same_prompts_and_prefixes(run):
    whole, resumed = run("six_steps"), run("resumed")
    assert resumed.code == 0, resumed.output[-3000:]
    for step in STEPS:
        assert len(whole.rows(step)) == len(resumed.rows(step)) == 32
        for a, b in zip(whole.rows(step), resumed.rows(step), strict=True):
            assert (a["index"], a["session"]) == (b["index"], b["session"])
            assert torch.equal(a["prefix_mask"][:8], b["prefix_mask"][:8])
            assert torch.equal(a["policy_version"], b["policy_version"])
            assert torch.equal(a["responses"], b["responses"])


@pytest.mark.runs("six_steps", "resumed")
def test_two_runs_of_one_configuration_end_with_the_same_parameters_bit_for_bit(run):
    """In other processes, one of them killed and resumed.

    Tokens repeat because of soup.sampling_seed, and behaviour log-probs because they are the actor's.
    """
    whole, resumed = run("six_steps").weights(6), run("resumed").weights(6)
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.runs("resumed")
def test_a_torn_checkpoint_is_refused_with_its_path_and_the_previous_one_used(run):
    resumed = run("resumed")
    torn = resumed.folder / "global_step_4" / "actor" / "model_world_size_1_rank_0.pt"
    assert f"checkpoint refused: {torn}" in resumed.output
    assert not (resumed.folder / "steps" / "step_3.pt").exists()
    assert (resumed.folder / "steps" / "step_4.pt").exists()


@pytest.mark.runs("six_steps", "resumed", "partial_rollout")
def test_a_run_that_came_to_its_end_says_so_alone_and_in_a_series_on_every_trainer(run):
    for name in ("six_steps", "resumed", "partial_rollout"):
        said = json.loads((run(name).folder / FINISHED).read_text())
        assert said == {"steps": 6, "asked": {"steps": 6, "epochs": 100}}, name


@pytest.mark.runs("resumed")
def test_metrics_survive_the_kill(run):
    assert sorted(run("resumed").metrics()) == [1, 2, 3, 4, 5, 6]
