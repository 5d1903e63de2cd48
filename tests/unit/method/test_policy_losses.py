"""Losses of ours by hand, their gradients against the formula as written, and what they must not read."""

import math

import pytest
import torch
from torch.testing import assert_close

from soup_verl.method.policy_losses import ClipRange, LossTokens, loss_of_tokens
from soup_verl.method.sections import POLICY_LOSSES, PolicyLossConfig

CLIP = ClipRange(low=0.2, high=0.28, c=3.0)
NAN = float("nan")


def tokens(p_new, p_old, advantages, *, prefix=None, p_behavior=None, trained=None):
    """One response a row, from probabilities."""
    p_new, p_old, advantages = (torch.tensor(x).double() for x in (p_new, p_old, advantages))
    prefix = torch.zeros_like(p_new) if prefix is None else torch.tensor(prefix)
    return LossTokens(
        log_probs=p_new.log().requires_grad_(),
        old_log_probs=p_old.log(),
        advantages=advantages,
        trained=torch.ones_like(p_new).bool() if trained is None else torch.tensor(trained).bool(),
        prefix_mask=prefix.bool(),
        behavior_log_probs=(p_old if p_behavior is None else torch.tensor(p_behavior).double()).log(),
    )


def found(name, read, clip=CLIP, **settings):
    """Loss, what was measured, and the gradient of the loss's sum."""
    of_tokens = loss_of_tokens(read, PolicyLossConfig(name=name, **settings), clip)
    return of_tokens.loss.detach(), of_tokens.measured, torch.autograd.grad(of_tokens.loss.sum(), read.log_probs)[0]


# ---- every loss ----


@pytest.mark.parametrize("name", [None, *POLICY_LOSSES])
def test_what_stands_in_the_padding_is_never_read(name):
    p_new = [[0.3, 0.5, 0.2, 0.4], [0.3, 0.5, 0.2, 0.4]]
    rest = ([[0.25, 0.2, 0.4, 0.4]] * 2, [[2.0] * 4, [-2.0] * 4])
    facts = {"prefix": [[1, 0, 0, 0]] * 2, "trained": [[1, 1, 1, 0]] * 2, "p_behavior": [[0.5] * 4] * 2}
    clean = tokens(p_new, *rest, **facts)
    dirty = tokens(
        [[0.3, 0.5, 0.2, NAN]] * 2, [[0.25, 0.2, 0.4, NAN]] * 2, [[2.0] * 3 + [NAN], [-2.0] * 3 + [NAN]], **facts
    )
    for one, other in zip(found(name, clean)[::2], found(name, dirty)[::2], strict=True):
        assert torch.equal(one, other) and one[:, 3].eq(0).all() and one[:, :3].ne(0).any()


@pytest.mark.parametrize("name", [None, *POLICY_LOSSES])
def test_a_token_cut_from_the_loss_has_no_loss_and_no_gradient(name):
    read = tokens([[0.3, 0.5]], [[0.25, 0.5]], [[2.0, 2.0]], prefix=[[1, 0]], trained=[[0, 1]])
    loss, _, gradient = found(name, read)
    assert loss[0, 0] == gradient[0, 0] == 0 and gradient[0, 1] != 0


def test_padding_is_zero_and_a_token_cut_from_the_loss_is_still_there():
    read = tokens([[0.3, 0.5, NAN]], [[0.25, 0.5, NAN]], [[2.0, 2.0, NAN]], prefix=[[1, 0, 0]], trained=[[0, 1, 0]])
    whole = read.without_padding()
    assert whole.log_probs.exp()[0].tolist() == pytest.approx([0.3, 0.5, 1.0])
    assert whole.advantages.tolist() == [[2, 2, 0]] and whole.behavior_log_probs[0, 2] == 0


# ---- oapl, oapl_paired, vespo ----

RESPONSE_LOSSES = ("oapl", "oapl_paired", "vespo")


@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_at_a_ratio_of_1_the_gradient_is_the_clips_number_for_number(name):
    """Of OAPL with b2 = 0.5, half of the square."""
    read = tokens([[0.3, 0.5, 0.2]] * 2, [[0.3, 0.5, 0.2]] * 2, [[1.7] * 3, [-0.3] * 3])
    assert torch.equal(found(name, read, oapl_b2=0.5)[2], found(None, read)[2])


