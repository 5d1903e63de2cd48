"""Gradients of verl's clipped loss on what SOUP hands it, against the objective of each `prefix_objective` written
plainly; and the estimator `soup` without prefixes against verl's GRPO."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from verl.trainer.ppo.core_algos import (
    compute_grpo_outcome_advantage,
    compute_opo_outcome_advantage,
    compute_policy_loss_vanilla,
)
from verl.workers.config import FSDPActorConfig

from soup_verl.method import core_algos, step
from soup_verl.method.config import SoupConfig
from soup_verl.method.core_algos import PREFIX_OBJECTIVES, zero_gradient_mask
from soup_verl.method.step_batch import StepBatch
from soup_verl.stack.register import compute_soup_advantage, estimating_with

pytestmark = pytest.mark.contract

LOW, HIGH, C, CAP = 0.2, 0.28, 3.0, 2.0


def verl_gradient(log_probs, old_log_probs, advantages, mask, loss_agg_mode="token-mean", rollout_is_weights=None):
    """d(-loss) / d(log_probs)."""
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=LOW,
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=C,
    )
    variable = log_probs.clone().requires_grad_()
    loss, _ = compute_policy_loss_vanilla(
        old_log_prob=old_log_probs,
        log_prob=variable,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    return torch.autograd.grad(-loss, variable)[0]


# Row 0 with A = 2, row 1 with A = -2: a prefix of three tokens, three of the continuation, two of padding.
# The columns reach every branch of the clip, against pi_h and against pi_old.
P_NEW = torch.tensor([[0.3, 0.5, 0.2, 0.5, 0.3, 0.1, 0.5, 0.5], [0.3, 0.5, 0.2, 0.5, 0.3, 0.1, 0.5, 0.5]]).double()
P_OLD = torch.tensor([[0.28, 0.45, 0.5, 0.2, 0.25, 0.4, 0.5, 0.5], [0.28, 0.2, 0.5, 0.2, 0.25, 0.4, 0.5, 0.5]]).double()
P_HISTORICAL = torch.tensor([[0.25, 0.2, 0.4, 9, 9, 9, 9, 9], [0.25, 0.2, 0.4, 9, 9, 9, 9, 9]]).double()
ADVANTAGE = torch.tensor([2.0, -2.0]).double()
RESPONSE = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]] * 2)
PREFIX = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]] * 2)


GAMMA = 0.25


def soup_gradient(name, prefix=PREFIX, correction="none", cap=CAP, gradient=verl_gradient):
    """Of verl's loss on what SoupTrainer and SegmentLoss hand it for a prefix objective."""
    soup = SoupConfig(prefix_objective=name, prefix_correction=correction, decoupled_weight_cap=cap, shaped_gamma=GAMMA)
    batch = StepBatch(
        uids=["a", "b"],
        response_mask=RESPONSE,
        prefix_mask=prefix,
        policy_version=torch.where(prefix.bool(), 3, -1),
        current_version=5,
        behavior_log_probs=P_HISTORICAL.log(),
        old_log_probs=P_OLD.log(),
        recomputed=True,
        entropy=None,
        rewards=ADVANTAGE,  # one response a prompt, not divided by the standard deviation: its own advantage
        solved=torch.tensor([True, False]),
        answers=None,
    )
    tokens, _ = step.trained_tokens(batch, soup)
    advantages = step.advantages(
        batch.rewards,
        batch.uids,
        RESPONSE,
        versions=batch.response_version.tolist(),
        baseline="shared",
        norm_by_std=False,
        prefix_mask=prefix,
        prefix_weight=tokens.prefix_weight,
    )
    anchor, advantages, _ = step.moved_with_policy(
        P_NEW.log(),
        tokens.old_log_probs,
        advantages,
        prefix_mask=prefix,
        behavior_log_probs=batch.behavior_log_probs,
        settings=step.InLoss.of(soup),
    )
    return gradient(P_NEW.log(), anchor, advantages, tokens.response_mask)


def gradient_of(objective):
    """d/d(log pi_theta) of J as written, pi_theta a leaf."""
    log_probs = P_NEW.log().requires_grad_()
    return torch.autograd.grad(objective(log_probs.exp()), log_probs)[0]


def clipped(ratio, advantage):
    return torch.minimum(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage)


def test_behavior_clips_each_token_around_the_policy_that_sampled_it():
    def objective(p):
        terms = clipped(torch.cat([p[:, :3] / P_HISTORICAL[:, :3], p[:, 3:6] / P_OLD[:, 3:6]], 1), ADVANTAGE[:, None])
        return terms.sum() / 12

    expected = gradient_of(objective)
    assert_close(soup_gradient("behavior"), expected)
    # the example is worth something: both rows have zeroed and live tokens, prefix and continuation
    assert all(0 < part.count_nonzero(dim=1).min() < 3 for part in (expected[:1, :3], expected[1:, 3:6]))


