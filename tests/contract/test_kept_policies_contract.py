"""Kept policies on verl's own FSDP engines: what the rollout engine is sent, and what scores, while one is held."""

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from verl.utils import tensordict_utils as tu

from soup_verl.acceptance.weights import STRATEGIES
from soup_verl.stack.actor_worker import unlearning_loss_of_micro_batch
from soup_verl.stack.images import ActorPrompt
from soup_verl.stack.policy_engine import _actor_fields
from tests.contract.verl_worker import worker_of, wrong_on

pytestmark = pytest.mark.contract
ROWS = [([5, 6, 7], [8, 9, 3, 4]), ([5, 6], [9, 2])]
ACTOR, ROLLOUT = "actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.rollout.dtype"
IN_FP32 = (f"{ROLLOUT}=float32", f"{ACTOR}.mixed_precision.param_dtype=fp32")
IN_BF16 = (f"{ROLLOUT}=bfloat16", f"{ACTOR}.mixed_precision.param_dtype=bf16")
MIXED = (f"{ROLLOUT}=bfloat16", f"{ACTOR}.mixed_precision.param_dtype=fp32")
LORA = (*IN_BF16, "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=64")
MERGED = (*LORA, "actor_rollout_ref.model.lora.merge=true")
OFFLOADED = f"{ACTOR}.param_offload=true"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_held_policy_is_sent_and_scores_as_verl_would_have_at_its_step(ranks, tmp_path, monkeypatch):
    assert wrong_on(ranks, _find, tmp_path, monkeypatch) == []


def _find(rank: int, ranks: int, folder: Path) -> list[str]:
    ways = [(strategy, how) for strategy in STRATEGIES for how in (IN_FP32, IN_BF16, MIXED, LORA, MERGED)]
    ways.append(("fsdp2", (*IN_BF16, OFFLOADED)))  # on a CPU verl cannot offload FSDP1's
    return [
        f"{line} ({strategy}, {how})"
        for strategy, how in ways
        for line in _wrong(worker_of(strategy, folder, *how), rounds_alone=how is MIXED, adapters=how in (LORA, MERGED))
    ]


def _wrong(worker, *, rounds_alone: bool, adapters: bool) -> list[str]:
    """Which of our expectations fail, none if all is well.

    Args:
        rounds_alone: the rollout engine rounds the weights, the actor's forward pass does not.
        adapters: they are trained and kept, alone and as they are; verl sends them alone or merged.
    """
    dtype = torch.float32 if adapters else getattr(torch, worker.config.rollout.dtype)
    alone = adapters and not worker.config.model.lora.merge
    _adam_step(worker)
    first, first_scores = _sent(worker), _scores(worker)
    worker.keep_policy(1)
    _adam_step(worker)
    second, second_scores = _sent(worker), _scores(worker)
    worker.keep_policy(2)
    stored = [shard for version in (1, 2) for _, shard in worker._kept.weights(version)]

    worker.hold_policy(1)
    sent, scores = _sent(worker), _scores(worker)
    worker.hold_policy(None)
    after, after_scores = _sent(worker), _scores(worker)
    apart = (scores - first_scores).abs().max().item()
    return [
        text
        for text, so in {
            "the policy moved next to nothing": (second_scores - first_scores).abs().max() > 0.01,
            "the rollout engine gets the same at the next step": not _equal(first, second, dtype),
            "the names differ": list(sent) == list(first) and all(("lora_" in name) is alone for name in sent),
            "what the rollout engine gets differs": _equal(sent, first, dtype),
            f"the scores differ by {apart}": 0 < apart < 0.01 if rounds_alone else apart == 0,
            "the actor's weights differ afterwards": _equal(after, second, torch.float32),
            "the actor's scores differ afterwards": torch.equal(after_scores, second_scores),
            "kept in another dtype": {shard.dtype for shard in stored} == {dtype},
            "kept elsewhere": {shard.device.type for shard in stored} == {"cpu"},
        }.items()
        if not so
    ]


def _equal(a, b, dtype) -> bool:
    """Bit for bit in a dtype, as a rollout engine in it copies what it gets."""
    return a.keys() == b.keys() and all(torch.equal(a[name].to(dtype), b[name].to(dtype)) for name in a)


def _sent(worker) -> dict[str, torch.Tensor]:
    """What verl's `update_weights` hands to the rollout engine."""
    found = {}

    async def take(weights, **_):
        found.update({name: weight.detach().clone() for name, weight in weights})

    async def resume(tags):
        return

    worker.rollout = SimpleNamespace(update_weights=take, resume=resume)
    worker.layered_summon, worker.peft_merge = False, bool(worker.config.model.lora.get("merge", False))
    worker.base_sync_done = True
    asyncio.run(worker.update_weights(global_steps=1, mode="naive"))
    worker.rollout = None
    return found


def _scores(worker) -> torch.Tensor:
    return worker.compute_log_prob(_batch())["log_probs"].values().clone()


def _batch():
    data = tu.list_of_dict_to_tensordict(
        [
            _actor_fields(ActorPrompt.of_text(prompt), response) | {"old_log_probs": torch.full((len(response),), -5.0)}
            for prompt, response in ROWS
        ]
    )
    tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=False, compute_loss=False)
    return data


def _adam_step(worker) -> None:
    training, loss_fn = worker.actor, worker.actor.loss_fn
    training.loss_fn = partial(unlearning_loss_of_micro_batch, clip=9.0)
    data = _batch()
    tu.assign_non_tensor(data, update_lr_scheduler=True, compute_loss=True)
    training.train_batch(data)
    training.loss_fn = loss_fn
