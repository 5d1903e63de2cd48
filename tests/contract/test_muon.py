"""The examples' Muon is torch's, but for the precision of its products."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "common"))
from muon import Muon

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_three_steps_are_those_of_torchs_muon_up_to_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = [Muon([ours], **options), torch.optim.Muon([theirs], **options)]
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # a wrong momentum or scale is off by a tenth or more
    assert moved > 0.1
