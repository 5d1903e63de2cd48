"""Every ablation and neighbour trains for real: four steps each on the same stack, the last two with history."""

import math

import pytest
import torch

from tests.e2e.examples import STEPS, in_one_run

MIXING = [n for n in in_one_run() if n not in ("neighbors/grpo", "neighbors/dr_grpo", "neighbors/opo")]
pytestmark = pytest.mark.runs("examples")


@pytest.fixture
def finished(run):
    examples = run("examples")
    assert examples.code == 0, examples.output[-3000:]
    return examples


def steps_of(name):
    first = in_one_run().index(name) * STEPS + 1
    return range(first, first + STEPS)


def settled(run, name):
    """Metrics of the last two steps of an example."""
    return [run.metrics()[step] for step in steps_of(name)[-2:]]


@pytest.mark.parametrize("name", in_one_run())
def test_it_trains_and_every_logged_number_is_finite(finished, name):
    for step in steps_of(name):
        metrics = finished.metrics()[step]
        assert all(math.isfinite(v) for v in metrics.values()), {k: v for k, v in metrics.items() if v != v}
        assert metrics["actor/grad_norm"] > 0


@pytest.mark.parametrize("name", in_one_run())
def test_mixed_responses_appear_where_the_example_mixes_and_nowhere_else(finished, name):
    shares = [m.get("soup/mixed_responses_share", 0.0) for m in settled(finished, name)]
    if name in MIXING:
        assert min(shares) > 0, shares
    else:
        assert shares == [0.0, 0.0]


@pytest.mark.parametrize("name", MIXING)
def test_tokens_of_the_current_policy_have_the_trainers_log_probs(finished, name):
    """Whatever stands before, between or after the historical tokens."""
    assert all(m["soup/alignment_error_max"] < 1e-4 for m in settled(finished, name))


def mixed_rows(run, name):
    return [row for step in steps_of(name)[-2:] for row in run.rows(step) if row["prefix_mask"].any()]


def test_a_warm_start_has_history_from_the_second_step_on(finished):
    """Of age 2; without it steps 1 and 2 would have none."""
    ages = [finished.metrics()[step].get("soup/policy_age_max") for step in steps_of("more/warm_start")]
    assert ages == [None, 1, 2, 2]


def test_suffix_ends_with_historical_tokens_after_a_head_of_the_current_policy(finished):
    masks = [row["prefix_mask"].tolist() for row in mixed_rows(finished, "more/suffix")]
    assert masks and all(1 <= m.index(1) <= 4 and all(m[m.index(1) :]) for m in masks)


def test_middle_puts_historical_tokens_between_tokens_of_the_current_policy(finished):
    masks = [row["prefix_mask"].tolist() for row in mixed_rows(finished, "ablations/position")]
    assert masks and all(m[0] == 0 and 1 <= sum(m) <= 4 and "1" * sum(m) in "".join(map(str, m)) for m in masks)
    assert any(m[-1] == 0 for m in masks)


def test_replayed_tokens_are_not_decoded_again(finished):
    for metrics in settled(finished, "ablations/source"):
        tokens = metrics["soup/continuation_tokens_total"] + metrics["soup/onpolicy_tokens_total"]
        assert metrics["soup/decode_tokens_total"] == tokens and metrics["soup/prefix_tokens_total"] > 0


def test_replayed_prefixes_are_heads_of_the_prompts_own_earlier_responses(finished):
    steps = steps_of("ablations/source")
    for step in steps[-2:]:
        earlier = {
            (int(row["index"]), tuple(row["responses"].tolist()[:length]))
            for before in range(steps[0], step)
            for row in finished.rows(before)
            for length in range(1, 17)
        }
        for row in finished.rows(step):
            length = int(row["prefix_mask"].sum())
            if length:
                assert (int(row["index"]), tuple(row["responses"].tolist()[:length])) in earlier


def test_a_whole_replayed_response_leaves_only_its_end_to_the_current_policy(finished):
    assert all(m["soup/prefix_length_mean"] > 8 for m in settled(finished, "neighbors/repo"))


def test_two_ages_share_the_mixed_responses(finished):
    """Of the ages 2 and 8 only the younger has history after four steps: half of the mixed responses."""
    for metrics in settled(finished, "ablations/age"):
        assert metrics["soup/policy_age_max"] == 2 and metrics["soup/mixed_responses_share"] == 0.25


def test_the_schedule_of_the_mixed_fraction_is_followed(finished):
    total = STEPS * len(in_one_run())
    for step in steps_of("ablations/schedule")[-2:]:
        expected = 0.5 * (1 + math.cos(math.pi * (step - 1) / (total - 1))) / 2
        metrics = finished.metrics()[step]
        assert metrics["soup/mixed_fraction"] == pytest.approx(expected)
        assert metrics["soup/mixed_responses_share"] <= round(expected * 8) / 8


def test_masked_prefixes_are_in_no_loss(finished):
    for row in mixed_rows(finished, "neighbors/prefix_rl"):
        assert row["response_mask"][row["prefix_mask"].bool()].sum() == 0


def test_tokens_past_the_kl_limit_are_masked_and_counted(finished):
    for step in steps_of("ablations/kl_control")[-2:]:
        rows = [row for row in finished.rows(step) if row["prefix_mask"].any()]
        prefix = torch.cat([row["prefix_mask"].bool() for row in rows])
        trained = torch.cat([row["response_mask"].bool() for row in rows])
        share = finished.metrics()[step]["soup/prefix_tokens_cut_share"]
        assert share == pytest.approx((prefix & ~trained).sum().item() / prefix.sum().item())


@pytest.mark.runs("dapo")
def test_dapo_replaces_groups_without_a_signal(run):
    dapo = run("dapo")
    assert dapo.code == 0, dapo.output[-3000:]
    for step in (1, 2):
        rewards: dict[int, set[float]] = {}
        for row in dapo.rows(step):
            rewards.setdefault(int(row["index"]), set()).add(round(float(row["rm_scores"].sum()), 6))
        assert len(dapo.rows(step)) == 32 and all(len(values) > 1 for values in rewards.values())
