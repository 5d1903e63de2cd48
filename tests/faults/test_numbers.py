"""What numbers that should not be do to the math: they surface where they belong, and nowhere else.

verl's own loss is the one that trains, so the last part asks that one.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from soup_verl.method import core_algos
from soup_verl.method.core_algos import group_relative_advantage, kl_k3, past_kl_limit, token_advantages, token_ratio
from soup_verl.method.metrics import finish_update_metrics, step_metrics, update_sums
from soup_verl.method.step_batch import StepBatch

NAN, INF = math.nan, math.inf
LIMIT = math.exp(20)
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


# ---- ratios ----


@pytest.mark.parametrize(
    ("current", "behavior", "ratio"),
    [
        (0.0, -100.0, LIMIT),
        (-100.0, 0.0, 1 / LIMIT),
        (-INF, -1.0, 1 / LIMIT),
        (-1.0, -INF, LIMIT),
        (-INF, -INF, NAN),
        (NAN, -1.0, NAN),
        (-1.0, NAN, NAN),
    ],
)
def test_a_ratio_is_within_its_limits_or_nan(current, behavior, ratio):
    assert_close(token_ratio(rows(current), rows(behavior)), rows(ratio), equal_nan=True)


def test_the_gradient_of_a_ratio_past_its_limit_is_zero_and_not_nan():
    log_probs = rows(0.0, -100.0, 100.0).requires_grad_()
    token_ratio(log_probs, rows(0.0, 0.0, 0.0)).sum().backward()
    assert log_probs.grad.tolist() == [1.0, 0.0, 0.0]


def test_an_effective_share_of_the_largest_ratios_is_finite():
    ratio = token_ratio(rows(100.0, -100.0, 0.0), rows(0.0, 0.0, 0.0))
    assert core_algos.effective_sample_share(ratio, torch.ones(3)).item() == pytest.approx(1 / 3)
    assert kl_k3(rows(100.0, -100.0), rows(0.0, 0.0)).isfinite().all()


def test_a_nan_in_the_prefix_is_not_hidden_behind_the_kl_limit():
    """It neither counts as far away nor as near: its tokens are kept, and their NaN reaches the loss."""
    masked = past_kl_limit(rows([0.0, NAN, 0.0]), rows([0.0, 0.0, 0.0]), prefix_mask=torch.ones(1, 3), max_kl=0.1)
    assert masked.tolist() == [[False, False, False]]


# ---- advantages ----


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 0.5])
@pytest.mark.parametrize("norm_by_std", [True, False])
def test_equal_rewards_teach_nothing(reward, norm_by_std):
    advantages = group_relative_advantage(rows(*[reward] * 7), ["a"] * 7, norm_by_std=norm_by_std)
    assert advantages.tolist() == [0.0] * 7


@pytest.mark.parametrize(("reward", "left"), [(0.1, 0.01), (1.7, 0.2)])
def test_equal_rewards_that_floats_do_not_hold_teach_little(reward, left):
    """Their mean is rounded, in float32 as in verl's; epsilon keeps what is left of them small."""
    assert group_relative_advantage(rows(*[reward] * 7), ["a"] * 7).abs().max() < left


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_reward_spoils_its_own_group_only(bad):
    advantages = group_relative_advantage(rows(0, bad, 1, 0, 1), ["a", "a", "a", "b", "b"])
    assert advantages[:3].isnan().all() and advantages[3:].isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_group_in_which_nothing_counts_is_finite(value):
    counted = torch.zeros(3, dtype=torch.bool)
    assert group_relative_advantage(rows(value, value, value), ["a"] * 3, counted=counted).isfinite().all()


@pytest.mark.parametrize("advantage", [1.0, NAN])
def test_an_empty_response_has_no_advantage_of_any_kind(advantage):
    spread = token_advantages(rows(advantage, 2.0), response_mask=torch.tensor([[0, 0], [1, 1]]))
    assert spread.tolist() == [[0.0, 0.0], [2.0, 2.0]]


# ---- metrics ----


def sums(**changed):
    ones = torch.ones(2, 2)
    given = {
        "log_probs": -ones,
        "old_log_probs": -ones,
        "advantages": ones,
        "response_mask": ones,
        "prefix_mask": 0 * ones,
    }
    return update_sums(**(given | changed), **CLIP)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_log_prob_shows_in_its_own_segment(bad):
    prefix = torch.tensor([[1, 0], [0, 0]])
    log_probs = torch.where(torch.tensor([[True, False], [False, False]]), bad, -1.0)
    metrics = finish_update_metrics(sums(log_probs=log_probs, prefix_mask=prefix))
    spoiled = {key for key, value in metrics.items() if not math.isfinite(value)}
    if math.isnan(bad):
        assert spoiled == {f"soup/prefix_{name}" for name in ("ratio_mean", "ratio_max", "update_kl_k3")}
    else:  # a ratio at its limit, which is what the loss takes too
        assert not spoiled and metrics["soup/prefix_ratio_max"] == pytest.approx(LIMIT)


