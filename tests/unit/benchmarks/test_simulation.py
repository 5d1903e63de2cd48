import json

import pytest
import torch

from benchmarks import sampling, simulate
from benchmarks.plain_engine import PromptOrder
from benchmarks.policy import response_logits
from benchmarks.run_inputs import nested, parse_settings
from benchmarks.sampling import Given, pad_prompts, sample
from benchmarks.simulation import Simulation
from benchmarks.update import LossSettings, token_scores
from soup_verl.method import metrics, sections
from soup_verl.method.policy_losses import LossTokens, loss_of_tokens
from soup_verl.method.sections import PolicyLossConfig

pytestmark = pytest.mark.e2e  # whole training steps
SHORT = {"prompts": 4, "n": 16, "steps": 6, "lr": 0.02, "samples": 4, "evaluate_every": 3}
PREFIXES = {"prefix_length": {"low": 1, "high": 3}}


def soup(source, **settings):
    return {"soup": {"mixed_fraction": 0.5, "source": source, **PREFIXES, **settings}}


def trained_by(assets, steps, **changes):
    """A simulation after some steps, and their metrics without times."""
    simulation = Simulation(assets, parse_settings(SHORT | changes))
    found = [simulation.step(step) for step in range(1, steps + 1)]
    return simulation, [{k: v for k, v in data.items() if not k.startswith("timing_s")} for data in found]


def same_weights(one, other):
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# ---- sampling ----


def test_sampled_log_probs_are_those_that_training_computes(assets):
    simulation = Simulation(assets, parse_settings(SHORT))
    prompts = simulation.engine.padded(1)
    assert len(set(prompts.lengths.tolist())) == 2, "padding must be part of it"
    out = sample(simulation.weights, simulation.shape, prompts, Given.nothing(64, 5), temperature=1.3, seed=0)
    logits = response_logits(simulation.weights, simulation.shape, prompts, out.ids, copies=16)
    log_probs, _ = token_scores(logits, out.ids, 1.3)
    torch.testing.assert_close(out.log_probs, torch.where(out.mask, log_probs, 0.0))


def test_given_tokens_stay_and_limits_hold(assets):
    simulation = Simulation(assets, parse_settings(SHORT))
    ids = torch.ones(8, 5, dtype=torch.int64)
    lengths, limits = torch.tensor([0, 1, 2, 3] * 2), torch.tensor([0, 3, 3, 3, 5, 5, 5, 5])
    prompts = pad_prompts([[3, 7], [4, 7, 4]])
    out = sample(simulation.weights, simulation.shape, prompts, Given(ids, lengths, limits), temperature=1.0, seed=1)
    for row in range(8):
        given = min(int(lengths[row]), int(limits[row]))
        assert out.ids[row, :given].tolist() == [1] * given
        assert out.log_probs[row, :given].tolist() == [0.0] * given
        assert given <= out.lengths[row] <= limits[row]
        ended = 0 in out.ids[row, : out.lengths[row]].tolist()
        assert ended or out.lengths[row] == limits[row]


def test_samples_follow_the_policy(assets):
    """First tokens of 4,000 responses against softmax(logits / T)."""
    simulation = Simulation(assets, parse_settings(SHORT))
    prompts = pad_prompts([[3, 7]])
    one = torch.zeros(1, 1, dtype=torch.int64)
    logits = response_logits(simulation.weights, simulation.shape, prompts, one, copies=1)[0, 0].detach()
    temperature = 0.5 * (logits.max() - logits.min()).item()  # two nats apart: a factor of seven
    out = sample(simulation.weights, simulation.shape, prompts, Given.nothing(4000, 1), temperature=temperature, seed=2)
    expected = torch.softmax(logits / temperature, dim=-1)
    seen = torch.bincount(out.ids[:, 0], minlength=3) / 4000
    assert (seen - expected).abs().max() < 0.03, (seen, expected)


# ---- SOUP off is GRPO ----