MOVED = {"prefix": [[1, 0]] * 2, "trained": [[0, 1]] * 2}
"""Ratios of 4 on a prefix token that is cut from the loss and of 1/2 after it: 2 for the whole response."""


@pytest.mark.parametrize("name", ["oapl", "oapl_paired"])
def test_oapl_reads_the_ratio_of_the_whole_response(name):
    """b2 s = 1, so the residuals are 1 -+ A = -1 and 3."""
    read = tokens([[0.8, 0.2]] * 2, [[0.2, 0.4]] * 2, [[2.0] * 2, [-2.0] * 2], **MOVED)
    b2 = 1 / math.log(2)
    loss, measured, gradient = found(name, read, oapl_b2=b2)
    assert_close(loss, torch.tensor([[0.0, 1.0], [0.0, 9.0]]).double())
    assert_close(gradient, torch.tensor([[0.0, -2 * b2], [0.0, 6 * b2]]).double())
    assert_close(measured["oapl_residual"][:, 1], torch.tensor([1.0, 3.0]).double())
    assert_close(measured["oapl_log_ratio"][:, 1], torch.full((2,), math.log(2)).double())


def test_vespo_weighs_by_the_ratio_of_the_whole_response():
    read = tokens([[0.8, 0.2]] * 2, [[0.2, 0.4]] * 2, [[2.0] * 2, [-2.0] * 2], **MOVED)
    loss, measured, gradient = found("vespo", read)
    weights = torch.tensor([4 * math.exp(-3), 8 * math.exp(-2)]).double()
    assert_close(measured["vespo_weight"][:, 1], weights)
    assert_close(gradient[:, 1], torch.tensor([-2.0, 2.0]).double() * weights)
    assert_close(loss[:, 1], torch.tensor([-2.0, 2.0]).double() * weights * math.log(0.2))


@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_a_response_of_any_ratio_has_a_finite_gradient(name):
    loss, _, gradient = found(name, tokens([[0.5] * 2, [1e-30] * 2], [[1e-30] * 2, [0.5] * 2], [[2.0] * 2] * 2))
    assert loss.isfinite().all() and gradient.isfinite().all()


# ---- exo ----

# Ratios 1.2, 2.5, 0.5 and 4 on A = 2, then on A = -2. Edges 0.8 and 1.28, k = 5.
RATIOS = ([[0.3, 0.5, 0.2, 0.8]] * 2, [[0.25, 0.2, 0.4, 0.2]] * 2, [[2.0] * 4, [-2.0] * 4])


def test_exo_by_hand():
    loss, measured, gradient = found("exo", tokens(*RATIOS), exo_k=5.0)
    far = 1.28 + (1 - math.exp(-5 * 1.22)) / 5
    farther = 1.28 + (1 - math.exp(-5 * 2.72)) / 5
    low = 0.8 - (1 - math.exp(-5 * 0.3)) / 5
    assert_close(loss, torch.tensor([[-2.4, -2 * far, -1.0, -2 * farther], [2.4, 5.0, 2 * low, 6.0]]).double())
    assert measured["exo_tail_share"].tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    decays = torch.tensor([[1, math.exp(-6.1), 1, math.exp(-13.6)], [1, 1, math.exp(-1.5), 0]])  # the last: dual clip
    ratio = torch.tensor([1.2, 2.5, 0.5, 4.0])
    assert_close(gradient, (-torch.tensor([[2.0], [-2.0]]) * ratio * decays).double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("k", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_exos_gradient_is_that_of_the_formula_as_written(k, advantage):
    p_old = torch.full((1, 97), 0.2).double()
    ratio = torch.linspace(0.01, 2.9, 97).double()[None]
    read = tokens((p_old * ratio).tolist(), p_old.tolist(), torch.full((1, 97), advantage).tolist())
    variable = read.log_probs.detach().clone().requires_grad_()
    r = (variable - read.old_log_probs).exp()
    above, below = 1.28 + (1 - torch.exp(-k * (r - 1.28))) / k, 0.8 - (1 - torch.exp(-k * (0.8 - r))) / k
    f = torch.where(r > 1.28, above, torch.where(r < 0.8, below, r))
    objective = torch.minimum(r * advantage, f * advantage)
    assert_close(found("exo", read, exo_k=k)[2], torch.autograd.grad(-objective.sum(), variable)[0])


def test_a_ratio_of_any_size_has_a_finite_gradient():
    loss, _, gradient = found("exo", tokens([[0.5, 1e-30]], [[1e-30, 0.5]], [[2.0, -2.0]]), exo_k=1e3)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["exo", "exo_centred"])
def test_exo_without_decay_and_without_prefixes_is_the_clip_number_for_number(name, dtype):
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(8, 9, generator=generator, dtype=dtype) for _ in range(3))
    edge = torch.tensor(math.log(1.28), dtype=dtype)
    new = torch.cat([new, old[:, :1] + edge, old[:, :1]], 1)  # near an edge, and a ratio of 1
    old, advantages = (torch.cat([x, x[:, :2]], 1) for x in (old, advantages))
    every = torch.ones_like(old).bool()
    read = LossTokens(new.requires_grad_(), old, advantages, every, ~every, old)
    for one, other in zip(found(name, read, exo_k=None)[::2], found(None, read)[::2], strict=True):
        assert torch.equal(one, other)


