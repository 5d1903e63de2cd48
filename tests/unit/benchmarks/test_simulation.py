import json

import pytest
import torch

from benchmarks import sampling, simulate
from benchmarks.plain_engine import PromptOrder
from benchmarks.policy import response_logits
from benchmarks.run_inputs import nested, parse_settings
from benchmarks.sampling import Given, pad_prompts, sample
from benchmarks.simulation import Simulation
from benchmarks.update import LossSettings, clipped_loss, token_scores

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


@pytest.mark.parametrize("source", ["lookahead", "snapshot", "replay"])
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
    ],
    ids=["lookahead", "snapshot", "middle", "suffix", "replay"],
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
    for step, data in seen:
        scores = {
            version: token_scores(
                response_logits(weights, simulation.shape, simulation.engine.padded(step), data.ids, copies=16),
                data.ids,
                1.0,
            )[0]
            for version, weights in versions.items()
        }
        for row, version in enumerate(data.policy_version.tolist()):
            own, historical = data.mask[row] & ~data.prefix_mask[row], data.prefix_mask[row]
            assert historical.any() == (version >= 0)
            torch.testing.assert_close(data.behavior_log_probs[row, own], scores[step - 1][row, own])
            if version >= 0:
                assert version < step - 1
                torch.testing.assert_close(data.behavior_log_probs[row, historical], scores[version][row, historical])
                assert not torch.allclose(scores[step - 1][row, historical], scores[version][row, historical])
                checked += 1
    assert checked > 10


def test_replayed_tokens_are_not_counted_as_decoded(assets):
    _, of_replay = trained_by(assets, 3, **soup("replay"))
    data = of_replay[-1]
    tokens = sum(data[f"soup/{name}_tokens_total"] for name in ("prefix", "continuation", "onpolicy"))
    assert data["soup/prefix_tokens_total"] > 0
    assert data["soup/decode_tokens_total"] == tokens - data["soup/prefix_tokens_total"]


# ---- the loss ----


def test_clipped_loss_by_hand():
    """Ratios 1.1, 1.5 and 0.5 with clip 0.2: the clip bites where it would make the objective larger."""
    ratio = torch.tensor([1.1, 1.5, 0.5, 1.1, 1.5, 0.5, 4.0])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0])
    expected = torch.tensor([-2.2, -2.4, -1.0, 2.2, 3.0, 1.6, 6.0])  # the last by the dual clip, c = 3
    torch.testing.assert_close(clipped_loss(ratio.log(), torch.zeros(7), advantages, LossSettings()), expected)


@pytest.mark.parametrize(("objective", "trained"), [("behavior", True), ("masked", False)])
def test_masked_prefix_tokens_leave_the_losss_denominator(assets, objective, trained):
    settings = soup("lookahead", lookahead={"age": 1}, prefix_objective=objective)
    simulation, _ = trained_by(assets, 1, **settings)
    data = simulation.roll_out(2, simulation.source.prefixes(2))
    assert data.prefix_mask.any()
    tokens = simulation._trained_tokens(2, data, data.behavior_log_probs)
    assert torch.equal(tokens.mask, data.mask if trained else data.mask & ~data.prefix_mask)


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