def test_decoupled_clips_around_pi_old_and_weighs_the_prefix_by_a_truncated_constant_ratio():
    w = (P_OLD / P_HISTORICAL)[:, :3].clamp(max=CAP)
    assert w[0, 1] == CAP and w[0, 0] < CAP  # one truncated, one not

    def objective(p):
        terms = clipped(p[:, :6] / P_OLD[:, :6], ADVANTAGE[:, None])
        return (torch.cat([w, torch.ones(2, 3)], 1) * terms).sum() / 12

    assert_close(soup_gradient("decoupled"), gradient_of(objective))


def test_masked_trains_the_continuation_only_and_averages_over_it():
    def objective(p):
        return clipped(p[:, 3:6] / P_OLD[:, 3:6], ADVANTAGE[:, None]).sum() / 6

    gradient = soup_gradient("masked")
    assert_close(gradient, gradient_of(objective))
    assert gradient[:, :3].eq(0).all()


def test_shaped_trains_the_prefix_by_p_over_p_plus_gamma_without_ratio_or_clip():
    def objective(p):
        shaped = ADVANTAGE[:, None] * p[:, :3] / (p[:, :3] + GAMMA)
        return (shaped.sum() + clipped(p[:, 3:6] / P_OLD[:, 3:6], ADVANTAGE[:, None]).sum()) / 12

    gradient = soup_gradient("shaped")
    assert_close(gradient, gradient_of(objective))
    assert gradient[:, :3].ne(0).all(), "nothing is clipped away"


@pytest.mark.parametrize("length", [0, 1, 6])
def test_shaped_with_a_prefix_of_any_length(length):
    def objective(p):
        shaped = ADVANTAGE[:, None] * p[:, :length] / (p[:, :length] + GAMMA)
        return (shaped.sum() + clipped(p[:, length:6] / P_OLD[:, length:6], ADVANTAGE[:, None]).sum()) / 12

    prefix = (torch.arange(8) < length).expand(2, 8).int()
    assert_close(soup_gradient("shaped", prefix), gradient_of(objective))


def test_shaped_ratio_trains_the_prefix_by_the_shaped_ratio_to_the_policy_that_sampled_it():
    """ExGRPO: w / (w + gamma) with w = pi_theta / pi_h, no clip."""

    def objective(p):
        w = p[:, :3] / P_HISTORICAL[:, :3]
        shaped = ADVANTAGE[:, None] * w / (w + GAMMA)
        return (shaped.sum() + clipped(p[:, 3:6] / P_OLD[:, 3:6], ADVANTAGE[:, None]).sum()) / 12

    assert_close(soup_gradient("shaped_ratio"), gradient_of(objective))