def test_exo_with_a_fast_decay_is_near_the_clip():
    assert_close(found("exo", tokens(*RATIOS), exo_k=1e6)[0], found(None, tokens(*RATIOS))[0], atol=1e-5, rtol=0)


CENTRED = {"prefix": [[1, 1, 1, 0]] * 2, "p_behavior": [[0.2, 0.2, 0.4, NAN]] * 2}
"""pi / pi_h 1.5, 2.5, 0.5; pi_old / pi_h 1.25, 1, 1: bands 1.05..1.53, 0.8..1.28 twice, and plain on the last."""


def test_exo_centred_by_hand():
    loss, measured, _ = found("exo_centred", tokens(*RATIOS, **CENTRED), exo_k=None)
    assert_close(loss, torch.tensor([[-3.0, -2.56, -1.0, -2.56], [3.0, 5.0, 1.6, 6.0]]).double())
    assert measured["exo_tail_share"].tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


def test_exo_centred_lies_between_behavior_and_decoupled():
    """A prefix token with pi_old / pi_h = 2 and pi / pi_h = 2.45: beyond the band around 1, within that around 2
    stretched by 2 (up to 2.56), and beyond that around 2 as it is (up to 2.28)."""
    read = tokens([[0.49]], [[0.4]], [[1.0]], prefix=[[1]], p_behavior=[[0.2]])
    at_behavior = tokens([[0.49]], [[0.2]], [[1.0]])
    at_old = tokens([[0.49]], [[0.4]], [[2.0]])  # the advantage carries the weight
    losses = [
        found("exo", at_behavior, exo_k=None)[0],
        found("exo_centred", read, exo_k=None)[0],
        found("exo", at_old, exo_k=None)[0],
    ]
    assert_close(torch.cat(losses, 1), torch.tensor([[-1.28, -2.28, -2.45]]).double())
    gradients = [found("exo", at_behavior, exo_k=2.0)[2], found("exo_centred", read, exo_k=2.0)[2]]
    assert_close(torch.cat(gradients, 1), torch.tensor([[-2.45 * math.exp(-2.34), -2.45 * math.exp(-0.34)]]).double())


def test_the_lower_edge_moves_with_the_centre():
    """pi / pi_h = 1 below the band of pi_old / pi_h = 1.25, from 1.05 on; the same token of an on-policy response."""
    loss, measured, _ = found(
        "exo_centred",
        tokens([[0.2, 0.2]], [[0.25, 0.2]], [[-2.0, -2.0]], prefix=[[1, 0]], p_behavior=[[0.2, NAN]]),
        exo_k=None,
    )
    assert_close(loss, torch.tensor([[2.1, 2.0]]).double())
    assert measured["exo_tail_share"].tolist() == [[True, False]]