def test_a_micro_batch_of_empty_responses_adds_nothing():
    assert finish_update_metrics(sums(response_mask=torch.zeros(2, 2))) == {}


def step_batch(**changed):
    ones = torch.ones(2, 2)
    given = {
        "uids": ["a", "a"],
        "response_mask": ones,
        "prefix_mask": 0 * ones,
        "policy_version": torch.full((2, 2), -1),
        "recomputed": True,
    }
    given |= {"current_version": 3, "behavior_log_probs": -ones, "old_log_probs": -ones, "entropy": ones}
    given |= {"rewards": rows(0.0, 0.0), "solved": torch.tensor([False, False]), "answers": None}
    return StepBatch(**(given | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"response_mask": torch.zeros(2, 2)},
        {"prefix_mask": torch.ones(2, 2), "policy_version": torch.ones(2, 2)},
        {"prefix_mask": torch.tensor([[1, 1], [0, 0]]), "policy_version": torch.tensor([[1, 1], [-1, -1]])},
        {"rewards": rows(1.0, 1.0), "solved": torch.tensor([True, True])},
        {"old_log_probs": torch.full((2, 2), -100.0)},
    ],
    ids=["empty responses", "prefixes that are the whole budget", "one such prefix", "equal rewards", "log-ratio -100"],
)
def test_every_metric_of_a_degenerate_step_is_finite(changed):
    metrics = step_metrics(step_batch(**changed))
    assert metrics and all(math.isfinite(value) for value in metrics.values())


# ---- verl's loss ----


def verls_loss(log_ratio, advantage, mask=1.0):
    """Loss and gradient of one token beside an ordinary one, by the function that trains."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=0.28
    )
    log_probs = rows([log_ratio, 0.0]).requires_grad_()
    loss, _ = compute_policy_loss_vanilla(
        old_log_prob=rows([0.0, 0.0]),
        log_prob=log_probs,
        advantages=rows([advantage, 1.0]),
        response_mask=rows([mask, 1.0]),
        config=config,
    )
    loss.backward()
    return loss, log_probs.grad


@pytest.mark.e2e
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [100.0, -100.0, -INF])
def test_the_loss_of_a_log_ratio_of_100_is_finite(log_ratio, advantage):
    loss, gradient = verls_loss(log_ratio, advantage)
    assert loss.isfinite() and gradient.isfinite().all()
    assert gradient[0, 0] == 0  # clipped, on either side


@pytest.mark.e2e
def test_a_nan_log_prob_shows_in_the_loss_and_trains_nothing():
    """The limit on the ratio stops its gradient; the NaN of a model's own logits comes back in the next operation."""
    loss, gradient = verls_loss(NAN, 1.0)
    assert loss.isnan()
    assert gradient[0, 0] == 0 and gradient.isfinite().all()


def test_nan_logits_reach_the_gradient():
    logits = rows([NAN, 0.0]).requires_grad_()
    torch.log_softmax(logits, dim=-1)[0, 1].mul(0.0).backward()
    assert logits.grad.isnan().any()  # verl's FSDP engine drops an update whose gradient norm is not finite


@pytest.mark.e2e
@pytest.mark.parametrize("advantage", [NAN, INF, -INF])
def test_a_bad_advantage_reaches_the_gradient(advantage):
    _, gradient = verls_loss(0.0, advantage)
    assert not gradient.isfinite().all()


@pytest.mark.e2e
@pytest.mark.parametrize("bad", [NAN, INF])
def test_advantages_are_zero_where_verls_loss_would_read_what_its_mask_hides(bad):
    """0 times NaN: the loss is finite and its gradient is not. `token_advantages` leaves nothing to read there."""
    loss, gradient = verls_loss(0.0, bad, mask=0.0)
    assert loss.isfinite() and not gradient.isfinite().all()
    hidden = token_advantages(rows(bad), response_mask=torch.tensor([[0, 0]]))[0, 0].item()
    loss, gradient = verls_loss(0.0, hidden, mask=0.0)
    assert loss.isfinite() and gradient.isfinite().all()