@pytest.mark.parametrize("source", ["lookahead", "snapshot", "replay", "forget"])
def test_without_mixed_responses_it_is_grpo_number_for_number(assets, source):
    grpo, of_grpo = trained_by(assets, 3)
    off, of_off = trained_by(assets, 3, soup={"mixed_fraction": 0.0, "source": source})
    assert of_off == of_grpo and same_weights(off, grpo)
    assert all(data["actor/grad_norm"] > 0 for data in of_grpo), "nothing was learnt: the comparison says nothing"


def test_until_there_is_history_lookahead_is_grpo_and_then_it_is_not(assets):
    grpo, _ = trained_by(assets, 2)
    early, of_early = trained_by(assets, 2, **soup("lookahead", lookahead={"age": 2}))
    assert same_weights(early, grpo) and "soup/policy_age_mean" not in of_early[-1]
    grpo, _ = trained_by(assets, 3)
    late, of_late = trained_by(assets, 3, **soup("lookahead", lookahead={"age": 2}))
    assert not same_weights(late, grpo) and of_late[-1]["soup/policy_age_mean"] == 2


# ---- the history is what it says ----


@pytest.mark.parametrize(
    "settings",
    [
        soup("lookahead", lookahead={"age": [1, 3]}),
        soup("snapshot", snapshot={"every": 2, "capacity": 2}),
        soup("snapshot", position="middle"),
        soup("snapshot", position="suffix"),
        soup("replay"),
        soup("replay", position="whole"),
    ],
    ids=["lookahead", "snapshot", "middle", "suffix", "replay", "replay_whole"],
)
def test_historical_tokens_carry_the_log_probs_of_the_policy_they_name(assets, settings):
    simulation = Simulation(assets, parse_settings(SHORT | settings))
    versions = {0: {name: weight.detach().clone() for name, weight in simulation.weights.items()}}
    seen, roll_out = [], simulation.roll_out

    def watched(step, groups):
        seen.append((step, roll_out(step, groups)))
        return seen[-1][1]

    simulation.roll_out = watched
    for step in range(1, 7):
        simulation.step(step)
        versions[step] = {name: weight.detach().clone() for name, weight in simulation.weights.items()}
    checked = 0
    for step, rollout in seen:
        data = rollout.batch
        scores = {
            version: token_scores(
                response_logits(weights, simulation.shape, simulation.engine.padded(step), rollout.ids, copies=16),
                rollout.ids,
                1.0,
            )[0]
            for version, weights in versions.items()
        }
        for row, version in enumerate(data.response_version.tolist()):
            own, historical = data.response_mask[row] & ~data.prefix_mask[row], data.prefix_mask[row]
            assert historical.any() == (version >= 0)
            torch.testing.assert_close(data.behavior_log_probs[row, own], scores[step - 1][row, own])
            if version >= 0:
                assert version < step - 1
                torch.testing.assert_close(data.behavior_log_probs[row, historical], scores[version][row, historical])
                assert not torch.allclose(scores[step - 1][row, historical], scores[version][row, historical])
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("position", ["prefix", "whole"])
def test_what_an_unlearned_copy_wrote_carries_its_log_probs_and_the_policy_stays(assets, position):
    settings = soup("forget", position=position, forget={"lr": 0.5})
    simulation = Simulation(assets, parse_settings(SHORT | settings))
    engine, roll_out, seen = simulation.engine, simulation.roll_out, []
    sample_prefixes, copies = engine.sample_prefixes, {}

    def watched_sampling(step, **how):
        copies[step] = {name: weight.detach().clone() for name, weight in engine.weights.items()}
        return sample_prefixes(step, **how)

    def watched_rollout(step, groups):
        current = {name: weight.detach().clone() for name, weight in simulation.weights.items()}
        assert engine.weights is simulation.weights and engine.version == step - 1
        seen.append((step, current, roll_out(step, groups)))
        return seen[-1][-1]

    engine.sample_prefixes, simulation.roll_out = watched_sampling, watched_rollout
    found = [simulation.step(step) for step in range(1, 5)]
    assert [data["soup/unlearning_steps_total"] for data in found] == [0, 1, 1, 1]
    for step, current, rollout in seen[1:]:
        data, prompts = rollout.batch, engine.padded(step)
        by_current, by_copy = (
            token_scores(response_logits(w, simulation.shape, prompts, rollout.ids, copies=16), rollout.ids, 1.0)[0]
            for w in (current, copies[step])
        )
        own, historical = data.response_mask & ~data.prefix_mask, data.prefix_mask
        torch.testing.assert_close(data.behavior_log_probs[own], by_current[own])
        torch.testing.assert_close(data.behavior_log_probs[historical], by_copy[historical])
        unlearned = own & ~data.is_mixed[:, None]
        assert by_copy[unlearned].mean() < by_current[unlearned].mean() - 0.01
        assert data.is_mixed.sum() == 32 or position == "prefix"  # whose copy may end at once


