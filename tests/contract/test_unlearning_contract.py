"""`SoupActorWorker.unlearn` on verl's own FSDP engines: the step is the formula's, and nothing else changes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import Qwen2ForCausalLM
from verl.utils import tensordict_utils as tu

from soup_verl.acceptance.weights import STRATEGIES
from soup_verl.method import core_algos
from soup_verl.method.sections import ForgetConfig
from soup_verl.stack.actor_worker import FORGET, unlearning_loss_of_micro_batch
from soup_verl.stack.images import ActorPrompt
from soup_verl.stack.policy_engine import CURRENT, _actor_fields
from tests.contract.verl_worker import exported, worker_of, wrong_on

pytestmark = [pytest.mark.contract, pytest.mark.e2e]  # workers that start verl
SETTINGS = ForgetConfig(lr=0.05, steps=3, clip=0.01)  # so that the clip binds from the second step on
TEMPERATURE = 0.7
ROWS = [([5, 6, 7], [8, 9, 3, 4]), ([5, 6], [9, 2]), ([7], [3, 3, 3]), ([9, 8, 7, 6], [1])]
"""Prompts and responses; the last is padding."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_copy_is_the_formulas_and_policy_optimizer_and_schedule_stay(ranks, tmp_path, monkeypatch):
    assert wrong_on(ranks, _find, tmp_path, monkeypatch) == []


def _find(rank: int, ranks: int, folder: Path) -> list[str]:
    rows = slice(rank * len(ROWS) // ranks, (rank + 1) * len(ROWS) // ranks)
    found = []
    for strategy in STRATEGIES:
        worker = worker_of(strategy, folder)
        worker.actor.engine.module.register_forward_pre_hook(_draw)
        found += [f"{line} ({strategy})" for line in _wrong(worker, folder, rows)]
    return found


def _draw(*_) -> None:
    """A random number, as dropout draws them."""
    torch.rand(1)


def _wrong(worker, folder: Path, own_rows: slice) -> list[str]:
    """Which of our expectations fail, none if all is well."""
    training, engine = worker.actor, worker.actor.engine
    plain = Qwen2ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        old = [_log_probs(plain, *row) for row in ROWS]
    _adam_step(worker, _batch(old, own_rows))  # so that optimizer and schedule have something to lose
    first, loss_fn, optimizer, step = exported(engine), training.loss_fn, engine.optimizer, engine.optimizer_step
    plain.load_state_dict(first)
    with torch.no_grad():
        old = [_log_probs(plain, *row) for row in ROWS]
    before = _state(engine)

    worker.save_model_to_cpu(CURRENT)
    output = worker.unlearn(_batch(old, own_rows))
    copy, norms = exported(engine), tu.get(output, "metrics")["grad_norms"]
    worker.restore_model_from_cpu(CURRENT)

    expected, expected_norms = _by_the_formula(plain, old)
    after = _state(engine)
    return [
        text
        for text, so in {
            f"norms {norms}, expected {expected_norms}": torch.allclose(torch.tensor(norms), expected_norms, rtol=1e-4),
            "the copy is not the formula's": all(
                torch.allclose(copy[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected
            ),
            "the copy moved next to nothing": max((copy[n] - first[n]).abs().max() for n in first) > 1e-3,
            "the policy's weights differ": all(torch.equal(exported(engine)[n], w) for n, w in first.items()),
            "the optimizer's state differs": before.keys() == after.keys()
            and all(torch.equal(before[name], after[name]) for name in before),
            "a function was not put back": (training.loss_fn, engine.optimizer, engine.optimizer_step)
            == (loss_fn, optimizer, step),
            "gradients were left behind": all(p.grad is None for p in engine.module.parameters()),
            "an update was counted": worker.take_skipped_updates() == 0 and worker.take_step_sizes() == [],
        }.items()
        if not so
    ]


def _batch(old, rows: slice):
    """This rank's rows as the driver sends them; the last of all is padding."""
    fields = []
    for (prompt, response), log_probs in list(zip(ROWS, old, strict=True))[rows]:
        row = _actor_fields(ActorPrompt.of_text(prompt), response) | {"old_log_probs": log_probs}
        if (prompt, response) == ROWS[-1]:
            row["response_mask"] = row["loss_mask"] = torch.zeros_like(row["loss_mask"])
        fields.append(row)
    data = tu.list_of_dict_to_tensordict(fields)
    tu.assign_non_tensor(data, temperature=TEMPERATURE, calculate_entropy=False, **{FORGET: SETTINGS})
    return data


def _adam_step(worker, data) -> None:
    training, loss_fn = worker.actor, worker.actor.loss_fn
    training.loss_fn = partial(unlearning_loss_of_micro_batch, clip=0.3)
    tu.assign_non_tensor(data, update_lr_scheduler=True)
    training.train_batch(data)
    training.loss_fn = loss_fn


def _log_probs(model, prompt, response) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def _by_the_formula(plain, old) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights after the steps on one process without padding, and the gradients' norms."""
    norms = []
    for _ in range(SETTINGS.steps):
        losses = [
            core_algos.unlearning_loss(_log_probs(plain, *row), log_probs, clip=SETTINGS.clip)
            for row, log_probs in list(zip(ROWS, old, strict=True))[:-1]
        ]
        torch.cat(losses).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0))
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= SETTINGS.lr * parameter.grad
                parameter.grad = None
    return {name: weight.detach() for name, weight in plain.state_dict().items()}, torch.stack(norms)


def _state(engine) -> dict[str, torch.Tensor]:
    """Of optimizer, schedule and random numbers."""
    found = {"random": torch.get_rng_state()}
    for i, state in engine.optimizer.state_dict()["state"].items():
        found |= {f"{i}.{k}": (v.to_local() if isinstance(v, DTensor) else v).clone() for k, v in state.items()}
    assert len(found) > 3, "the optimizer has no state: the comparison says nothing"
    rates = [group["lr"] for group in engine.optimizer.param_groups] + engine.lr_scheduler.get_last_lr()
    return found | {"rates": torch.tensor([*rates, engine.lr_scheduler.last_epoch], dtype=torch.float64)}
