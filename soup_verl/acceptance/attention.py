"""flash-attn on packed sequences, as verl trains, against sdpa on one sequence at a time: log-probs of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from soup_verl.acceptance.installed import version
from soup_verl.acceptance.models import small_qwen2
from soup_verl.acceptance.outcome import Skip

LENGTHS = (5, 64, 129, 300)
"""Of the sequences: shorter than a kernel's block, one block, just above two, several."""
FURTHER = 2.0
"""How many times further from float32 than sdpa in bfloat16 the mean error may be. Both round to the same 8 bits."""


def check(device: torch.device) -> str:
    if device.type != "cuda":
        raise Skip("flash-attn needs a GPU")
    if version("flash-attn") is None:
        raise Skip("flash-attn is not installed")
    return compare(device, "flash_attention_2")


def compare(device: torch.device, attention: str) -> str:
    """Mean absolute errors against sdpa in float32, in nats a token.

    Raises:
        AssertionError: `attention` is too far off.
    """
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(512, (length,), generator=generator).to(device) for length in LENGTHS]
    exact = _one_by_one(_model("sdpa").to(device), sequences)
    sdpa = _one_by_one(_model("sdpa").to(device, torch.bfloat16), sequences)
    packed = _packed(_model(attention).to(device, torch.bfloat16), sequences)
    error, allowed = (packed - exact).abs().mean().item(), FURTHER * (sdpa - exact).abs().mean().item()
    told = f"{attention} packed {error:.4f} nats a token from float32, sdpa alone {allowed / FURTHER:.4f}"
    assert error <= allowed, f"{told}: expected at most {FURTHER} times that"
    return told


def _model(attention: str) -> torch.nn.Module:
    model = small_qwen2(attention=attention)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that a wrong log-prob shows
    return model.eval()


@torch.no_grad()
def _one_by_one(model: torch.nn.Module, sequences: list[Tensor]) -> Tensor:
    return torch.cat([_scores(model(ids[None], use_cache=False).logits[0], ids) for ids in sequences])


@torch.no_grad()
def _packed(model: torch.nn.Module, sequences: list[Tensor]) -> Tensor:
    """The positions alone say where a sequence begins, as in verl with `use_remove_padding`."""
    positions = torch.cat([torch.arange(len(ids), device=ids.device) for ids in sequences])
    logits = model(torch.cat(sequences)[None], position_ids=positions[None], use_cache=False).logits[0]
    parts = logits.split([len(ids) for ids in sequences])
    return torch.cat([_scores(part, ids) for part, ids in zip(parts, sequences, strict=True)])


def _scores(logits: Tensor, ids: Tensor) -> Tensor:
    return logits[:-1].float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