def test_replayed_tokens_are_not_counted_as_decoded(assets):
    _, of_replay = trained_by(assets, 3, **soup("replay"))
    data = of_replay[-1]
    tokens = sum(data[f"soup/{name}_tokens_total"] for name in ("prefix", "continuation", "onpolicy"))
    assert data["soup/prefix_tokens_total"] > 0
    assert data["soup/decode_tokens_total"] == tokens - data["soup/prefix_tokens_total"]


BALANCED = {"prefix_length": {"unit": "share"}, "replay": {"choice": "balanced"}}
EXGRPO = {"mixed_fraction": 1 / 16, "when": "medium", "position": "whole", "prefix_objective": "shaped_ratio"} | {
    "replay": {"choice": "surest_right"}
}


def test_until_a_prompt_comes_back_balanced_is_grpo_and_then_it_steers(assets):
    order = {"prompts": 2}  # of four: step 3 is the first second visit
    grpo, of_grpo = trained_by(assets, 2, **order)
    early, of_early = trained_by(assets, 2, **order, **soup("replay", **BALANCED))
    assert same_weights(early, grpo) and all(a.items() <= b.items() for a, b in zip(of_grpo, of_early, strict=True))
    late, of_late = trained_by(assets, 8, **order, **soup("replay", **BALANCED))
    assert of_late[-1]["soup/balanced_steered_prompts_total"] > 0
    assert not same_weights(late, trained_by(assets, 8, **order)[0])


def test_a_target_that_can_be_reached_is_reached(assets):
    """Learning rate 0, so that nothing but the length of the cut moves the pass rate of the mixed responses."""
    settings = soup("replay", **BALANCED) | {"lr": 0.0, "weight_decay": 0.0, "n": 32, "steps": 30}
    # Room for rare successes. After two right letters the end has still to be met: half is out of reach.
    settings["soup"]["replay"] = {"choice": "balanced", "per_prompt": 400, "target_pass_rate": 0.25}
    simulation = Simulation(assets, parse_settings(SHORT | settings))
    found = [simulation.step(step) for step in range(1, 31)]
    mixed = [data["soup/mixed_solved_rate"] for data in found[15:]]
    own = [data["soup/onpolicy_solved_rate"] for data in found]
    assert max(own) < 0.1, own
    assert abs(sum(mixed) / len(mixed) - 0.25) < 0.1, mixed


def test_a_whole_response_is_replayed_with_its_end_token_and_nothing_is_decoded_for_it(assets):
    _, found = trained_by(assets, 4, **soup("replay", **EXGRPO))
    for data in found[1:]:
        assert data["soup/mixed_solved_rate"] == 1.0 and data["soup/continuation_tokens_total"] == 0
        assert data["soup/decode_tokens_total"] == data["soup/onpolicy_tokens_total"]


def test_nothing_is_mixed_before_a_batch_was_solved_often_enough(assets):
    waiting, _ = trained_by(assets, 4, **soup("replay", start_at_solved_rate=0.99))
    assert same_weights(waiting, trained_by(assets, 4)[0])


# ---- the loss ----


