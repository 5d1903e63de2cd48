"""Settings and decisions of `soup.source=inflight`, on a batch small enough to check by hand."""

import math

import pytest
import torch

from soup_verl.method import core_algos, metrics, step
from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.history.kl_control import NoiseWatch
from soup_verl.method.observation import History
from soup_verl.method.step_batch import StepBatch

SECTION = {"source": "inflight", "mixed_fraction": 1}
NAN = math.nan


def batch():
    """Version 5 is current. Responses: of versions 3, 4 and 5; of 4 alone; of 5 alone; of 2 and 4."""
    versions = torch.tensor([[3, 4, 5], [4, 4, -1], [5, -1, -1], [2, 4, -1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]])
    prefix = (mask.bool() & (versions < 5)).to(torch.int8)
    return StepBatch(
        uids=["a", "a", "b", "b"],
        response_mask=mask,
        prefix_mask=prefix,
        policy_version=torch.where(prefix.bool(), versions, -1),
        current_version=5,
        behavior_log_probs=torch.tensor([[-1.0, -1, -1], [-1, -1, NAN], [-1, NAN, NAN], [-2, -1, NAN]]),
        old_log_probs=torch.tensor([[-2.0, -1, -1.1], [-1, -1, NAN], [-1, NAN, NAN], [-1, -1, NAN]]),
        recomputed=True,
        entropy=None,
        rewards=torch.tensor([1.0, 0.0, 0.5, 0.25]),
        solved=torch.tensor([True, False, False, False]),
        answers=None,
        stale_apart=True,
    )


def test_the_baseline_of_each_sampler_goes_by_the_newest_historical_policy_in_a_response():
    versions = batch().response_version.tolist()
    assert versions == [4, 4, -1, 4]
    assert core_algos.sampler_groups(batch().uids, versions) == [("a", 4), ("a", 4), ("b", -1), ("b", 4)]


def test_counts_lengths_ages_and_rewards_by_segment():
    found = metrics.step_metrics(batch())
    expected = {
        "prefix_tokens_total": 2,
        "continuation_tokens_total": 1,
        "onpolicy_tokens_total": 1,
        "stale_tokens_total": 4,
        "mixed_responses_share": 0.25,
        "stale_responses_share": 0.5,
        "prefix_tokens_share": 0.25,
        "stale_tokens_share": 0.5,
        "prefix_length_mean": 2,
        "policy_age_mean": (2 + 1 + 1 + 1 + 3 + 1) / 6,  # of tokens
        "policy_age_min": 1,
        "policy_age_max": 3,
        "mixed_reward_mean": 1,
        "stale_reward_mean": 0.125,
        "onpolicy_reward_mean": 0.5,
        "mixed_solved_rate": 1,
        "stale_solved_rate": 0,
        "alignment_error_max": 0.1,  # of the two tokens of version 5
        "alignment_error_mean": 0.05,
    }
    assert {name: found[f"soup/{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_kl_by_segment_and_by_age():
    """log pi_5 - log pi_h is -1 on the token of version 3, 1 on that of version 2, and 0 on the others."""
    down, up = math.exp(-1.0) + 1 - 1, math.exp(1.0) - 1 - 1  # k3 = r - 1 - ln r
    found = metrics.step_metrics(batch())
    assert found["soup/prefix_kl_k3"] == pytest.approx(down / 2)
    assert found["soup/stale_kl_k3"] == pytest.approx(up / 4)
    by_age = {1: (pytest.approx(0.0), 4), 2: (pytest.approx(down), 1), 3: (pytest.approx(up), 1)}
    assert metrics.prefix_kl_by_age(batch()) == by_age


def test_every_older_token_has_its_own_policys_anchor():
    tokens, found = step.trained_tokens(batch(), SoupConfig.parse(SECTION))
    assert tokens.old_log_probs[0].tolist() == pytest.approx([-1, -1, -1.1])
    assert tokens.old_log_probs[3, :2].tolist() == [-2, -1]
    assert tokens.response_mask is not None and tokens.response_mask.sum() == 8 and found == {}


@pytest.mark.parametrize(
    ("limit", "masks", "total"),
    [
        (3, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]], 0),
        (2, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]], 1),
        (1, [[0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]], 2),
    ],
)
def test_tokens_of_policies_past_the_age_limit_are_not_trained_and_counted(limit, masks, total):
    soup = SoupConfig.parse({**SECTION, "inflight": {"max_policy_age": limit}})
    tokens, found = step.trained_tokens(batch(), soup)
    assert tokens.response_mask.tolist() == masks and found == {"soup/too_old_tokens_total": total}


