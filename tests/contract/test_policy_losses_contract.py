"""Losses of ours as verl's actor runs them: registered, aggregated by verl, and neutral where they should be."""

import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig

from soup_verl.method.policy_losses import ClipRange, LossTokens, loss_of_tokens
from soup_verl.method.sections import POLICY_LOSSES, PolicyLossConfig
from soup_verl.method.step import InLoss
from soup_verl.stack.actor_worker import IN_LOSS, MEASURED_PREFIX, SegmentLoss
from soup_verl.stack.register import losing_with

pytestmark = pytest.mark.contract
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


def actor(**changes):
    values = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}
    return FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=False, **values | changes
    )


def random_batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(16, 10, generator=generator, dtype=dtype) for _ in range(3))
    return new, old, advantages, torch.arange(10) < torch.randint(1, 11, (16, 1), generator=generator)


def both(mode, batch, loss_of, weights=None):
    """(loss, gradient) by verl's own loss and by ours in verl's registry."""
    new, old, advantages, mask = batch
    results = []
    with losing_with(loss_of):
        for function in (compute_policy_loss_vanilla, get_policy_loss_fn("soup")):
            variable = new.clone().requires_grad_()
            loss, _ = function(old, variable, advantages, mask, mode, actor(), weights)
            results.append((loss, torch.autograd.grad(loss, variable)[0]))
    return results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["exo", "exo_centred"])
@pytest.mark.parametrize("weighted", [False, True])
def test_exo_without_decay_is_verls_clip_with_its_dual_clip_bit_for_bit(mode, name, weighted):
    batch = random_batch()
    _, old, advantages, mask = batch

    def loss_of(log_probs, old_log_probs, advantages):
        tokens = LossTokens(log_probs, old_log_probs, advantages, mask, torch.zeros_like(mask), old)
        return loss_of_tokens(tokens, PolicyLossConfig(name=name, exo_k=None), ClipRange(0.2, 0.28, 3.0)).loss

    (verls, verls_gradient), (ours, gradient) = both(mode, batch, loss_of, old.exp() if weighted else None)
    assert torch.equal(ours, verls) and torch.equal(gradient, verls_gradient)
    ratio = (batch[0] - old).exp()
    assert ((advantages < 0) & (ratio > 3) & mask).any() and ((advantages > 0) & (ratio > 1.28) & mask).any()


# ---- through SegmentLoss, as the worker calls it ----


def nested(*rows, dtype=torch.float32):
    return torch.nested.as_nested_tensor([torch.tensor(r, dtype=dtype) for r in rows], layout=torch.jagged)


def worker_batch(policy_loss, *, mixing=True, response_mask=((1, 1, 1), (1, 1))):
    """Two responses of 3 and 2 tokens behind prompts of 1 and 2; the first has a prefix of two."""
    fields = {
        "prompts": nested([1], [1, 2], dtype=torch.int64),
        "responses": nested([3, 4, 5], [6, 7], dtype=torch.int64),
        "old_log_probs": nested([0.25, 0.2, 0.4], [0.2, 0.2]).log(),
        "advantages": nested([2.0, 2.0, 2.0], [-2.0, -2.0]),
        "response_mask": nested(*response_mask, dtype=torch.int64),
    }
    if mixing:
        fields["rollout_log_probs"] = nested([0.2, 0.2, 0.1], [0.1, 0.1]).log()
        fields["prefix_mask"] = nested([1, 1, 0], [0, 0], dtype=torch.int8)
    data = TensorDict(fields, batch_size=2)
    tu.assign_non_tensor(data, **{IN_LOSS: InLoss(policy_loss=policy_loss)})
    return data


NEW = torch.tensor([[0.3, 0.5, 0.2], [0.4, 0.1, 0.9]])


def through_the_worker(data, mode="token-mean"):
    """verl's own aggregation of what ours makes of each token: (loss, metrics, gradient of the model's output)."""
    output = nested([0.3, 0.5, 0.2, 0.9], [0.9, 0.4, 0.1, 0.9]).log().detach().requires_grad_()

    def verls_loss(*, config, model_output, data, dp_group):
        from verl.workers.utils.padding import no_padding_2_padding

        log_prob = no_padding_2_padding(model_output["log_probs"], data)
        fields = data.select("old_log_probs", "advantages", "response_mask").to_padded_tensor()
        return get_policy_loss_fn("soup")(
            fields["old_log_probs"], log_prob, fields["advantages"], fields["response_mask"].bool(), mode, config
        )

    config = actor(policy_loss={"loss_mode": "soup"})
    loss, metrics = SegmentLoss(partial(verls_loss, config=config))({"log_probs": output}, data)
    return loss, metrics, torch.autograd.grad(loss, output)[0]


def measured(metrics):
    return {
        key.removeprefix(MEASURED_PREFIX): metric.aggregate()
        for key, metric in metrics.items()
        if key.startswith(MEASURED_PREFIX)
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_the_worker_hands_every_tensor_over(name, mode):
    settings = PolicyLossConfig(name=name, exo_k=2.0)
    loss, metrics, _ = through_the_worker(worker_batch(settings), mode)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    tokens = LossTokens(
        NEW.log(),
        torch.tensor([[0.25, 0.2, 0.4], [0.2, 0.2, 1]]).log(),
        torch.tensor([[2.0] * 3, [-2.0] * 3]),
        mask,
        torch.tensor([[1, 1, 0], [0, 0, 0]]).bool(),
        torch.tensor([[0.2, 0.2, 0.1], [0.1, 0.1, 1]]).log(),
    )
    of_tokens = loss_of_tokens(tokens, settings, ClipRange(0.2, 0.28, 3.0))
    assert_close(loss, agg_loss(of_tokens.loss, mask, mode))
    sums = measured(metrics)
    assert (sums["prefix_tokens"], sums["continuation_tokens"], sums["onpolicy_tokens"]) == (2, 1, 2)
    for noun in of_tokens.measured:
        assert sums[f"prefix_{noun}"] > 0 and sums[f"onpolicy_{noun}"] > 0


def test_verl_sums_the_terms_of_a_response_to_oapls_square():
    """Ratios of 1.2, 2.5 and 0.5, so 1.5 of the whole response, whose first token is cut and counts all the same; 2 and
    0.5, so 1 of the other. With b2 = 2 the residuals are 2 ln 1.5 - 2 and 0 + 2."""
    settings = PolicyLossConfig(name="oapl", oapl_b2=2.0)
    batch = worker_batch(settings, response_mask=((0, 1, 1), (1, 1)))
    batch["old_log_probs"] = nested([0.25, 0.2, 0.4], [0.2, 0.2]).log()
    loss, _, gradient = through_the_worker(batch, "seq-mean-token-sum")
    residuals = torch.tensor([2 * math.log(1.5) - 2, 2 * math.log(1.0) + 2])
    assert_close(loss.detach(), residuals.square().mean())
    slopes = 2 * 2 * residuals / 2
    found = [row.tolist() for row in gradient.unbind()]
    assert found[0] == pytest.approx([0, slopes[0].item(), slopes[0].item(), 0], abs=1e-5), found
    assert found[1] == pytest.approx([0, slopes[1].item(), slopes[1].item(), 0], abs=1e-5), found


def test_without_mixing_there_is_no_prefix_to_read():
    loss, metrics, _ = through_the_worker(worker_batch(PolicyLossConfig(name="exo"), mixing=False))
    assert loss.isfinite() and measured(metrics)["onpolicy_tokens"] == 5
