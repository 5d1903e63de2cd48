"""Other losses of verl's on mixed responses: gradients against the formula with the policies that sampled; and what is
wrong with those that `run_rules` refuses."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig

from tests.contract.test_objectives import ADVANTAGE, GAMMA, P_HISTORICAL, P_NEW, P_OLD, PREFIX, RESPONSE, soup_gradient

pytestmark = pytest.mark.contract

LOW, HIGH, TAU = 0.2, 0.28, (1.0, 1.05)
A, P = ADVANTAGE[:, None], PREFIX.bool()
SAMPLED = torch.where(P, P_HISTORICAL, P_OLD)
"""By the policy that sampled the token."""


def of_verls(mode, objective="behavior", aggregation="token-mean", low=LOW, high=HIGH, **changes):
    """d(-loss) / d(log pi) by verl, on a mixed batch."""

    def gradient(log_probs, old_log_probs, advantages, mask):
        config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=low,
            clip_ratio_low=low,
            clip_ratio_high=high,
            tau_pos=TAU[0],
            tau_neg=TAU[1],
        )
        variable = log_probs.clone().requires_grad_()
        loss, _ = get_policy_loss_fn(mode)(
            old_log_prob=old_log_probs,
            log_prob=variable,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=aggregation,
            config=config,
        )
        return torch.autograd.grad(-loss, variable)[0]

    return soup_gradient(objective, gradient=gradient, **changes)


def of_formula(objective):
    log_probs = P_NEW.log().requires_grad_()
    return torch.autograd.grad(objective(log_probs), log_probs)[0]


def mean(values, mask=RESPONSE):
    """Over the tokens of each row."""
    return torch.where(mask.bool(), values, 0.0).sum(dim=1) / mask.sum(dim=1)


CONTINUATION = RESPONSE - PREFIX
SEGMENTS = [("behavior", SAMPLED, RESPONSE), ("masked", P_OLD, CONTINUATION)]
"""Objective, what the ratio is against, and the tokens trained."""


@pytest.mark.parametrize(("objective", "anchor", "trained"), SEGMENTS)
def test_gspo_clips_the_geometric_mean_of_the_ratios_to_the_policies_that_sampled(objective, anchor, trained):
    def of(log_probs, low, high):
        ratio = mean(log_probs - anchor.log(), trained).exp()
        return torch.minimum(ratio * ADVANTAGE, ratio.clamp(1 - low, 1 + high) * ADVANTAGE).mean()

    for low, high in ((0.5, 0.5), (3e-4, 4e-4)):  # within the range, and out of it
        found = of_verls("gspo", objective, "seq-mean-token-mean", low, high)
        assert_close(found, of_formula(partial(of, low=low, high=high)))
    assert of_verls("gspo", objective, "seq-mean-token-mean", 0.5, 0.5).count_nonzero() == trained.sum()
    assert found.count_nonzero() < trained.sum()


@pytest.mark.parametrize(("objective", "anchor", "trained"), SEGMENTS)
def test_cispo_weighs_each_token_by_its_cut_ratio_to_the_policy_that_sampled_it(objective, anchor, trained):
    weight = (P_NEW / anchor).clamp(1 - LOW, 1 + HIGH)
    expected = of_formula(lambda log_probs: (weight * A * log_probs)[trained.bool()].sum() / trained.sum())
    assert_close(of_verls("cispo", objective), expected)
    assert ((weight == 1 + HIGH) & trained.bool()).any() and expected.count_nonzero() == trained.sum()


@pytest.mark.parametrize(("objective", "anchor", "trained"), SEGMENTS)
def test_sapo_gates_each_token_by_its_ratio_to_the_policy_that_sampled_it(objective, anchor, trained):
    tau = torch.where(A > 0, *TAU)

    def of(log_probs):
        ratio = (log_probs - anchor.log()).exp()
        return mean(4 / tau * torch.sigmoid(tau * (ratio - 1)) * A, trained).mean()

    assert_close(of_verls("sapo", objective), of_formula(of))


@pytest.mark.parametrize(("objective", "anchor", "trained"), SEGMENTS)
def test_gmpo_averages_the_ratios_after_clipping_each_around_the_policy_that_sampled_it(objective, anchor, trained):
    def of(log_probs):
        log_ratio = log_probs - anchor.log()
        clipped = log_ratio.clamp(-0.4, 0.4)
        pessimistic = torch.where(A > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped))
        return (mean(pessimistic, trained).exp() * ADVANTAGE).mean()

    expected = of_formula(of)
    assert_close(of_verls("geo_mean", objective, low=0.4, high=0.4), expected)
    assert 0 < expected.count_nonzero() < trained.sum()  # some are clipped


# ---- prefix tokens with a weight of their own, and without a ratio ----

PER_RESPONSE = {"aggregation": "seq-mean-token-mean", "low": 0.9, "high": 9.0}


@pytest.mark.parametrize("mode", ["gspo", "cispo", "sapo"])
def test_decoupled_weighs_a_prefix_tokens_gradient(mode):
    weight = torch.where(P, (P_OLD / P_HISTORICAL).clamp(max=1.5), 1.0)
    plain, found = (of_verls(mode, "decoupled", cap=cap, **PER_RESPONSE) for cap in (1.0, 1.5))
    assert_close(found, weight * plain)
    assert len(set(weight[P].tolist())) > 2


def test_gmpo_would_spread_a_prefix_tokens_weight_over_the_response():
    plain, found = (of_verls("geo_mean", "decoupled", cap=cap, low=9.0, high=9.0) for cap in (1.0, 1.5))
    assert (found - plain)[CONTINUATION.bool()].abs().min() > 1e-3


SHAPED = A * GAMMA * P_NEW / (P_NEW + GAMMA) ** 2 / 12


@pytest.mark.parametrize("mode", ["cispo", "sapo"])
def test_shaped_has_its_own_gradient_on_the_prefix_and_the_losss_elsewhere(mode):
    found = of_verls(mode, "shaped")
    assert_close(found[P], SHAPED[P])
    assert_close(found[~P], of_verls(mode)[~P])


def test_gspo_would_multiply_shaped_tokens_by_the_ratio_of_the_others():
    assert (of_verls("gspo", "shaped", **PER_RESPONSE) - SHAPED)[P].abs().min() > 1e-3


def test_gpg_would_take_a_historical_token_for_the_current_policys():
    assert_close(of_verls("gpg"), torch.where(RESPONSE.bool(), A / 12, 0.0))
