"""Every ablation and neighbour trains for real: four steps each, one after the other on the same processes."""

import math

import pytest
import torch

from soup_verl.method.mixing import UNLEARNED
from tests.e2e.examples import LAST, SELDOM, names, steps

NAMES = names()
WITHOUT_MIXING = {
    f"neighbors/{n}" for n in ("clip_cov", "dapo", "dr_grpo", "grpo", "grpo_passk", "kl_cov", "opo", "pods")
}
MIXING = [name for name in NAMES if name not in WITHOUT_MIXING]
NOTHING_RECOMPUTED = ("neighbors/dppo_kl", "neighbors/dppo_tv", "neighbors/oapl")  # verl's bypass_mode
HELD = ("ablations/held_policy", "neighbors/oapl", "neighbors/oapl_paired")  # no token of the current policy
END = 2  # the tokenizer's
WHOLE = ("exgrpo", "luffy_shaped", "repo")


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
def test_one_set_of_processes_served_all_but_dapo(finished):
    """Whose reward manager needs processes of its own: `runs._APART`."""
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
    if name in SELDOM:
        assert sum(m.get("soup/mixed_responses_share", 0.0) > 0 for m in finished.metrics().values()) >= 2
    elif name in MIXING:
        assert min(shares) > 0, shares
    else:
        assert shares == [0.0, 0.0]


@each([name for name in MIXING if name not in (*HELD, *NOTHING_RECOMPUTED)])  # which have none
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


@pytest.mark.runs("more/whole")
def test_a_whole_response_is_historical_its_end_included(finished):
    """A random model's hardly ever end by themselves: tests/unit/stack/test_prefix_sampler.py has one that does."""
    rows = mixed_rows(finished)
    assert rows and all(row["prefix_mask"].all() for row in rows)
    assert all(int(row["responses"][-1]) == END for row in rows if len(row["responses"]) < 16)


@pytest.mark.runs("ablations/held_policy")
def test_a_held_policy_samples_everything_until_the_next_one_is_kept(finished):
    """Kept before training and after step 2. At age 0 it is the current policy: engine and trainer agree."""
    metrics = finished.metrics()
    ages = [metrics[step].get("soup/policy_age_max") for step in (1, 2, 3, 4)]
    assert ages == [None, 1, 0, 1]
    assert all(metrics[step]["soup/prefix_tokens_share"] == 1 for step in (2, 3, 4))
    assert metrics[3]["soup/prefix_kl_k3_age_0_0"] < 1e-8 < metrics[4]["soup/prefix_kl_k3_age_1_1"]


