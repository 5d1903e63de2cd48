import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from soup_verl.register import Segments, batch_segments, compute_soup_advantage

REWARDS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def segments(**changes):
    fields = {
        "counted": torch.tensor([True, True]),
        "is_mixed": torch.tensor([True, False]),
        "prefix_mask": torch.tensor([[1, 0, 0], [0, 0, 0]]),
        "prefix_weight": torch.full((2, 3), 0.5),
        "baseline": "shared",
        "norm_by_std": False,
    }
    return Segments(**{**fields, **changes})


def advantages(**changes):
    with batch_segments(segments(**changes)):
        spread, returns = compute_soup_advantage(REWARDS, MASK, ["a", "a"], config=None, reward_baselines=None)
    assert returns is spread
    return spread.tolist()


def test_verl_finds_the_estimator_by_its_name():
    assert get_adv_estimator_fn("soup") is compute_soup_advantage


def test_advantages_of_a_small_batch():
    # rewards 1 and 3, mean 2; the prefix token carries half
    assert advantages() == [[-0.5, -1, -1], [1, 1, 0]]


def test_split_baseline_reaches_the_groups():
    assert advantages(baseline="split", prefix_mask=None, prefix_weight=None) == [[1, 1, 1], [3, 3, 0]]


def test_counted_reaches_the_statistics():
    assert advantages(counted=torch.tensor([True, False]))[1] == [3, 3, 0]


def test_outside_of_a_step_the_estimator_says_what_is_missing():
    advantages()  # a block that has ended leaves nothing behind
    with pytest.raises(ValueError, match="trainer.v1.trainer_mode=soup"):
        compute_soup_advantage(REWARDS, MASK, ["a", "a"])


def test_a_block_that_fails_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), batch_segments(segments()):
        raise ZeroDivisionError
    with pytest.raises(ValueError):
        compute_soup_advantage(REWARDS, MASK, ["a", "a"])