@pytest.mark.parametrize("loss_agg_mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_shaped_is_exact_under_every_aggregation(loss_agg_mode):
    """The same weights on A p / (p + gamma) as verl puts on a plain policy gradient at ratio 1."""
    new = P_NEW.log()
    old, advantages = core_algos.shaped_tokens(
        new, P_OLD.log(), ADVANTAGE[:, None].expand(2, 8), prefix_mask=RESPONSE, gamma=GAMMA
    )
    weights = verl_gradient(new, new, torch.ones(2, 8).double(), RESPONSE, loss_agg_mode)
    expected = gradient_of(lambda p: (weights * ADVANTAGE[:, None] * p / (p + GAMMA)).sum())
    assert_close(verl_gradient(new, old, advantages, RESPONSE, loss_agg_mode), expected)


@pytest.mark.parametrize("name", ["behavior", "decoupled", "masked"])
def test_the_min_prefix_correction_weights_each_tokens_gradient(name):
    """Ratios of the prefix to pi_h: 1.2, 2.5, 0.5. The advantage keeps its sign, so the clip stays where it was."""
    weight = torch.tensor([1, 1.2, 1.2, 0.5, 0.5, 0.5, 1, 1]).double()
    expected = soup_gradient(name) * weight
    assert_close(soup_gradient(name, correction="min_prefix"), expected)
    assert expected[:, 3:6].ne(0).any()


def test_the_min_prefix_correction_leaves_onpolicy_responses_alone():
    none = torch.zeros(2, 8)
    assert torch.equal(soup_gradient("behavior", none, "min_prefix"), soup_gradient("behavior", none))


@pytest.mark.parametrize("name", ["behavior", "decoupled", "masked"])
def test_the_cumulative_corrections_weight_each_tokens_gradient(name):
    """Products of the prefix's ratios 1.2, 2.5, 0.5 before a token; the loss has the token's own ratio besides."""
    plain = soup_gradient(name)
    product = torch.tensor([1, 1.2, 3, 1.5, 1.5, 1.5, 1, 1]).double()
    assert_close(soup_gradient(name, correction="cumulative_unclipped"), plain * product)
    t = torch.tensor([0, 1, 2, 3, 3, 3, 0, 0]).double()
    assert_close(soup_gradient(name, correction="cumulative"), plain * torch.exp(0.05 * t.sqrt()))


def test_on_a_prefix_without_clip_the_unclipped_product_makes_ctpos_cumulative_ratio():
    """d/d(log pi_theta) of A sg[R_t / r_t] r_t, with R_t the product up to and including t."""
    log_probs = P_NEW.log().requires_grad_()
    ratio = log_probs.exp()[:, :3] / P_HISTORICAL[:, :3]
    own = (ratio.cumprod(1) / ratio).detach() * ratio * ADVANTAGE[:, None]
    whole = (torch.arange(8) < 3).expand(2, 8)
    weight = core_algos.cumulative_unclipped_weight(P_NEW.log(), P_HISTORICAL.log(), prefix_mask=whole)
    expected = torch.autograd.grad(own.sum(), log_probs)[0][:, :3]
    assert_close((weight[:, :3] * ratio.detach() * ADVANTAGE[:, None]), expected)


@pytest.mark.parametrize("name", PREFIX_OBJECTIVES)
def test_every_objective_is_grpo_where_there_is_no_prefix(name):
    def objective(p):
        return clipped(p[:, :6] / P_OLD[:, :6], ADVANTAGE[:, None]).sum() / 12

    assert_close(soup_gradient(name, prefix=torch.zeros(2, 8)), gradient_of(objective))


@pytest.mark.parametrize("name", PREFIX_OBJECTIVES)
def test_padding_gets_no_gradient(name):
    assert soup_gradient(name)[:, 6:].eq(0).all()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_zero_gradient_mask_says_where_verls_gradient_is_zero(advantage):
    ratio = torch.linspace(0.01, 4.91, 99, dtype=torch.float64).unsqueeze(0)  # never on an edge of the clip
    assert not any(torch.isclose(ratio, torch.tensor(edge).double()).any() for edge in (1 - LOW, 1 + HIGH, C))
    advantages, ones = torch.full_like(ratio, advantage), torch.ones_like(ratio)
    gradient = verl_gradient(ratio.log(), torch.zeros_like(ratio), advantages, ones, "token-sum")
    mask = zero_gradient_mask(ratio, advantages, clip_ratio_low=LOW, clip_ratio_high=HIGH, clip_ratio_c=C)
    assert torch.equal(mask, gradient == 0)
    assert 0 < mask.sum() < mask.numel()


def test_our_ratio_is_the_one_in_verls_loss():
    log_probs, old = torch.tensor([[-0.1, -50.0, -3.0]]), torch.tensor([[-40.0, -0.1, -2.5]])
    gradient = verl_gradient(log_probs, old, torch.ones(1, 3), torch.ones(1, 3), "token-sum")
    ratio = core_algos.token_ratio(log_probs, old)
    assert ratio[0, 0].log() == pytest.approx(20)  # clamped, and clipped: no gradient
    assert_close(gradient, torch.tensor([[0.0, 0.0, ratio[0, 2].item()]]))


# ---- the estimator without prefixes is GRPO, or OPO ----


def test_the_baseline_of_least_variance_without_prefixes_is_verls_opo():
    generator = torch.Generator().manual_seed(0)
    index = np.array(["a", "b", "a", "a", "b", "c"], dtype=object)
    mask = (torch.arange(6) < torch.tensor([[6], [3], [1], [4], [2], [5]])).long()
    rewards = torch.randn(6, 6, generator=generator) * mask
    estimate = partial(step.advantages, versions=[-1] * 6, baseline="min_variance", norm_by_std=False)
    with estimating_with(estimate):
        ours, _ = compute_soup_advantage(token_level_rewards=rewards.clone(), response_mask=mask, index=index)
    verls, _ = compute_opo_outcome_advantage(rewards.clone(), mask, index=index)
    assert_close(ours, verls)


@given(st.data(), st.booleans(), st.sampled_from(["shared", "split"]))
def test_the_estimator_without_prefixes_is_verls_grpo_bit_for_bit(data, norm_by_std, baseline):
    size, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    index = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size)), dtype=object)
    lengths = torch.randint(0, length + 1, (size, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    rewards = torch.randn(size, length, generator=generator)
    counted = torch.ones(size, dtype=torch.bool)
    estimate = partial(
        step.advantages, versions=[-1] * size, baseline=baseline, norm_by_std=norm_by_std, counted=counted
    )
    with estimating_with(estimate):
        ours, returns = compute_soup_advantage(token_level_rewards=rewards.clone(), response_mask=mask, index=index)
    verls, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, index=index, norm_adv_by_std_in_grpo=norm_by_std)
    assert torch.equal(ours, verls) and torch.equal(returns, verls)