@pytest.mark.runs("ablations/held_policy")
def test_a_held_policy_costs_one_weight_load_a_step(finished):
    """Step 1 is on-policy, and its end loads version 0 alone for step 2; the last step loads the newest weights."""
    assert [m["soup/weight_loads_total"] for m in finished.metrics().values()] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "loads"),
    [
        pytest.param(name, loads, marks=pytest.mark.runs(name))
        for name, loads in (("neighbors/forget", 2), ("more/forget", 3))
    ],
)
def test_a_copy_that_unlearned_writes_half_of_each_group(finished, name, loads):
    """Whole responses in the one, prefixes in the other: then the current weights are loaded once more."""
    metrics = finished.metrics()
    assert [metrics[step]["soup/unlearning_steps_total"] for step in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert [metrics[step]["soup/weight_loads_total"] for step in (1, 2, 3, 4)] == [loads, loads, loads, 1]
    rows = [row for step in (2, 3, 4) for row in finished.rows(step)]
    mixed = [row for row in rows if row["prefix_mask"].any()]
    assert mixed and all(row["policy_version"] == UNLEARNED for row in mixed)
    assert not any("policy_age" in key or "kl_k3_age" in key for step in metrics.values() for key in step)
    if name == "neighbors/forget":
        assert len(mixed) == len(rows) / 2 and all(row["prefix_mask"].all() for row in mixed)
    for step in (2, 3, 4):  # as they were sampled, the copy is elsewhere and the current policy is not
        assert metrics[step]["soup/prefix_kl_k3"] > 1e-5 and metrics[step]["soup/alignment_error_max"] < 1e-4


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


@pytest.mark.parametrize(
    "name", [pytest.param(f"neighbors/{n}", marks=pytest.mark.runs(f"neighbors/{n}")) for n in WHOLE]
)
def test_a_whole_response_is_replayed_token_for_token_and_nothing_is_sampled_for_it(finished, name):
    """With the log-probs that it was sampled with; decoded is what the on-policy responses have. A random model's
    hardly ever end by themselves: end tokens are replayed in tests/unit/benchmarks/test_simulation.py."""
    masks = [row["prefix_mask"].tolist() for row in mixed_rows(finished)]
    assert masks and all(all(m) for m in masks)
    for step, metrics in ((step, finished.metrics()[step]) for step in LAST):
        assert metrics["soup/decode_tokens_total"] == metrics["soup/onpolicy_tokens_total"]
        before = {key(row) for s in range(1, step) for row in finished.rows(s)}
        assert all(key(row) in before for row in finished.rows(step) if row["prefix_mask"].any())


def key(row):
    return int(row["index"]), tuple(row["responses"].tolist()), tuple(row["rollout_log_probs"].tolist())


@pytest.mark.runs("neighbors/exgrpo")
def test_exgrpo_replays_right_answers_and_starts_behind_a_batch_that_was_solved(finished):
    metrics = finished.metrics()
    assert [metrics[step].get("soup/mixed_solved_rate") for step in LAST] == [1.0, 1.0]
    assert all(metrics[step]["soup/onpolicy_solved_rate"] > 0.35 for step in (1, 2))


@pytest.mark.runs("neighbors/prefix_sampling")
def test_prefix_sampling_steers_prompts_by_the_length_of_the_cut(finished):
    metrics = finished.metrics()
    assert metrics[8]["soup/balanced_prompts_total"] == 8
    steered = [metrics[step]["soup/balanced_steered_prompts_total"] for step in range(3, 9)]
    assert steered == sorted(steered) and steered[0] > 0
    shares = {metrics[step]["soup/balanced_share_mean"] for step in range(3, 9)}
    assert len(shares) > 2


@pytest.mark.runs("neighbors/failure_prefixes")
def test_failure_prefixes_are_heads_of_the_prompts_own_wrong_responses(finished):
    wrong, seen = {}, 0
    for step in range(1, 15):
        for row in finished.rows(step):
            length, index = int(row["prefix_mask"].sum()), int(row["index"])
            if length:
                seen += 1
                assert any(ids[:length] == row["responses"].tolist()[:length] for ids in wrong[index])
        for row in finished.rows(step):
            if not row["prefix_mask"].any() and row["rm_scores"].sum() < 1:
                wrong.setdefault(int(row["index"]), []).append(row["responses"].tolist())
    assert seen >= 2


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


def untrained_share(run, step):
    """Of the historical tokens, and of the other tokens of mixed responses."""
    rows = [row for row in run.rows(step) if row["prefix_mask"].any()]
    prefix, trained = (torch.cat([row[key].bool() for row in rows]) for key in ("prefix_mask", "response_mask"))
    return (~trained[prefix]).double().mean().item(), (~trained[~prefix]).double().mean().item()


@pytest.mark.runs("ablations/kl_control")
def test_tokens_past_the_kl_limit_are_masked_and_counted(finished):
    for step in LAST:
        untrained, _ = untrained_share(finished, step)
        assert finished.metrics()[step]["soup/prefix_tokens_cut_share"] == pytest.approx(untrained)


@pytest.mark.runs("neighbors/vcpo")
def test_the_step_size_follows_the_ratios_of_the_historical_tokens(finished):
    """Eight of sixteen responses have historical tokens of age 2, whose weights are not equal."""
    for metrics in settled(finished):
        share, factor = metrics["soup/step_size_share_mean"], metrics["soup/step_size_factor_mean"]
        assert 1 / 8 <= share < 1 and factor == pytest.approx(share**0.5)
    assert "soup/step_size_share_mean" not in finished.metrics()[1]  # nothing was mixed yet


@each(["neighbors/oapl", "neighbors/oapl_paired"])
def test_oapl_regresses_on_how_far_the_policy_is_from_the_held_one(finished, name):
    """Of age 1, 0 and 1: at age 0 nothing has moved, so the residual is the advantage."""
    moved = {step: metrics["soup/prefix_oapl_log_ratio"] for step, metrics in finished.metrics().items() if step > 1}
    assert moved[3] < 1e-4 < min(moved[2], moved[4])
    assert all(finished.metrics()[step]["soup/prefix_oapl_residual"] > 0 for step in (2, 3, 4))


@each(["neighbors/oapl", "neighbors/oapl_paired"])
def test_oapls_advantages_are_over_the_value_or_the_mean_residual_of_a_prompts_responses(finished, name):
    for step in LAST:
        for prompt in {int(row["index"]) for row in finished.rows(step)}:
            rows = [row for row in finished.rows(step) if row["index"] == prompt]
            rewards = torch.stack([row["rm_scores"].sum() for row in rows])
            value = rewards.exp().mean().log()
            if name.endswith("paired"):
                s = torch.stack([(row["recomputed_log_probs"] - row["rollout_log_probs"]).sum() for row in rows])
                value = (rewards - 1e-3 * s).mean()
            found = torch.stack([row["advantages"][0] for row in rows])
            torch.testing.assert_close(found, rewards - value, atol=1e-6, rtol=0)


@pytest.mark.runs("neighbors/vespo")
def test_vespo_weighs_responses_by_how_far_their_prefix_has_drifted(finished):
    """By hand, from what was trained on, before the step's one update; on-policy responses have not drifted."""
    for step in LAST:
        metrics, rows = finished.metrics()[step], [row for row in finished.rows(step) if row["prefix_mask"].any()]
        prefix, weight = torch.cat([row["prefix_mask"].bool() for row in rows]), torch.cat(list(map(_vespo, rows)))
        assert metrics["soup/prefix_vespo_weight"] == pytest.approx(weight[prefix].mean().item(), abs=1e-4)
        assert metrics["soup/continuation_vespo_weight"] == pytest.approx(weight[~prefix].mean().item(), abs=1e-4)
        assert (weight - 1).abs().max() > 1e-3
        assert metrics["soup/onpolicy_vespo_weight"] == pytest.approx(1, abs=1e-4)


def _vespo(row):
    """The weight of each token of a response: one for all of them."""
    k, lam = (2, 3) if row["advantages"][0] >= 0 else (3, 2)
    log_w = (row["recomputed_log_probs"] - row["old_log_probs"]).double().sum()
    return (lam + k * log_w - lam * log_w.exp()).exp().expand(len(row["responses"]))


@pytest.mark.runs("neighbors/m2po")
def test_m2po_leaves_historical_tokens_out_and_counts_them(finished):
    for step in LAST:
        metrics, (historical, others) = finished.metrics()[step], untrained_share(finished, step)
        share = metrics["soup/second_moment_cut_share"]
        assert 0 < share < 1 and share == pytest.approx(historical) and others == 0
        assert metrics["soup/second_moment_mean"] > 1e-3


@each([f"neighbors/{name}" for name in ("gspo", "cispo", "sapo", "geo_mean")])
def test_a_loss_of_verls_reads_ratios_against_the_policy_that_sampled(finished, name):
    """`ppo_kl` is its mean of log old - log pi; before the step's one update only prefix tokens have any, in the mean
    perhaps little."""
    for step in LAST:
        rows = finished.rows(step)
        apart = torch.cat([(row["old_log_probs"] - row["recomputed_log_probs"]).double() for row in rows])
        assert finished.metrics()[step]["actor/ppo_kl"] == pytest.approx(apart.mean().item(), abs=1e-5)
        historical = torch.cat([row["prefix_mask"].bool() for row in rows])
        assert apart[historical].abs().max() > 1e-3 and not apart[~historical].any()
    assert abs(finished.metrics()[1]["actor/ppo_kl"]) < 1e-5  # nothing was mixed yet


@pytest.mark.runs("neighbors/vcpo")
def test_the_baseline_of_least_variance_is_the_weighted_mean_of_the_prompts_rewards(finished):
    """By hand, from what was trained on; where rewards and weights differ it is not their mean."""
    apart = []
    for step in LAST:
        prompts: dict[int, list[dict]] = {}
        for row in finished.rows(step):
            prompts.setdefault(int(row["index"]), []).append(row)
        for rows in prompts.values():
            reward = torch.stack([row["rm_scores"].sum() for row in rows]).double()
            ratio = torch.stack([_historical_log_ratio(row) for row in rows])
            weight = (2 * ratio).exp() * torch.tensor([len(row["response_mask"]) for row in rows])
            baseline = (weight * reward).sum() / weight.sum()
            found = torch.stack([row["advantages"][0] for row in rows]).double()
            torch.testing.assert_close(found, (reward - baseline) / (reward.std() + 1e-6), rtol=1e-3, atol=1e-4)
            apart.append(abs(baseline - reward.mean()).item())
    assert max(apart) > 1e-3


def _historical_log_ratio(row):
    prefix = row["prefix_mask"].bool()
    return (row["recomputed_log_probs"] - row["rollout_log_probs"])[prefix].double().sum()


@pytest.mark.runs("neighbors/ctpo")
def test_the_cumulative_correction_weights_what_stands_behind_historical_tokens(finished):
    for metrics in settled(finished):
        assert metrics["soup/onpolicy_correction_mean"] == 1 != metrics["soup/continuation_correction_mean"]
        assert metrics["soup/prefix_correction_mean"] != 1  # of its later tokens: nothing comes before the first
        assert all(0.5 < metrics[f"soup/{segment}_correction_mean"] < 1.5 for segment in ("prefix", "continuation"))
    assert "soup/continuation_correction_mean" not in finished.metrics()[1]  # nothing was mixed yet


def reward_of_all(metrics):
    """By ours: means of mixed and on-policy responses, weighted."""
    mixed = metrics["soup/mixed_responses_share"]
    return mixed * metrics.get("soup/mixed_reward_mean", 0) + (1 - mixed) * metrics["soup/onpolicy_reward_mean"]


@pytest.mark.runs("neighbors/pods", "more/pods_mixed")
@pytest.mark.parametrize("name", ["neighbors/pods", "more/pods_mixed"])
def test_half_of_the_responses_are_trained_on_and_all_are_counted(run, name):
    """Four of eight, of four prompts a step."""
    finished = run(name)
    for step in range(1, 5):
        metrics, rows = finished.metrics()[step], finished.rows(step)
        groups: dict[int, list[float]] = {}
        for row in rows:
            groups.setdefault(int(row["index"]), []).append(round(float(row["rm_scores"].sum()), 6))
        assert [len(rewards) for rewards in groups.values()] == [4] * 4
        assert metrics["soup/dropped_responses_total"] == 16
        trained = sum(len(row["responses"]) for row in rows)
        parts = [metrics.get(f"soup/{segment}_tokens_total", 0) for segment in ("prefix", "continuation", "onpolicy")]
        assert sum(parts) == trained + metrics["soup/dropped_tokens_total"]
        assert metrics["response_length/mean"] * 32 == pytest.approx(sum(parts))  # verl's own, of all
        assert metrics["critic/score/mean"] == pytest.approx(reward_of_all(metrics), abs=1e-6)
        assert metrics["critic/advantages/max"] > 0 > metrics["critic/advantages/min"]


@pytest.mark.runs("neighbors/pods", "more/pods_mixed")
@pytest.mark.parametrize("name", ["neighbors/pods", "more/pods_mixed"])
def test_what_is_not_trained_on_has_left_transfer_queue_by_the_next_step(run, name):
    assert [run(name).record(step)["stored"] for step in (1, 2, 3, 4)] == [32] * 4


@pytest.mark.runs("more/pods_mixed")
def test_every_response_is_stored_for_replay(finished):
    """Eight to each of eight prompts after two steps, less those that are empty without their end token."""
    assert 64 - 8 <= finished.metrics()[2]["soup/replay_responses_total"] <= 64


@pytest.mark.runs("neighbors/dapo")
def test_dapo_replaces_groups_without_a_signal(finished):
    for step in range(1, 5):
        rewards: dict[int, set[float]] = {}
        for row in finished.rows(step):
            rewards.setdefault(int(row["index"]), set()).add(round(float(row["rm_scores"].sum()), 6))
        assert len(finished.rows(step)) == 16 and all(len(values) > 1 for values in rewards.values())
