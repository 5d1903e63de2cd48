import math
from dataclasses import replace

import pytest
import torch

from soup_verl.method import metrics
from soup_verl.method.metrics import (
    SEGMENTS,
    finish_update_metrics,
    segment_masks,
    step_metrics,
    update_sums,
)
from soup_verl.method.mixing import UNLEARNED
from soup_verl.method.step_batch import StepBatch

NAN = float("nan")
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_segments_split_the_response_mask():
    # mixed, on-policy, all prefix, mixed but with a masked prefix (prefix_objective=masked)
    response = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]])
    prefix = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.int8)
    masks = segment_masks(response, prefix)
    assert tuple(masks) == SEGMENTS
    assert {name: mask.int().tolist() for name, mask in masks.items()} == {
        "prefix": [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
        "continuation": [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]],
        "onpolicy": [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    }


def test_a_response_without_a_token_of_the_current_policy_may_be_a_segment_of_its_own():
    # head of an older policy, wholly of older ones, wholly and partly untrained, on-policy
    response = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]])
    prefix = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.int8)
    masks = segment_masks(response, prefix, stale_apart=True)
    assert tuple(masks) == (*SEGMENTS, metrics.STALE)
    assert {name: mask.int().tolist() for name, mask in masks.items()} == {
        "prefix": [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
        "continuation": [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
        "onpolicy": [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]],
        "stale": [[0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]],
    }


# ---- during the update ----

UPDATE = {
    # ratios: 1.2 and 2.5 in the prefix, 1 and 0.5 in the continuation; on-policy 0.5 and 4
    "log_probs": rows([0.3, 0.5, 0.7, 0.2], [0.2, 0.8, NAN, NAN]).log(),
    "old_log_probs": rows([0.25, 0.2, 0.7, 0.4], [0.4, 0.2, NAN, NAN]).log(),
    "advantages": rows([2, 2, 1, 1], [-1, -3, NAN, NAN]),
    "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "prefix_mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.int8),
}


def test_update_metrics_by_hand():
    assert finish_update_metrics(update_sums(**UPDATE, **CLIP)) == pytest.approx(
        {
            "soup/prefix_ratio_mean": (1.2 + 2.5) / 2,
            "soup/prefix_ratio_max": 2.5,
            "soup/prefix_update_kl_k3": (0.2 - math.log(1.2) + 1.5 - math.log(2.5)) / 2,
            "soup/prefix_clip_fraction": 1 / 2,  # A > 0: 2.5 is above 1.28
            "soup/prefix_dual_clip_fraction": 0,
            "soup/prefix_gradient_lost_share": 2 / 4,
            "soup/continuation_ratio_mean": 0.75,
            "soup/continuation_ratio_max": 1,
            "soup/continuation_update_kl_k3": (math.log(2) - 0.5) / 2,
            "soup/continuation_clip_fraction": 0,  # A > 0: 0.5 keeps its gradient
            "soup/continuation_dual_clip_fraction": 0,
            "soup/continuation_gradient_lost_share": 0,
            "soup/onpolicy_ratio_mean": 2.25,
            "soup/onpolicy_ratio_max": 4,
            "soup/onpolicy_update_kl_k3": (math.log(2) - 0.5 + 3 - math.log(4)) / 2,
            "soup/onpolicy_clip_fraction": 1,  # A < 0: 0.5 is below 0.8, 4 above c = 3
            "soup/onpolicy_dual_clip_fraction": 1 / 2,
            "soup/onpolicy_gradient_lost_share": 1,
        }
    )


def test_dual_clip_is_for_bad_tokens_only():
    sums = update_sums(**{**UPDATE, "advantages": torch.ones(2, 4)}, **CLIP)
    assert sums["onpolicy_clipped"] == 1 and sums["onpolicy_dual_clipped"] == 0  # A > 0 and r = 4


