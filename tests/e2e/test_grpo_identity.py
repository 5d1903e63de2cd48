"""`mixed_fraction: 0` is GRPO, bit for bit: verl's own trainer, estimator and manager against ours.

Theirs has its processes to itself, ours comes second in a series: a run in a series is what it would be alone.

verl itself repeats a run bit for bit here once two things are fixed, and they are for both sides: the seed of every
request to vLLM (`soup.sampling_seed`) and the order of rows in a batch (the probe sorts them; verl takes them as they
arrive).
"""

import pytest
import torch
from safetensors.torch import load_file

STEPS = (1, 2, 3)
LOSSES = ("actor/pg_loss", "actor/entropy", "actor/pg_clipfrac", "actor/ppo_kl", "actor/grad_norm")

pytestmark = pytest.mark.runs("verl_grpo", "soup_without_mixing")


@pytest.fixture
def pair(run):
    verl, ours = run("verl_grpo"), run("soup_without_mixing")
    assert verl.code == 0, verl.output[-3000:]
    assert ours.code == 0, ours.output[-3000:]
    return verl, ours


def test_same_prompts_and_tokens(pair):
    for step in STEPS:
        for theirs, ours in zip(*(run.rows(step) for run in pair), strict=True):
            assert (theirs["index"], theirs["session"]) == (ours["index"], ours["session"])
            assert torch.equal(theirs["responses"], ours["responses"])


def test_same_advantages(pair):
    for step in STEPS:
        advantages = [torch.cat([row["advantages"] for row in run.rows(step)]) for run in pair]
        assert advantages[0].abs().max() > 0
        assert torch.equal(*advantages)


def test_same_losses(pair):
    for step in STEPS:
        theirs, ours = (run.record(step)["metrics"] for run in pair)
        for name in LOSSES:
            assert ours[name] == theirs[name], (step, name)


def test_same_parameters_and_they_moved(pair):
    theirs, ours = (run.weights(3) for run in pair)
    assert theirs.keys() == ours.keys()
    before = load_file(pair[0].folder.parents[1] / "assets" / "model" / "model.safetensors")
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name
        assert not torch.equal(theirs[name], before[name]), name


def test_nothing_extra_travels_with_a_sample(pair):
    for run in pair:
        assert "prefix_mask" not in run.rows(1)[0]


@pytest.mark.runs("all_trained")
def test_training_on_all_of_the_responses_is_the_run_without_down_sampling(run):
    ours, every = run("soup_without_mixing"), run("all_trained")
    assert every.code == 0, every.output[-3000:]
    for step in STEPS:
        assert every.metrics()[step]["soup/dropped_responses_total"] == 0
        for name in LOSSES:
            assert every.record(step)["metrics"][name] == ours.record(step)["metrics"][name], (step, name)
    one, other = ours.weights(3), every.weights(3)
    assert all(torch.equal(one[name], other[name]) for name in one)
