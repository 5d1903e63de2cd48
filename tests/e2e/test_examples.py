"""Every ablation and neighbour trains for real: four steps each, one after the other on the same processes."""

import math

import pytest
import torch

from tests.e2e.examples import LAST, names, steps

NAMES = names()
MIXING = [n for n in NAMES if n not in ("neighbors/grpo", "neighbors/dapo", "neighbors/dr_grpo", "neighbors/opo")]


def each(names):
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in names])


@pytest.fixture
def finished(run, request):
    """The run that the test's mark names."""
    (mark,) = request.node.iter_markers("runs")
    example = run(mark.args[0])
    assert example.code == 0, example.output[-3000:]
    return example


def settled(run):
    """Metrics of steps that have history."""
    return [run.metrics()[step] for step in LAST]


@pytest.mark.runs(NAMES[0])
def test_one_set_of_processes_served_them_all(finished):
    assert finished.output.count("Started a local Ray instance") == 1


@each(NAMES)
def test_it_trains_and_every_logged_number_is_finite(finished, name):
    assert list(finished.metrics()) == list(range(1, steps(name) + 1))
    for metrics in finished.metrics().values():
        assert all(math.isfinite(v) for v in metrics.values()), {k: v for k, v in metrics.items() if v != v}
        assert metrics["actor/grad_norm"] > 0


@each(NAMES)
def test_mixed_responses_appear_where_the_example_mixes_and_nowhere_else(finished, name):
    shares = [m.get("soup/mixed_responses_share", 0.0) for m in settled(finished)]
    if name in MIXING:
        assert min(shares) > 0, shares
    else:
        assert shares == [0.0, 0.0]


@each(MIXING)
def test_tokens_of_the_current_policy_have_the_trainers_log_probs(finished, name):
    """Whatever stands before, between or after the historical tokens."""
    assert all(m["soup/alignment_error_max"] < 1e-4 for m in settled(finished))


def mixed_rows(run):
    return [row for step in LAST for row in run.rows(step) if row["prefix_mask"].any()]


@pytest.mark.runs("more/warm_start")
def test_a_warm_start_has_history_from_the_second_step_on(finished):
    """Of age 2; without it steps 1 and 2 would have none."""
    ages = [finished.metrics()[step].get("soup/policy_age_max") for step in (1, 2, 3, 4)]
    assert ages == [None, 1, 2, 2]


@pytest.mark.runs("more/suffix")
def test_suffix_ends_with_historical_tokens_after_a_head_of_the_current_policy(finished):
    masks = [row["prefix_mask"].tolist() for row in mixed_rows(finished)]
    assert masks and all(1 <= m.index(1) <= 4 and all(m[m.index(1) :]) for m in masks)


@pytest.mark.runs("ablations/position")
def test_middle_puts_historical_tokens_between_tokens_of_the_current_policy(finished):
    masks = [row["prefix_mask"].tolist() for row in mixed_rows(finished)]
    assert masks and all(m[0] == 0 and 1 <= sum(m) <= 7 and "1" * sum(m) in "".join(map(str, m)) for m in masks)
    assert any(m[-1] == 0 for m in masks)


@pytest.mark.runs("ablations/source")
def test_replayed_tokens_are_not_decoded_again(finished):
    for metrics in settled(finished):
        tokens = metrics["soup/continuation_tokens_total"] + metrics["soup/onpolicy_tokens_total"]
        assert metrics["soup/decode_tokens_total"] == tokens and metrics["soup/prefix_tokens_total"] > 0


@pytest.mark.runs("ablations/source")
def test_replayed_prefixes_are_heads_of_the_prompts_own_earlier_responses(finished):
    for step in LAST:
        earlier = {
            (int(row["index"]), tuple(row["responses"].tolist()[:length]))
            for before in range(1, step)
            for row in finished.rows(before)
            for length in range(1, 17)
        }
        for row in finished.rows(step):
            length = int(row["prefix_mask"].sum())
            if length:
                assert (int(row["index"]), tuple(row["responses"].tolist()[:length])) in earlier


@pytest.mark.runs("neighbors/repo")
def test_a_whole_replayed_response_leaves_only_its_end_to_the_current_policy(finished):
    assert all(m["soup/prefix_length_mean"] > 8 for m in settled(finished))


@pytest.mark.runs("ablations/age")
def test_two_ages_share_the_mixed_responses(finished):
    """Ages 2 and 8: until step 8 only the younger has history, for half of the mixed responses."""
    shares = {step: metrics["soup/mixed_responses_share"] for step, metrics in finished.metrics().items() if step > 2}
    assert all(share <= (0.25 if step <= 8 else 0.5) for step, share in shares.items()) and max(shares.values()) > 0.25
    for step in (9, 10):
        metrics = finished.metrics()[step]
        assert (metrics["soup/policy_age_min"], metrics["soup/policy_age_max"]) == (2, 8)


@pytest.mark.runs("ablations/schedule")
def test_the_schedule_of_the_mixed_fraction_is_followed(finished):
    for step in LAST:
        expected = 0.5 * (1 + math.cos(math.pi * (step - 1) / 7)) / 2
        metrics = finished.metrics()[step]
        assert metrics["soup/mixed_fraction"] == pytest.approx(expected)
        assert metrics["soup/mixed_responses_share"] <= round(expected * 4) / 4


@pytest.mark.runs("neighbors/prefix_rl")
def test_masked_prefixes_are_in_no_loss(finished):
    for row in mixed_rows(finished):
        assert row["response_mask"][row["prefix_mask"].bool()].sum() == 0


@pytest.mark.runs("ablations/kl_control")
def test_tokens_past_the_kl_limit_are_masked_and_counted(finished):
    for step in LAST:
        rows = [row for row in finished.rows(step) if row["prefix_mask"].any()]
        prefix = torch.cat([row["prefix_mask"].bool() for row in rows])
        trained = torch.cat([row["response_mask"].bool() for row in rows])
        share = finished.metrics()[step]["soup/prefix_tokens_cut_share"]
        assert share == pytest.approx((prefix & ~trained).sum().item() / prefix.sum().item())


@pytest.mark.runs("neighbors/dapo")
def test_dapo_replaces_groups_without_a_signal(finished):
    for step in range(1, 5):
        rewards: dict[int, set[float]] = {}
        for row in finished.rows(step):
            rewards.setdefault(int(row["index"]), set()).add(round(float(row["rm_scores"].sum()), 6))
        assert len(finished.rows(step)) == 16 and all(len(values) > 1 for values in rewards.values())