def test_update_metrics_leave_empty_segments_out():
    sums = update_sums(**{**UPDATE, "prefix_mask": torch.zeros(2, 4)}, **CLIP)
    assert {key.split("_")[0] for key in finish_update_metrics(sums)} == {"soup/onpolicy"}


def test_gradient_share_is_left_out_where_there_is_no_gradient():
    finished = finish_update_metrics(update_sums(**{**UPDATE, "advantages": torch.zeros(2, 4)}, **CLIP))
    assert "soup/prefix_ratio_mean" in finished
    assert not any(key.endswith("gradient_lost_share") for key in finished)


def combine(parts):
    """As verl adds up micro-batches: keys with "max" by maximum, the others by sum."""
    return {key: (max if key.endswith("_max") else sum)(p[key] for p in parts) for key in parts[0]}


def test_update_sums_add_up_over_micro_batches():
    torch.manual_seed(0)
    batch = {
        "log_probs": -torch.rand(6, 5) * 2,
        "old_log_probs": -torch.rand(6, 5) * 2,
        "advantages": torch.randn(6, 5),
        "response_mask": torch.arange(5) < torch.tensor([[5], [1], [3], [4], [2], [5]]),
        "prefix_mask": torch.arange(5) < torch.tensor([[2], [0], [3], [0], [1], [0]]),
    }
    whole = update_sums(**batch, **CLIP)
    for cuts in ([1, 5], [3, 3], [2, 2, 2], [1] * 6):
        splits = [tensor.split(cuts) for tensor in batch.values()]
        chunks = [dict(zip(batch, part, strict=True)) for part in zip(*splits, strict=True)]
        parts = [update_sums(**chunk, **CLIP) for chunk in chunks]
        assert combine(parts) == pytest.approx(whole)
        assert finish_update_metrics(combine(parts)) == pytest.approx(finish_update_metrics(whole))


def test_sums_over_ranks_may_be_averaged_instead():
    """verl averages sums over ranks; every metric is a ratio of two sums, so it does not matter."""
    sums = update_sums(**UPDATE, **CLIP)
    halved = {key: value if key.endswith("_max") else value / 2 for key, value in sums.items()}
    assert finish_update_metrics(halved) == pytest.approx(finish_update_metrics(sums))


def test_step_sizes_are_averaged_over_the_updates_of_a_step():
    assert metrics.step_size_metrics([]) == {}
    assert metrics.step_size_metrics([(0.5, 1.0), (0.25, 0.5)]) == {
        "soup/step_size_share_mean": 0.375,
        "soup/step_size_factor_mean": 0.75,
    }


# ---- before the update ----


def step_batch(**changes):
    """Prompts a and b, a mixed and an on-policy response each; 7 tokens are the current policy's own.

    `policy_version` is given a row.
    """
    half, quarter = math.log(0.5), math.log(0.25)
    fields = {
        "uids": ["a", "a", "b", "b"],
        "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]),
        "prefix_mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.int8),
        "policy_version": torch.tensor([3, -1, 1, -1]),
        "current_version": 5,
        # pi / b is 2, 2 and 0.5 on the prefix; elsewhere equal but for 0.07 in one token
        "behavior_log_probs": rows(
            [quarter, quarter, -1, -2], [-1, -1, -1.07, NAN], [half, -3, NAN, NAN], [-1, NAN, NAN, NAN]
        ),
        "old_log_probs": rows([half, half, -1, -2], [-1, -1, -1, NAN], [quarter, -3, NAN, NAN], [-1, NAN, NAN, NAN]),
        "recomputed": True,
        "entropy": rows([1, 2, 1, 1], [2, 2, 2, NAN], [3, 4, NAN, NAN], [6, NAN, NAN, NAN]),
        "rewards": rows(1, 0, 0.5, -1),
        "solved": torch.tensor([True, False, False, False]),
        "answers": ["7", "8", "7", "7"],
    }
    fields |= changes
    version = torch.where(fields["prefix_mask"].bool(), fields["policy_version"].unsqueeze(-1), -1)
    return StepBatch(**{**fields, "policy_version": version})