def test_clipped_loss_by_hand():
    """Ratios 1.1, 1.5 and 0.5 with clip 0.2: the clip bites where it would make the objective larger."""
    ratio = torch.tensor([1.1, 1.5, 0.5, 1.1, 1.5, 0.5, 4.0])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0])
    expected = torch.tensor([-2.2, -2.4, -1.0, 2.2, 3.0, 1.6, 6.0])  # the last by the dual clip, c = 3
    every, zero = torch.ones(7, dtype=torch.bool), torch.zeros(7)
    tokens = LossTokens(ratio.log(), zero, advantages, every, prefix_mask=~every, behavior_log_probs=zero)
    found = loss_of_tokens(tokens, PolicyLossConfig(), LossSettings().clip)
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize(("objective", "trained"), [("behavior", True), ("masked", False)])
def test_masked_prefix_tokens_leave_the_losss_denominator(assets, objective, trained):
    settings = soup("lookahead", lookahead={"age": 1}, prefix_objective=objective)
    simulation, _ = trained_by(assets, 1, **settings)
    rollout = simulation.roll_out(2, simulation.history.source.prefixes(2))
    batch = rollout.batch
    assert batch.prefix_mask.any()
    tensors = simulation._loss_tensors(simulation.engine.padded(2), rollout.ids, batch)
    assert torch.equal(tensors.mask, batch.response_mask if trained else batch.response_mask & ~batch.prefix_mask)


OWN_LOSSES = {
    "exo": ({"exo_k": 5.0}, {"exo_tail_share"}),
    "exo_centred": ({"exo_k": 5.0}, {"exo_tail_share"}),
    "oapl": ({"oapl_b2": 0.1}, {"oapl_log_ratio", "oapl_residual"}),
    "oapl_paired": ({"oapl_b2": 0.1}, {"oapl_log_ratio", "oapl_residual"}),
    "vespo": ({}, {"vespo_weight"}),
}


@pytest.mark.parametrize("name", sections.POLICY_LOSSES)
def test_a_loss_of_ours_trains_and_is_measured(assets, name):
    settings, nouns = OWN_LOSSES[name]
    made = soup("lookahead", lookahead={"age": 1}, policy_loss={"name": name, **settings}, baseline="sampler")
    simulation, found = trained_by(assets, 5, mini_batches=2, **made)
    assert not same_weights(
        simulation, trained_by(assets, 5, mini_batches=2, **soup("lookahead", lookahead={"age": 1}))[0]
    )
    for noun in nouns:
        assert any(step.get(f"soup/{segment}_{noun}", 0) > 0 for step in found for segment in metrics.SEGMENTS), noun
    assert all("actor/pg_clipfrac" not in step and "soup/prefix_clip_fraction" not in step for step in found)