def test_both_limits_hold_together():
    """From the first token on, k3 is past the limit in the responses of versions 3 and 2: .37 and .72."""
    limits = {"kl_control": {"max_prefix_kl": 0.2}, "inflight": {"max_policy_age": 2}}
    tokens, found = step.trained_tokens(batch(), SoupConfig.parse({**SECTION, **limits}))
    assert tokens.response_mask.tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert found == {"soup/prefix_tokens_cut_share": pytest.approx(4 / 6), "soup/too_old_tokens_total": 1}


def test_the_history_reports_kl_by_age_and_watches_for_a_collapse_without_a_source():
    soup = SoupConfig.parse({**SECTION, "kl_control": {"min_prefix_kl": 1.0, "patience": 1}})
    history = History(soup, step.plan_of_run(soup, n=2, response_length=3, last_step=9))
    found, warnings = history.observe(batch(), key_of_uid={}, responses=list)
    assert found["soup/prefix_kl_k3_age_2_3"] == pytest.approx((math.exp(-1) + math.exp(1) - 2) / 2)
    assert found["soup/prefix_kl_low_steps"] == 1 and "prefix KL has been under" in " ".join(warnings)
    assert found["soup/decode_tokens_total"] == 8 and "soup/mixed_fraction" not in found


def test_the_noise_is_compared_with_stale_tokens_where_there_are_no_others():
    soup = SoupConfig.parse({**SECTION, "kl_control": {"min_prefix_kl": 0.1}})
    warning = NoiseWatch(soup).warning({"soup/stale_kl_k3": 1e-3, "soup/noise_floor_kl_k3": 9e-4})
    assert warning is not None and "stale" in warning and "behavior_log_probs" not in warning


def test_the_segment_is_told_to_the_loss():
    assert step.InLoss.of(SoupConfig.parse(SECTION)).stale_apart
    assert not step.InLoss.of(SoupConfig()).stale_apart


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mixed_fraction": 0.5}, "soup.mixed_fraction=0.5: expected 1 or 0 with soup.source=inflight"),
        ({"behavior_log_probs": "actor"}, "soup.behavior_log_probs='actor': expected rollout with soup.source=infl"),
        ({"when": "unsolved"}, "soup.when='unsolved': expected 'always', the default, with soup.source=inflight"),
        ({"start_at_solved_rate": 0.5}, "soup.start_at_solved_rate=0.5: expected None"),
        ({"position": "whole"}, "soup.position='whole': expected 'prefix'"),
        ({"warm_start": True}, "soup.warm_start=True: expected False"),
        ({"prefix_length": {"high": 8}}, "soup.prefix_length.high=8: expected None, the default"),
        (
            {"mixed_fraction_schedule": {"shape": "linear", "final": 0.5}},
            "soup.mixed_fraction_schedule.shape='linear': expected 'constant', the default",
        ),
        ({"inflight": {"max_policy_age": 0}}, "soup.inflight.max_policy_age=0: expected an integer of at least 1"),
    ],
)
def test_what_means_nothing_without_a_plan_is_refused_in_one_line(section, message):
    with pytest.raises(ConfigError) as caught:
        SoupConfig.parse({**SECTION, **section})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_switched_off_it_is_grpo():
    soup = SoupConfig.parse({**SECTION, "mixed_fraction": 0})
    assert not soup.mixing and not soup.interrupted and not soup.planned