def test_step_metrics_by_hand():
    ln2 = math.log(2)
    assert step_metrics(step_batch()) == pytest.approx(
        {
            "soup/prefix_tokens_total": 3,
            "soup/continuation_tokens_total": 3,
            "soup/onpolicy_tokens_total": 4,
            "soup/mixed_responses_share": 0.5,
            "soup/prefix_tokens_share": 0.3,
            "soup/prefix_length_mean": 1.5,
            "soup/prefix_length_min": 1,
            "soup/prefix_length_max": 2,
            "soup/policy_age_mean": 3,
            "soup/policy_age_min": 2,
            "soup/policy_age_max": 4,
            "soup/prefix_entropy_mean": 2,
            "soup/continuation_entropy_mean": 2,
            "soup/onpolicy_entropy_mean": 3,
            "soup/prefix_kl_k1": -ln2 / 3,
            "soup/prefix_kl_k3": (2 * (1 - ln2) + (ln2 - 0.5)) / 3,
            "soup/prefix_effective_sample_share": 4.5**2 / (3 * 8.25),
            "soup/mixed_reward_mean": 0.75,
            "soup/onpolicy_reward_mean": -0.5,
            "soup/mixed_solved_rate": 0.5,
            "soup/onpolicy_solved_rate": 0,
            "soup/prompts_solved_by_none_share": 0.5,
            "soup/prompts_solved_by_all_share": 0,
            "soup/prompts_solved_only_mixed_share": 0.5,
            "soup/prompts_solved_only_onpolicy_share": 0,
            "soup/distinct_answers_mean": 1.5,
            "soup/alignment_error_max": 0.07,
            "soup/alignment_error_mean": 0.01,
            "soup/noise_floor_kl_k3": (math.expm1(0.07) - 0.07) / 7,
        },
        rel=1e-5,
        abs=1e-7,
    )


def test_the_noise_floor_is_the_prefix_kl_of_an_unchanged_policy():
    """The same log-probs of trainer and engine, once on tokens of the current policy and once on a prefix: ratios 1.2,
    2.5 and 1 give one k3 under both names, and none of the other segment's tokens enter."""
    engine, trainer = rows([0.25, 0.2, 0.5, 0.3]).log(), rows([0.3, 0.5, 0.5, 0.6]).log()  # the last one: ratio 2
    k3 = (0.2 - math.log(1.2) + 1.5 - math.log(2.5)) / 3

    def found(prefix_mask):
        return step_metrics(
            step_batch(
                uids=["a"],
                response_mask=torch.ones(1, 4),
                prefix_mask=torch.tensor([prefix_mask]),
                policy_version=torch.tensor([4]),
                behavior_log_probs=engine,
                old_log_probs=trainer,
                entropy=None,
                rewards=rows(1),
                solved=torch.tensor([True]),
                answers=None,
            )
        )

    assert found([0, 0, 0, 1])["soup/noise_floor_kl_k3"] == pytest.approx(k3, rel=1e-5)
    assert found([1, 1, 1, 0])["soup/prefix_kl_k3"] == pytest.approx(k3, rel=1e-5)
    assert found([1, 1, 1, 0])["soup/noise_floor_kl_k3"] == pytest.approx(1 - math.log(2), rel=1e-5)


def test_prompts_by_who_solved_them():
    batch = step_batch(
        uids=["all", "all", "on", "on", "none", "none", "mix", "mix"],
        response_mask=torch.ones(8, 2),
        prefix_mask=torch.tensor([[1, 0], [0, 0]] * 4),
        policy_version=torch.tensor([3, -1] * 4),
        solved=torch.tensor([True, True, False, True, False, False, True, False]),
    )
    assert metrics._prompts_by_kind(replace(batch, answers=None)) == {
        "soup/prompts_solved_by_none_share": 0.25,
        "soup/prompts_solved_by_all_share": 0.25,
        "soup/prompts_solved_only_mixed_share": 0.25,
        "soup/prompts_solved_only_onpolicy_share": 0.25,
    }


