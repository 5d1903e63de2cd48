"""verl's correction for the rollout engine's numerics, and its KL penalty in the reward, on the fields SOUP writes
before verl's advantage stage: what each segment's tokens are multiplied with in the end. `run_rules.py` allows what is
right on every segment and refuses the rest."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from transfer_queue import KVBatchMeta
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import FixedKLController
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch

from soup_verl.method.config import SoupConfig
from soup_verl.method.core_algos import PREFIX_OBJECTIVES
from soup_verl.method.step import trained_tokens
from soup_verl.method.step_batch import StepBatch
from soup_verl.stack import batch as batches
from tests.contract.test_objectives import verl_gradient

pytestmark = pytest.mark.contract

# Row 0: two prefix tokens and two of the continuation. Row 1: three on-policy tokens, one of padding.
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
PREFIX = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
P_ENGINE = torch.tensor([[0.25, 0.5, 0.4, 0.5], [0.5, 0.8, 0.4, 1]])  # of what sampled the token: pi_h on the prefix
P_OLD = torch.tensor(
    [[0.5, 0.125, 0.5, 0.75], [0.4, 0.8, 0.6, 1]]
)  # the trainer's: 2, .25, 1.25, 1.5; .8, 1, 1.5 of it
P_NEW = torch.tensor([[0.3, 0.6, 0.5, 0.75], [0.4, 0.8, 0.6, 1]])  # being trained: 1.2 of pi_h, elsewhere not moved yet
CAP = 1.4


def written(monkeypatch, objective):
    """verl's batch as its advantage stage reads it, after SOUP has written its fields."""
    put = {}
    monkeypatch.setattr(batches.tq, "kv_batch_put", lambda *, keys, partition_id, fields: put.update(fields.items()))
    lengths = [torch.ones(4, dtype=torch.int64), torch.ones(3, dtype=torch.int64)]
    responses = StepBatch(
        uids=["u", "u"],
        response_mask=MASK,
        prefix_mask=PREFIX,
        policy_version=torch.where(PREFIX.bool(), 3, -1),
        current_version=5,
        behavior_log_probs=P_ENGINE.log(),
        old_log_probs=P_OLD.log(),
        recomputed=True,
        entropy=None,
        rewards=torch.zeros(2),
        solved=torch.zeros(2, dtype=torch.bool),
        answers=None,
    )
    stored = batches.StoredBatch(
        responses, [0, 1], torch.nested.as_nested_tensor(lengths, layout=torch.jagged), [[], []], ["", ""]
    )
    batch = KVBatchMeta(partition_id="train", keys=["u_0_0", "u_1_0"], tags=[{}, {}])
    tokens, _ = trained_tokens(responses, SoupConfig(prefix_objective=objective))
    batches.write_trained_tokens(batch, stored, tokens)
    ours = TensorDict(put, batch_size=2).to_padded_tensor()
    verls = {"old_log_probs": P_OLD.log(), "response_mask": MASK, "rollout_log_probs": P_ENGINE.log()}
    return DataProto(batch=TensorDict({**verls, **ours}, batch_size=2))


def corrected(monkeypatch, objective, **settings):
    batch, _ = compute_rollout_correction_and_add_to_batch(written(monkeypatch, objective), settings)
    return batch.batch


@pytest.mark.parametrize(
    ("objective", "rollout_is", "total"),
    [
        # behavior: r against pi_h on the prefix; elsewhere pi_theta / engine, truncated: 1.5 becomes 1.4
        ("behavior", "token", [[1.2, 1.2, 1.25, 1.4], [0.8, 1, 1.4, 0]]),
        # the continuation's product 1.25 x 1.5 = 1.875, truncated to 1.4, for the whole response; on-policy 1.2
        ("behavior", "sequence", [[1.4 * 1.2, 1.4 * 1.2, 1.4, 1.4], [1.2, 1.2, 1.2, 0]]),
        ("masked", "token", [[0, 0, 1.25, 1.4], [0.8, 1, 1.4, 0]]),
        ("masked", "sequence", [[0, 0, 1.4, 1.4], [1.2, 1.2, 1.2, 0]]),
    ],
)
def test_what_each_tokens_gradient_is_multiplied_with(monkeypatch, objective, rollout_is, total):
    batch = corrected(monkeypatch, objective, rollout_is=rollout_is, rollout_is_threshold=CAP)
    gradient = verl_gradient(
        P_NEW.log(),
        batch["old_log_probs"],
        torch.ones(2, 4),
        batch["response_mask"],
        "token-sum",
        rollout_is_weights=batch["rollout_is_weights"],
    )
    assert_close(gradient, torch.tensor(total).float())