def test_oapls_squares_are_summed_in_a_response_and_its_value_is_that_of_the_sampler(assets):
    """Before anything has moved the loss is the mean square of the advantages, R - ln mean exp R a prompt."""
    made = soup("lookahead", lookahead={"age": 1}, policy_loss={"name": "oapl"}, baseline="sampler")
    simulation, _ = trained_by(assets, 0, **made)
    rewards = simulation.roll_out(1, None).batch.rewards.view(-1, SHORT["n"])
    value = rewards.exp().mean(dim=1, keepdim=True).log()
    assert simulation.step(1)["actor/pg_loss"] == pytest.approx((rewards - value).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize(("limit", "cut"), [(1e9, False), (1e-9, True)])
def test_a_limit_of_the_second_moment_leaves_historical_tokens_out_or_changes_nothing(assets, limit, cut):
    made = soup("lookahead", lookahead={"age": 1})
    limited = soup("lookahead", lookahead={"age": 1}, kl_control={"max_second_moment": limit})
    same = same_weights(trained_by(assets, 4, **made)[0], trained_by(assets, 4, **limited)[0])
    assert same is not cut


def test_exo_without_a_decay_is_the_run_with_the_clip(assets):
    made = soup("lookahead", lookahead={"age": 1}, policy_loss={"name": "exo", "exo_k": None})
    simulation, _ = trained_by(assets, 4, mini_batches=2, **made)
    assert same_weights(simulation, trained_by(assets, 4, mini_batches=2, **soup("lookahead", lookahead={"age": 1}))[0])


@pytest.mark.parametrize("mixing", [{"soup": {}}, soup("replay")], ids=["grpo", "replay"])
def test_training_on_all_of_them_is_the_run_without_down_sampling(assets, mixing):
    plain, of_plain = trained_by(assets, 4, mini_batches=2, **mixing)
    made = {"soup": mixing["soup"] | {"down_sampling": {"train_on": 16}}}
    every, of_every = trained_by(assets, 4, mini_batches=2, **made)
    assert same_weights(every, plain)
    assert [m.pop("soup/dropped_responses_total") for m in of_every] == [0] * 4
    assert [m.pop("soup/dropped_tokens_total") for m in of_every] == [0] * 4
    assert of_every == of_plain


@pytest.mark.parametrize("mixing", [{"soup": {}}, soup("replay")], ids=["grpo", "replay"])
def test_some_are_trained_on_and_all_are_counted(assets, mixing):
    """The first step's responses are the same whatever is trained on."""
    _, of_plain = trained_by(assets, 1, **mixing)
    weights = []
    for choice in ("max_variance", "random", "max_reward"):
        made = {"soup": mixing["soup"] | {"down_sampling": {"train_on": 4, "choice": choice}}}
        simulation, found = trained_by(assets, 5, mini_batches=2, **made)
        assert all(m["soup/dropped_responses_total"] == 4 * 12 for m in found)
        for key in ("critic/score/mean", "soup/decode_tokens_total", "response_length/mean"):
            assert found[0][key] == of_plain[0][key]
        weights.append(simulation)
    assert not same_weights(*weights[:2]) and not same_weights(*weights[1:])


@pytest.mark.parametrize(
    ("name", "loss"), [("min_prefix", None), ("cumulative", "exo"), ("cumulative_unclipped", None)]
)
def test_a_correction_trains_and_its_mean_is_reported_beside_the_losss_own(assets, name, loss):
    made = soup("lookahead", lookahead={"age": 1}, policy_loss={"name": loss})
    simulation, found = trained_by(assets, 3, mini_batches=2, **made)
    made["soup"]["prefix_correction"] = name
    corrected, of_corrected = trained_by(assets, 3, mini_batches=2, **made)
    assert not same_weights(simulation, corrected)
    assert all("soup/continuation_correction_mean" not in step for step in (*found, of_corrected[0]))
    for step in of_corrected[1:]:  # the first has no history
        assert step["soup/onpolicy_correction_mean"] == 1 and step["soup/continuation_correction_mean"] != 1
        assert ("soup/prefix_exo_tail_share" in step) is (loss == "exo")
        assert ("soup/prefix_clip_fraction" in step) is (loss is None)


@pytest.mark.parametrize("mixed_fraction", [0.0, 0.5])
def test_the_baseline_of_least_variance_trains_another_policy_with_and_without_history(assets, mixed_fraction):
    made = soup("lookahead", lookahead={"age": 1}, mixed_fraction=mixed_fraction)
    plain, _ = trained_by(assets, 3, **made)
    made["soup"]["baseline"] = "min_variance"
    weighted, found = trained_by(assets, 3, **made)
    assert not same_weights(plain, weighted) and all(step["actor/grad_norm"] > 0 for step in found)


def test_two_mini_batches_are_two_updates(assets):
    simulation, _ = trained_by(assets, 3, mini_batches=2)
    assert simulation.optimizer.state[simulation.weights["lm_head.weight"]]["step"] == 6


@pytest.mark.parametrize("loss", [{"entropy_coeff": 0.5}, {"kl_loss_coef": 0.5}], ids=["entropy bonus", "reference KL"])
def test_the_rivals_terms_keep_the_policy_wider(assets, loss):
    plain, of_plain = trained_by(assets, 6)
    kept, of_kept = trained_by(assets, 6, loss=loss)
    assert of_kept[0]["actor/entropy"] == of_plain[0]["actor/entropy"]
    assert of_kept[-1]["actor/entropy"] > of_plain[-1]["actor/entropy"]


# ---- the command ----


def test_two_steps_leave_a_result_and_metrics(assets, tmp_path):
    settings = parse_settings(SHORT | {"steps": 2} | soup("lookahead", lookahead={"age": 1}))
    result = simulate.run(assets, settings, tmp_path / "out", {"method": "soup"})
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["instrument"].startswith("search instrument") and stored["task"] == "order"
    assert [c["step"] for c in stored["checkpoints"]] == [2]
    assert {"pass@1", "pass@2", "pass@4", "distinct_valid@4", "entropy"} < stored["checkpoints"][0].keys()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert stored["decode_tokens"] == sum(line["data"]["soup/decode_tokens_total"] for line in lines)
    assert lines[1]["data"]["soup/mixed_responses_share"] > 0 and "val/pass@1" in lines[1]["data"]


def test_settings_are_read_and_refused_by_name():
    assert nested(simulate.assignments(["soup.lookahead.age=[2, 8]", "lr=1.0e-4"])) == {
        "soup": {"lookahead": {"age": [2, 8]}},
        "lr": 1e-4,
    }
    with pytest.raises(ValueError, match="unknown settings \\['learning_rate'\\]"):
        parse_settings({"learning_rate": 1})
    with pytest.raises(ValueError, match="mini_batches=5: expected a divisor of prompts=12"):
        parse_settings({"mini_batches": 5})
    with pytest.raises(ValueError, match="soup.down_sampling.train_on=9: expected at most n=8"):
        parse_settings({"soup": {"down_sampling": {"train_on": 9}}})
    with pytest.raises(ValueError, match="lr='1e-4': expected a number; YAML reads 1.0e-4"):
        parse_settings(nested(simulate.assignments(["lr=1e-4"])))
    with pytest.raises(ValueError, match="--set lr: expected key=value"):
        simulate.assignments(["lr"])


# ---- what many samples say ----


def test_pass_at_k_by_hand():
    assert sampling.pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the one that is right
    assert (sampling.pass_at_k(4, 0, 2), sampling.pass_at_k(4, 3, 2)) == (0.0, 1.0)


def test_summary_by_hand():
    valid = [[True, True, False, True], [False, False, False, False]]
    found = sampling.summarize(valid, [["x", "y", "z", "x"], ["", "", "", ""]])
    assert found == {"pass@1": 0.375, "pass@2": 0.5, "pass@4": 0.5, "distinct_valid@4": 1.0}


def test_an_epoch_takes_every_question_once():
    order = PromptOrder(seed=1, questions=12, a_step=4)
    epochs = [[i for step in range(first, first + 3) for i in order.batch(step)] for first in (1, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12)) and epochs[0] != epochs[1]
    assert order.batch(2) != PromptOrder(seed=2, questions=12, a_step=4).batch(2)


def test_the_largest_fall_is_from_any_earlier_peak():
    """Means of two: 1, 4, 3, 5, 2; the last odd value has no partner."""
    assert simulate.largest_fall([0, 2, 4, 4, 3, 3, 5, 5, 2, 2, -9], width=2) == 3.0
    assert simulate.largest_fall([1, 2, 3, 4], width=2) == 0.0
    assert simulate.largest_fall([], width=2) == 0.0


def test_a_curve_is_of_stretches_of_steps_the_last_one_shorter():
    """A step in which every response was mixed has no reward of on-policy ones."""
    tokens = [10.0, 20.0, 30.0, 40.0, 50.0]
    steps = [{"soup/decode_tokens_total": t} for t in tokens]
    for step, reward in ((0, 0.25), (1, 0.75), (4, 0.5)):
        steps[step]["soup/onpolicy_reward_mean"] = reward
    assert simulate.curve(steps, width=2) == [
        {"step": 2, "decode_tokens": 30.0, "reward": 0.5},
        {"step": 5, "decode_tokens": 150.0, "reward": 0.5},
    ]