def test_prefix_kl_by_age_by_hand():
    ln2 = math.log(2)
    found = metrics.prefix_kl_by_age(step_batch())  # ages 5 - 3 and 5 - 1, ratios 2 and 2, and 0.5
    assert {age: tokens for age, (_, tokens) in found.items()} == {2: 2, 4: 1}
    assert found[2][0] == pytest.approx(1 - ln2, rel=1e-5) and found[4][0] == pytest.approx(ln2 - 0.5, rel=1e-5)


def test_rows_of_one_age_are_taken_together():
    ln2 = math.log(2)
    found = metrics.prefix_kl_by_age(step_batch(policy_version=torch.tensor([3, -1, 3, -1])))
    assert list(found) == [2] and found[2][1] == 3
    assert found[2][0] == pytest.approx((2 * (1 - ln2) + (ln2 - 0.5)) / 3, rel=1e-5)


def test_by_age_and_over_all_the_prefix_kl_is_the_same():
    batch = step_batch()
    by_age = metrics.prefix_kl_by_age(batch).values()
    mean = sum(kl * n for kl, n in by_age) / sum(n for _, n in by_age)
    assert mean == pytest.approx(step_metrics(batch)["soup/prefix_kl_k3"])


@pytest.mark.parametrize("absent", [{"recomputed": False}, {"behavior_log_probs": None}])
def test_prefix_kl_by_age_is_not_made_up(absent):
    assert metrics.prefix_kl_by_age(step_batch(**absent)) == {}


def test_a_prefix_of_two_policies_has_two_ages_and_the_newer_ones_as_its_own():
    batch = step_batch()
    versions = batch.policy_version.clone()
    versions[0, 0] = 1
    batch = replace(batch, policy_version=versions)
    ln2 = math.log(2)
    found = metrics.prefix_kl_by_age(batch)  # ratio 2 at age 2; 2 and 0.5 at age 4
    assert {age: tokens for age, (_, tokens) in found.items()} == {2: 1, 4: 2}
    assert found[4][0] == pytest.approx((1 - ln2 + ln2 - 0.5) / 2, rel=1e-5)
    assert batch.response_version.tolist() == [3, -1, 1, -1]


def test_solved_rates_by_hand():
    assert metrics.solved_rates(step_batch(uids=["a", "a", "b", "a"])) == {"a": pytest.approx(1 / 3), "b": 0.0}


def test_without_a_mixed_response_there_is_no_prefix_kl_by_age():
    batch = step_batch(prefix_mask=torch.zeros(4, 4), policy_version=torch.full((4,), -1))
    assert metrics.prefix_kl_by_age(batch) == {} and metrics.prefix_kl_metrics({}) == {}


def test_historical_tokens_in_the_middle_and_at_the_end_are_the_ones_measured():
    middle = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    batch = step_batch(prefix_mask=middle, policy_version=torch.tensor([-1, 4, -1, -1]))
    log_ratio = 0.07
    assert metrics.prefix_kl_by_age(batch)[1] == (pytest.approx(math.expm1(log_ratio) - log_ratio, rel=1e-3), 1)
    found = step_metrics(batch)
    assert found["soup/prefix_tokens_total"] == 1 and found["soup/continuation_tokens_total"] == 2
    assert found["soup/alignment_error_max"] == pytest.approx(math.log(2))  # rows 0 and 2 are on-policy now


def test_ages_are_reported_by_powers_of_two():
    by_age = {1: (0.5, 1), 2: (1.0, 3), 3: (2.0, 1), 4: (4.0, 1), 7: (6.0, 1), 8: (9.0, 2), 100: (3.0, 1)}
    assert metrics.prefix_kl_metrics(by_age) == pytest.approx(
        {
            "soup/prefix_kl_k3_age_1_1": 0.5,
            "soup/prefix_kl_k3_age_2_3": 1.25,  # (3 x 1 + 1 x 2) / 4 tokens
            "soup/prefix_kl_k3_age_4_7": 5.0,
            "soup/prefix_kl_k3_age_8_15": 9.0,
            "soup/prefix_kl_k3_age_64_127": 3.0,
        }
    )