@pytest.mark.parametrize(("rollout_is", "weights"), [("token", [1, 1, 1.25, 1.4]), ("sequence", [1.4, 1.4, 1.4, 1.4])])
def test_shaped_prefix_tokens_get_no_weight_of_their_own(monkeypatch, rollout_is, weights):
    """Whose own factor p / (p + gamma) has no ratio in it."""
    batch = corrected(monkeypatch, "shaped", rollout_is=rollout_is, rollout_is_threshold=CAP)
    assert_close(batch["rollout_is_weights"][0], torch.tensor(weights).float())


def test_decoupled_prefix_tokens_would_be_corrected_twice(monkeypatch):
    """Refused: verl's weight is the ratio to pi_h that the advantage has already."""
    batch = corrected(monkeypatch, "decoupled", rollout_is="token", rollout_is_threshold=CAP)
    assert_close(batch["rollout_is_weights"][0, :2], torch.tensor([1.4, 0.25]))
    ours = PREFIX_OBJECTIVES["decoupled"].weight(P_OLD.log(), P_ENGINE.log(), cap=CAP)
    assert_close(ours[0, :2], torch.tensor([1.4, 0.25]))


ALL, GONE = [1, 1, 1, 1], [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rollout_rs", "threshold", "mixed", "onpolicy"),
    [
        # k3 of 1.25, 1.5, .8 and 1: .027, .095, .023 and 0; of the prefix to pi_old, .307 and .636, which is not asked
        ("token_k3", 0.05, [1, 1, 1, 0], [1, 1, 0, 0]),
        ("seq_sum_k3", 0.12, GONE, [1, 1, 1, 0]),  # .121 and .118
        ("seq_max_k3", 0.09, GONE, GONE),
        ("seq_sum_k1", "0.6_1.6", GONE, [1, 1, 1, 0]),  # 1 / 1.875 = .53 and 1 / 1.2 = .83
    ],
)
@pytest.mark.parametrize("objective", ["behavior", "shaped", "masked"])
def test_a_response_is_rejected_by_what_the_current_policy_sampled(
    monkeypatch, objective, rollout_rs, threshold, mixed, onpolicy
):
    batch = corrected(monkeypatch, objective, rollout_rs=rollout_rs, rollout_rs_threshold=threshold)
    trained = 1 - PREFIX[0] if objective == "masked" else 1
    assert batch["response_mask"].tolist() == [(torch.tensor(mixed) * trained).tolist(), onpolicy]


@pytest.mark.parametrize(("objective", "mixed"), [("behavior", ALL), ("shaped", ALL), ("masked", GONE)])
def test_a_mean_over_the_response_is_diluted_by_its_prefix(monkeypatch, objective, mixed):
    """Refused but for `masked`: .121 over the continuation's 2 tokens is .061, over all 4 it is .030."""
    batch = corrected(monkeypatch, objective, rollout_rs="seq_mean_k3", rollout_rs_threshold=0.05)
    assert batch["response_mask"].tolist() == [mixed, [1, 1, 1, 0]]  # .118 over 3 is .039


@pytest.mark.parametrize(("objective", "penalised"), [("behavior", [0.25, 0.5]), ("decoupled", [0.5, 0.125])])
def test_the_kl_in_the_reward_is_not_the_current_policys_on_a_prefix(monkeypatch, objective, penalised):
    """Refused. With `behavior` it is log pi_h - log pi_ref. With log pi_old, as with `decoupled`, the mean over tokens
    of pi_h is KL(pi_h || pi_ref) - KL(pi_h || pi_old), which falls as the prefix gets older: a mixed response
    would seem better than an on-policy one of the same group."""
    batch = written(monkeypatch, objective)
    batch.batch["token_level_scores"] = torch.zeros(2, 4)
    batch.batch["ref_log_prob"] = torch.full((2, 4), 0.125).log()
    penalty, _ = apply_kl_penalty(batch, FixedKLController(kl_coef=0.5))
    expected = -0.5 * (torch.tensor([*penalised, 0.5, 0.75]) / 0.125).log()
    assert_close(penalty.batch["token_level_rewards"][0], expected)
