"""SOUP's objective on a mixed batch: loss and gradient in bfloat16 on a device against float32 on the CPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from soup_verl.acceptance.models import small_qwen2
from soup_verl.method import core_algos, metrics

ROWS, PROMPT, RESPONSE, PREFIX = 16, 8, 56, 20
"""Responses, in groups of 4 of which every second one is mixed, and lengths in tokens."""
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}
TOLERANCE = {"loss": 0.002, "gradient cosine": 0.004, "gradient norm": 0.01, "prefix ratio": 0.002}
"""The loss (advantages have size 1), 1 less the cosine of the gradients' angle, and relative errors of norm and mean.
Ten times what bfloat16 on a CPU is off by (the norm more), so that another order of summation has room. With GRPO's
`old_log_probs` on prefix tokens the errors are .004, .010, .001 and .014."""


@dataclass(frozen=True)
class MixedBatch:
    """Token ids (rows, PROMPT + RESPONSE); the others (rows, RESPONSE), on the CPU.

    Args:
        old_log_probs: of the historical policy on prefix tokens, of the policy at the start of the step elsewhere.
    """

    ids: Tensor
    prefix_mask: Tensor
    old_log_probs: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class Update:
    """Args:
    loss: token mean.
    gradient: of all parameters, flat, float64 on the CPU.
    prefix_ratio: mean of r_i over prefix tokens.
    """

    loss: float
    gradient: Tensor
    prefix_ratio: float


def check(device: torch.device) -> str:
    model = _policy()
    batch = mixed_batch(model)
    exact = update(model, batch, torch.device("cpu"), torch.float32)
    errors = compare(update(model, batch, device, torch.bfloat16), exact)
    told = ", ".join(f"{name} off by {error:.4f}" for name, error in errors.items())
    assert all(errors[name] <= TOLERANCE[name] for name in TOLERANCE), f"{told}; expected at most {TOLERANCE}"
    return told


def compare(got: Update, exact: Update) -> dict[str, float]:
    """Errors by the names in TOLERANCE."""
    norms = got.gradient.norm().item(), exact.gradient.norm().item()
    return {
        "loss": abs(got.loss - exact.loss),
        "gradient cosine": 1 - (got.gradient @ exact.gradient).item() / (norms[0] * norms[1]),
        "gradient norm": abs(norms[0] / norms[1] - 1),
        "prefix ratio": abs(got.prefix_ratio / exact.prefix_ratio - 1),
    }


def mixed_batch(model: Qwen2ForCausalLM) -> MixedBatch:
    """A batch on which the policy has moved away from the start of its step, and further from the historical one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (ROWS, PROMPT + RESPONSE), generator=generator)
    rewards = torch.rand(ROWS, generator=generator).round()
    prefix_mask = (torch.arange(ROWS) % 2 == 0)[:, None] & (torch.arange(RESPONSE) < PREFIX)
    with torch.no_grad():
        start, historical = (response_log_probs(_moved(model, by), ids) for by in (0.02, 0.05))
    advantages = core_algos.group_relative_advantage(rewards, [row // 4 for row in range(ROWS)])
    return MixedBatch(
        ids=ids,
        prefix_mask=prefix_mask,
        old_log_probs=core_algos.join_log_probs(
            prefix_mask=prefix_mask, prefix_log_probs=historical, other_log_probs=start
        ),
        advantages=advantages[:, None].expand(ROWS, RESPONSE),
    )


def update(model: Qwen2ForCausalLM, batch: MixedBatch, device: torch.device, dtype: torch.dtype) -> Update:
    """What the optimizer would get; the model stays as it is."""
    policy = copy.deepcopy(model).to(device, dtype)
    old, advantages, prefix = (t.to(device) for t in (batch.old_log_probs, batch.advantages, batch.prefix_mask))
    log_probs = response_log_probs(policy, batch.ids.to(device))
    loss = core_algos.clipped_loss(log_probs, old, advantages, **CLIP).mean()
    loss.backward()
    sums = metrics.update_sums(
        log_probs=log_probs.detach(),
        old_log_probs=old,
        advantages=advantages,
        response_mask=torch.ones_like(prefix),
        prefix_mask=prefix,
        stale_apart=False,
        **CLIP,
    )
    gradient = torch.cat([p.grad.double().flatten().cpu() for p in policy.parameters() if p.grad is not None])
    return Update(loss.item(), gradient, sums["prefix_ratio"] / sums["prefix_tokens"])


def response_log_probs(model: Qwen2ForCausalLM, ids: Tensor) -> Tensor:
    """(rows, RESPONSE), in float32."""
    logits = model(ids, use_cache=False).logits[:, PROMPT - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]


def _policy() -> Qwen2ForCausalLM:
    model = small_qwen2()
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # not uniform
    return model


def _moved(model: Qwen2ForCausalLM, by: float) -> Qwen2ForCausalLM:
    """Every weight matrix moved at random by this share of its size."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(int(1000 * by))
    with torch.no_grad():
        for weight in (p for p in other.parameters() if p.dim() > 1):
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=by * weight.std().item())
    return other
