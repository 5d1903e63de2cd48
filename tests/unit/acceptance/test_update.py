from dataclasses import replace

import pytest
import torch

from soup_verl.acceptance import update
from soup_verl.acceptance.update import TOLERANCE, Update, compare

CPU = torch.device("cpu")


def result(loss=0.5, gradient=(3.0, 4.0), prefix_ratio=2.0):
    return Update(loss, torch.tensor(gradient, dtype=torch.float64), prefix_ratio)


@pytest.mark.parametrize(
    ("name", "got", "error"),
    [
        ("loss", result(loss=0.4), 0.1),
        ("gradient norm", result(gradient=(6.0, 8.0)), 1.0),
        ("gradient cosine", result(gradient=(-4.0, 3.0)), 1.0),
        ("gradient cosine", result(gradient=(-3.0, -4.0)), 2.0),
        ("prefix ratio", result(prefix_ratio=1.0), 0.5),
    ],
)
def test_errors(name, got, error):
    errors = compare(got, result())
    assert errors.keys() == TOLERANCE.keys()
    expected = dict.fromkeys(TOLERANCE, 0.0) | {name: error}
    assert errors == pytest.approx(expected)


@pytest.fixture(scope="module")
def policy():
    return update._policy()


@pytest.fixture(scope="module")
def batch(policy):
    return update.mixed_batch(policy)


def test_the_batch_is_mixed_and_clips_where_it_should(policy, batch):
    assert batch.prefix_mask.sum() == update.ROWS // 2 * update.PREFIX
    with torch.no_grad():
        ratio = update.core_algos.token_ratio(update.response_log_probs(policy, batch.ids), batch.old_log_probs)
    outside = (ratio < 0.8) | (ratio > 1.28)
    assert outside[batch.prefix_mask].float().mean() > 0.1 > outside[~batch.prefix_mask].float().mean() > 0


def test_another_objective_is_outside_the_tolerance(policy, batch):
    """GRPO's: prefix tokens answer to the policy at the start of the step."""
    with torch.no_grad():
        start = update.response_log_probs(update._moved(policy, 0.02), batch.ids)
    exact = update.update(policy, batch, CPU, torch.float32)
    errors = compare(update.update(policy, replace(batch, old_log_probs=start), CPU, torch.float32), exact)
    assert all(errors[name] > TOLERANCE[name] for name in ("loss", "gradient cosine", "prefix ratio"))
