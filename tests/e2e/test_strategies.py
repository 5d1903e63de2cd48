"""FSDP1 and FSDP2 on two ranks train to the same parameters, whoever scores the prefixes: a policy that was held for
that leaves nothing behind."""

import pytest
import torch
from safetensors.torch import load_file

TOLERANCE = 0.01
"""Distance of two runs' parameters, as a share of how far they went. The engine's log-probs differ in their last bits
with the requests that happen to share a batch, and Adam's first steps have the size of the learning rate however small
the gradient is, so that rounding shows in parameters whose gradient is next to nothing. With another policy's embedding
the share is above a half."""


def distance(a, b):
    initial = load_file(a.folder.parents[1] / "assets" / "model" / "model.safetensors")
    one, other = a.weights(4), b.weights(4)
    assert one.keys() == other.keys()
    went, apart = (
        torch.cat([(one[name] - from_[name]).flatten().double() for name in one]).norm().item()
        for from_ in (initial, other)
    )
    return apart / went


def compare(run, *names):
    first, *others = runs = [run(name) for name in names]
    for each in runs:
        assert each.code == 0, each.output[-3000:]
        mixed = [row for step in (3, 4) for row in each.rows(step) if row["prefix_mask"].any()]
        assert len(mixed) > 20
    for other in others:
        for step in range(1, 5):
            pairs = zip(first.rows(step), other.rows(step), strict=True)
            assert all(torch.equal(a["responses"], b["responses"]) for a, b in pairs)
        assert distance(first, other) < TOLERANCE


@pytest.mark.runs("fsdp_fp32_rollout", "fsdp_fp32_actor")
def test_with_fsdp1_the_scorer_does_not_matter_in_fp32(run):
    compare(run, "fsdp_fp32_rollout", "fsdp_fp32_actor")


@pytest.mark.runs("fsdp_fp32_rollout", "fsdp_fp32_actor", "fsdp2_fp32_rollout", "fsdp2_fp32_actor")
def test_in_fp32_all_four_agree(run):
    compare(run, "fsdp_fp32_rollout", "fsdp_fp32_actor", "fsdp2_fp32_rollout", "fsdp2_fp32_actor")


@pytest.mark.runs("fsdp_bf16_rollout", "fsdp_bf16_actor", "fsdp2_bf16_rollout", "fsdp2_bf16_actor")
@pytest.mark.parametrize("scorer", ["rollout", "actor"])
def test_in_bf16_the_strategy_does_not_matter(run, scorer):
    """Engine and actor differ by bfloat16's rounding, so the scorers are not compared."""
    compare(run, f"fsdp_bf16_{scorer}", f"fsdp2_bf16_{scorer}")