def test_a_batch_without_history_leaves_prefix_metrics_out():
    metrics = step_metrics(step_batch(prefix_mask=torch.zeros(4, 4), policy_version=torch.full((4,), -1)))
    assert metrics["soup/mixed_responses_share"] == metrics["soup/prefix_tokens_share"] == 0
    assert metrics["soup/onpolicy_tokens_total"] == 10
    absent = ("prefix_length", "policy_age", "prefix_kl", "prefix_effective", "prefix_entropy", "continuation_entropy")
    assert not any(key.startswith(tuple(f"soup/{name}" for name in absent)) for key in metrics)
    assert not any("mixed_reward" in key or "only_mixed" in key for key in metrics)


@pytest.mark.parametrize(
    ("absent", "lost"),
    [
        ({"entropy": None}, {"prefix_entropy_mean", "continuation_entropy_mean", "onpolicy_entropy_mean"}),
        ({"answers": None}, {"distinct_answers_mean"}),
        (
            {"recomputed": False},
            {
                "prefix_kl_k1",
                "prefix_kl_k3",
                "prefix_effective_sample_share",
                "alignment_error_max",
                "alignment_error_mean",
                "noise_floor_kl_k3",
            },
        ),
    ],
)
def test_metrics_of_what_was_not_computed_are_left_out(absent, lost):
    missing = set(step_metrics(step_batch())) - set(step_metrics(step_batch(**absent)))
    assert missing == {f"soup/{name}" for name in lost}


def test_all_prefix_batch_has_no_alignment_error():
    masks = torch.ones(4, 4)
    finite = torch.zeros(4, 4)
    metrics = step_metrics(
        step_batch(
            response_mask=masks, prefix_mask=masks, old_log_probs=finite, behavior_log_probs=finite, entropy=finite
        )
    )
    assert metrics["soup/prefix_tokens_share"] == 1
    assert not any("alignment" in key or "noise_floor" in key or "onpolicy_reward" in key for key in metrics)


def test_metrics_surface_a_nan_in_a_generated_token():
    entropy = step_batch().entropy.clone()
    entropy[1, 0] = NAN
    assert math.isnan(step_metrics(step_batch(entropy=entropy))["soup/onpolicy_entropy_mean"])


# ---- a policy without an age ----


def test_an_unlearned_copy_has_no_age_and_yet_a_kl():
    """Rows 0 and 2 are mixed; the first by the copy, which is neither 0 nor 5 - 2**30 steps old."""
    batch = step_batch(policy_version=torch.tensor([UNLEARNED, -1, 1, -1]))
    assert batch.policy_age[batch.prefix_mask.bool()].tolist() == [-1, -1, 4]
    found = metrics.step_metrics(batch)
    assert found["soup/policy_age_min"] == found["soup/policy_age_max"] == 4
    assert batch.response_version.tolist() == [UNLEARNED, -1, 1, -1]
    by_age = metrics.prefix_kl_by_age(batch)
    assert {age: n for age, (_, n) in by_age.items()} == {-1: 2, 4: 1}
    assert by_age[-1][0] == pytest.approx(metrics.prefix_kl_by_age(step_batch())[2][0])
    assert list(metrics.prefix_kl_metrics(by_age)) == ["soup/prefix_kl_k3_age_4_7"]


def test_a_batch_of_copies_reports_no_age_at_all():
    found = metrics.step_metrics(step_batch(policy_version=torch.tensor([UNLEARNED, -1, UNLEARNED, -1])))
    assert not [key for key in found if "policy_age" in key] and found["soup/prefix_length_mean"] == 1.5
