"""What a step decides, on batches small enough to check by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from soup_verl.method import core_algos, metrics, step
from soup_verl.method.config import SoupConfig
from soup_verl.method.observation import History
from soup_verl.method.sections import PolicyLossConfig
from soup_verl.method.step_batch import StepBatch

# ---- the plan ----


def plan(last_step=10, **section):
    return step.plan_of_run(SoupConfig.parse(section), n=4, response_length=16, last_step=last_step)


def test_the_plan_has_the_settings_numbers():
    planner = plan(seed=3, mixed_fraction=0.75, lookahead={"age": [2, 8]}, prefix_length={"low": 2, "high": 5})
    assert (planner.seed, planner.n, planner.low, planner.ages) == (3, 4, 2, (2, 8))
    assert (planner.in_shares, planner.position) == (False, "prefix")
    assert [planner.mixed_fraction.at(s) for s in (1, 10)] == [0.75] * 2
    assert [planner.longest(s) for s in (1, 10)] == [5, 5]


def test_schedules_end_with_the_run_or_where_they_say():
    planner = plan(
        last_step=11,
        mixed_fraction=1.0,
        mixed_fraction_schedule={"shape": "linear", "final": 0.0},
        prefix_length={"high": 9, "schedule": {"shape": "linear", "final": 1, "steps": 5}},
    )
    assert [planner.mixed_fraction.at(s) for s in (1, 6, 11)] == pytest.approx([1, 0.5, 0])
    assert [planner.longest(s) for s in (1, 2, 3, 5, 11)] == [9, 7, 5, 1, 1]


def test_shares_and_positions_reach_the_plan():
    planner = plan(source="replay", prefix_length={"unit": "share", "low": 0.25})
    assert (planner.in_shares, planner.low, planner.longest(1), planner.ages) == (True, 0.25, 1.0, (0,))
    planner = plan(source="snapshot", position="suffix")
    assert (planner.position, planner.ages, planner.longest(1)) == ("suffix", (0,), 7)
    assert all(r.to_the_end and r.head > 0 for r in planner.plan_prompt(step=1, place=0))


# ---- what a batch says about the history ----


class NotingSource:
    """Notes what it is told."""

    def __init__(self, *, wants_responses=False, decodes_prefixes=True):
        self.wants_responses, self.decodes_prefixes = wants_responses, decodes_prefixes
        self.kl, self.responses, self.solved = [], [], []

    def observe_kl(self, kl_by_age, *, collapsed):
        self.kl.append((dict(kl_by_age), collapsed))

    def observe_responses(self, responses):
        self.responses.append(responses)

    def observe_solved(self, onpolicy, mixed):
        self.solved.append((onpolicy, mixed))

    def metrics(self):
        return {"soup/of_the_source": 1.0}


# One prompt: a prefix of two tokens of version 3 and one of the current policy's; an on-policy response.
BATCH = StepBatch(
    uids=["u", "u"],
    response_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
    prefix_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]),
    policy_version=torch.tensor([[3, 3, -1], [-1, -1, -1]]),
    current_version=5,
    behavior_log_probs=torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.5, 9]]).log(),
    old_log_probs=torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 9]]).log(),
    recomputed=True,
    entropy=None,
    rewards=torch.tensor([1.0, 0.0]),
    solved=torch.tensor([True, False]),
    answers=None,
)
ONPOLICY = replace(BATCH, prefix_mask=torch.zeros(2, 3), policy_version=torch.full((2, 3), -1))
KL = (1 - 0.6931472) / 2  # ratios 2 and 1


def history(source, **section):
    soup = SoupConfig.parse(section)
    made = History(soup, step.plan_of_run(soup, n=4, response_length=16, last_step=10))
    made.source = source
    return made


def observe(made, batch=BATCH, responses=lambda: ["responses"]):
    """(metrics, what is said)"""
    return made.observe(batch, key_of_uid={"u": "the prompt"}, responses=responses)


def test_the_source_is_told_the_prefix_kl_by_age():
    source = NotingSource()
    metrics, said = observe(history(source), responses=lambda: 1 / 0)  # nobody wants them
    ((told, collapsed),) = source.kl
    assert told == {2: pytest.approx(KL, rel=1e-5)} and collapsed is False
    assert metrics["soup/prefix_kl_k3_age_2_3"] == pytest.approx(KL, rel=1e-5)
    assert metrics["soup/of_the_source"] == 1.0 and metrics["soup/prefix_kl_k3"] == pytest.approx(KL, rel=1e-5)
    assert source.responses == [] and said == []


def test_the_settings_in_force_are_reported():
    schedule = {"shape": "linear", "final": 1.0, "steps": 11}
    made = history(NotingSource(), mixed_fraction=0.0, mixed_fraction_schedule=schedule, prefix_length={"high": 6})
    metrics, _ = observe(made)  # of step 6: current_version is 5
    assert metrics["soup/mixed_fraction"] == 0.5 and metrics["soup/prefix_length_limit"] == 6.0


@pytest.mark.parametrize(
    ("source", "tokens"), [(NotingSource(), 5), (NotingSource(decodes_prefixes=False), 3), (None, 5)]
)
def test_replayed_tokens_are_not_counted_as_decoded(source, tokens):
    assert observe(history(source))[0]["soup/decode_tokens_total"] == tokens


def test_the_gate_learns_the_solved_rate_of_the_prompt():
    made = history(NotingSource(), when="unsolved")
    observe(made)
    assert made.solved.rates == {"the prompt": 0.5}


def test_the_source_is_told_of_mixed_and_onpolicy_responses_apart():
    source = NotingSource()
    observe(history(source))
    observe(history(source), replace(ONPOLICY, solved=torch.tensor([True, True])))
    assert source.solved == [({"the prompt": 0.0}, {"the prompt": 1.0}), ({"the prompt": 1.0}, {})]


def test_mixing_starts_with_the_first_batch_that_is_solved_often_enough_for_good():
    made = history(NotingSource(), start_at_solved_rate=0.5)
    started = []
    for solved in ([False, False], [True, False], [True, True], [False, False]):
        observe(made, replace(BATCH, solved=torch.tensor(solved)))
        started.append(made.solved.admits("the prompt"))
    assert started == [False, False, True, True]  # above it, not at it


def test_a_source_that_stores_responses_gets_them():
    source = NotingSource(wants_responses=True)
    observe(history(source))
    assert source.responses == [["responses"]]


def discard(made, batch, prompt):
    made.discard(batch, key_of_uid={"u": prompt}, responses=lambda: ["dropped"])


def test_what_dynamic_sampling_drops_is_told_of_its_prompts_and_counts_in_the_steps_solved_rate():
    """Two of two right, and one of two: .75 of the step."""
    source = NotingSource(wants_responses=True)
    made = history(source, when="unsolved", start_at_solved_rate=0.7)
    discard(made, replace(BATCH, solved=torch.tensor([True, True])), "dropped")
    assert made.solved.rates == {"dropped": 1.0} and not made.solved.started
    observe(made)
    assert made.solved.rates == {"dropped": 1.0, "the prompt": 0.5} and made.solved.started
    assert source.responses == [["dropped"], ["responses"]]
    assert source.solved == [({"dropped": 1.0}, {"dropped": 1.0}), ({"the prompt": 0.0}, {"the prompt": 1.0})]


def test_what_was_dropped_counts_in_its_own_step_only():
    made = history(NotingSource(), start_at_solved_rate=0.7)
    discard(made, replace(BATCH, solved=torch.tensor([False, False])), "dropped")
    observe(made, replace(BATCH, solved=torch.tensor([True, True])))
    assert not made.solved.started
    observe(made, replace(BATCH, solved=torch.tensor([True, True])))
    assert made.solved.started


COLLAPSE = {"kl_control": {"min_prefix_kl": 0.5, "patience": 2}, "behavior_log_probs": "actor"}


def test_a_collapse_is_told_reported_and_warned_of_once():
    source = NotingSource()
    made = history(source, **COLLAPSE)
    steps = [observe(made) for _ in range(3)]
    assert [metrics["soup/prefix_kl_low_steps"] for metrics, _ in steps] == [1.0, 2.0, 3.0]
    assert [collapsed for _, collapsed in source.kl] == [False, True, True]
    first, (said,), third = (said for _, said in steps)
    assert first == third == [] and "soup.kl_control.min_prefix_kl=0.5 for 2 steps" in said


def test_where_some_are_trained_on_rewards_counts_and_rates_are_of_all_and_log_probs_of_those():
    """The second response, which is wrong, is dropped: its log-probs and its two tokens' entropy are not known."""
    nan = torch.full((2, 3), float("nan"))
    sampled = replace(BATCH, old_log_probs=nan, recomputed=False, rewards=torch.tensor([1.0, 0.25]))
    trained = replace(BATCH, entropy=torch.tensor([[1.0, 2, 3], [9, 9, 9]])).rows([0])
    source = NotingSource(wants_responses=True)
    made = history(source, when="unsolved", down_sampling={"train_on": 2})
    metrics, _ = made.observe(trained, key_of_uid={"u": "the prompt"}, responses=lambda: "all of them", sampled=sampled)
    assert metrics["soup/dropped_responses_total"] == 1 and metrics["soup/dropped_tokens_total"] == 2
    assert metrics["soup/decode_tokens_total"] == 5 and metrics["soup/onpolicy_tokens_total"] == 2
    assert metrics["soup/onpolicy_reward_mean"] == 0.25 and metrics["soup/mixed_responses_share"] == 0.5
    assert made.solved.rates == {"the prompt": 0.5} and source.responses == ["all of them"]
    assert metrics["soup/continuation_entropy_mean"] == 3 and "soup/onpolicy_entropy_mean" not in metrics
    assert metrics["soup/prefix_kl_k3"] == pytest.approx(KL, rel=1e-5)
    assert metrics["soup/alignment_error_max"] == 0
    assert "soup/dropped_responses_total" not in observe(history(None))[0]


def test_a_step_without_prefixes_says_nothing_about_a_collapse():
    source = NotingSource()
    made = history(source, **COLLAPSE)
    for batch in (BATCH, ONPOLICY, BATCH):
        observe(made, batch)
    assert [collapsed for _, collapsed in source.kl] == [False, False, True]
    assert source.kl[1][0] == {}


def test_a_prefix_kl_that_is_noise_is_warned_of_once_in_a_run():
    """Engine and trainer disagree as much on the current policy's tokens as on the prefix: k3 of ratios 2 and 1."""
    noisy = replace(BATCH, behavior_log_probs=torch.tensor([[0.25, 0.5, 0.5], [0.25, 0.5, 9]]).log())
    made = history(NotingSource(), kl_control={"min_prefix_kl": 1e-3})
    (said,) = observe(made, noisy)[1]
    assert said.startswith("soup/noise_floor_kl_k3=0.1 is more than half")  # .307 / 3 tokens
    assert observe(made, noisy)[1] == []


# ---- what the loss reads ----


def tokens_of(batch=BATCH, **section):
    return step.trained_tokens(batch, SoupConfig.parse(section))


@pytest.mark.parametrize("name", core_algos.PREFIX_OBJECTIVES)
def test_a_batch_without_prefixes_is_trained_as_it_is(name):
    tokens, found = tokens_of(ONPOLICY, prefix_objective=name)
    assert torch.equal(tokens.old_log_probs, BATCH.old_log_probs) and found == {}
    assert torch.equal(tokens.response_mask, BATCH.response_mask)


@pytest.mark.parametrize(
    ("name", "anchor", "mask", "weight"),
    [
        ("behavior", [0.25, 0.5, 0.5], [1, 1, 1], [1, 1, 1]),
        ("decoupled", [0.5, 0.5, 0.5], [1, 1, 1], [1.5, 1, 1]),  # ratio 2, truncated
        ("masked", [0.25, 0.5, 0.5], [0, 0, 1], [0, 0, 0]),
        ("shaped", [0.25, 0.5, 0.5], [1, 1, 1], [1, 1, 1]),
        ("shaped_ratio", [0.25, 0.5, 0.5], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_each_objective_by_hand(name, anchor, mask, weight):
    tokens, _ = tokens_of(prefix_objective=name, decoupled_weight_cap=1.5)
    assert_close(tokens.old_log_probs.exp()[0], torch.tensor(anchor))
    assert tokens.response_mask[0].tolist() == mask
    assert_close(tokens.prefix_weight[0], torch.tensor(weight, dtype=torch.float32))
    assert tokens.response_mask[1].tolist() == [1, 1, 0] and torch.equal(
        tokens.old_log_probs[1], BATCH.old_log_probs[1]
    )


@pytest.mark.parametrize(
    ("limit", "mask", "share"),
    # k3 is 1 - ln 2 = 0.307 on the first prefix token and 0 on the second: running means 0.307 and 0.153
    [(None, [1, 1, 1], None), (0.5, [1, 1, 1], 0.0), (0.2, [0, 0, 1], 1.0)],
)
def test_tokens_past_the_kl_limit_leave_the_loss_and_are_counted(limit, mask, share):
    tokens, found = tokens_of(kl_control={"max_prefix_kl": limit}, prefix_objective="decoupled")
    assert tokens.response_mask[0].tolist() == mask
    assert found == ({} if share is None else {"soup/prefix_tokens_cut_share": share})
    masked, _ = tokens_of(kl_control={"max_prefix_kl": limit}, prefix_objective="masked")
    assert masked.response_mask[0].tolist() == [0, 0, 1]


# The squared log-ratio is ln^2 2 = 0.480 on the first prefix token and 0 on the four other tokens: a mean of 0.096.
@pytest.mark.parametrize(("limit", "mask", "share"), [(0.1, [1, 1, 1], 0.0), (0.09, [0, 1, 1], 0.5)])
def test_tokens_past_the_second_moment_leave_the_loss_and_are_counted(limit, mask, share):
    tokens, found = tokens_of(kl_control={"max_second_moment": limit})
    assert tokens.response_mask.tolist() == [mask, [1, 1, 0]]
    assert found == {
        "soup/second_moment_mean": pytest.approx(math.log(2) ** 2 / 5),
        "soup/second_moment_cut_share": share,
    }


def test_the_second_moment_is_of_the_tokens_that_are_trained():
    for settings in ({"prefix_objective": "masked"}, {"kl_control": {"max_prefix_kl": 0.2}}):
        limits = settings.get("kl_control", {}) | {"max_second_moment": 1e-9}
        _, found = tokens_of(**settings | {"kl_control": limits})
        assert (found["soup/second_moment_mean"], found["soup/second_moment_cut_share"]) == (0, 0)


def test_the_log_ratio_of_a_response_is_that_of_its_historical_tokens():
    assert tokens_of()[0].log_ratio.tolist() == pytest.approx([math.log(2), 0])
    assert tokens_of(ONPOLICY)[0].log_ratio.tolist() == [0, 0]


# ---- advantages ----

REWARDS, MASK = torch.tensor([1.0, 3.0]), torch.tensor([[1, 1, 1], [1, 1, 0]])


def advantages(**changes):
    given = {
        "versions": [3, -1],
        "baseline": "shared",
        "norm_by_std": False,
        "prefix_mask": torch.tensor([[1, 0, 0], [0, 0, 0]]),
        "prefix_weight": torch.full((2, 3), 0.5),
    }
    return step.advantages(REWARDS, ["a", "a"], MASK, **(given | changes)).tolist()


def test_advantages_of_a_small_batch():
    # rewards 1 and 3, mean 2; the prefix token carries half
    assert advantages() == [[-0.5, -1, -1], [1, 1, 0]]


def test_the_baseline_makes_the_groups():
    assert advantages(baseline="split", prefix_mask=None, prefix_weight=None) == [[1, 1, 1], [3, 3, 0]]


def test_the_baseline_of_least_variance_by_hand():
    """w of the mixed response is 2 * 1, of the other 1; lengths 3 and 2: the baseline is (12 * 1 + 2 * 3) / 14."""
    tokens, _ = tokens_of(baseline="min_variance")
    assert_close(tokens.log_ratio.exp(), torch.tensor([2.0, 1.0]).double(), rtol=1e-6, atol=0)
    mixed, other = advantages(baseline="min_variance", log_ratio=tokens.log_ratio, prefix_weight=torch.ones(2, 3))
    assert mixed == pytest.approx([-2 / 7] * 3) and other == pytest.approx([12 / 7, 12 / 7, 0])
    # the prefix is not trained: one token counts on the left, with a weight of 4 * 1 against 2 * 1
    masked, _ = tokens_of(baseline="min_variance", prefix_objective="masked")
    given = {"norm_by_std": False, "baseline": "min_variance", "versions": [3, -1], "log_ratio": masked.log_ratio}
    found = step.advantages(REWARDS, ["a", "a"], masked.response_mask, **given)
    assert_close(found, torch.tensor([[0, 0, -2 / 3], [4 / 3, 4 / 3, 0]]))


def test_rows_that_do_not_count_leave_the_statistics():
    assert advantages(counted=torch.tensor([True, False]))[1] == [3, 3, 0]


def test_oapl_has_a_value_of_its_own_in_place_of_grpos():
    """2^R is 2 and 8: their mean 5."""
    loss = PolicyLossConfig(name="oapl", oapl_b1=1 / math.log(2))
    found = advantages(policy_loss=loss, prefix_mask=None, norm_by_std=True)
    value = math.log2(5)
    assert_close(torch.tensor(found), torch.tensor([[1 - value] * 3, [3 - value] * 2 + [0]]))


def test_pairs_are_compared_by_how_far_their_responses_have_moved():
    """b2 s - R is 0.5 - 1 and 0 - 3: a mean of -1.75; without a history s is 0 and the mean -2."""
    given = {"policy_loss": PolicyLossConfig(name="oapl_paired", oapl_b2=0.5), "prefix_mask": None}
    assert advantages(**given, log_ratio=torch.tensor([1.0, 0.0])) == [[-0.75] * 3, [1.25, 1.25, 0]]
    assert advantages(**given) == [[-1] * 3, [1, 1, 0]]


# ---- inside the loss ----

P_NEW = torch.tensor([[0.3, 0.5, 0.2]])  # 1.2 and 2.5 of what the historical policy gave its two tokens
P_BEHAVIOR = torch.tensor([[0.25, 0.2, 0.4]])


def moved(**settings):
    old, found, _ = step.moved_with_policy(
        P_NEW.log(),
        torch.full((1, 3), 0.9).log(),
        torch.full((1, 3), 8.0),
        prefix_mask=torch.tensor([[1, 1, 0]]),
        behavior_log_probs=P_BEHAVIOR.log(),
        settings=step.InLoss(**settings),
    )
    return old.exp()[0], found[0]


def test_most_settings_change_nothing_in_the_loss():
    plain = [name for name in core_algos.PREFIX_OBJECTIVES if step.InLoss(name).changes_nothing]
    assert plain == ["behavior", "decoupled", "masked"] and not step.InLoss("behavior", "min_prefix").changes_nothing
    old, found = moved()
    assert_close(old, torch.full((3,), 0.9))
    assert found.tolist() == [8, 8, 8]


def test_the_correction_and_shaped_by_hand():
    old, found = moved(prefix_correction="min_prefix")  # nothing before the first; then the smallest ratio, 1.2
    assert_close(old, torch.full((3,), 0.9))
    assert_close(found, torch.tensor([8, 9.6, 9.6]))
    _, found = moved(prefix_correction="cumulative_unclipped")  # then the products of those before: 1.2, 3
    assert_close(found, torch.tensor([8, 9.6, 24]))
    old, found = moved(prefix_objective="shaped", shaped_gamma=0.2)  # gamma p / (p + gamma)^2: .24 and 10/49
    assert_close(old, torch.tensor([0.3, 0.5, 0.9]))
    assert_close(found, torch.tensor([1.92, 80 / 49, 8]))


# ---- turns of a conversation: what a tool says between them has log-prob 0.0 and no part in anything ----


def conversation(poison):
    """Historical turns of one and of two tokens, each probability .5 then and .25 now; a tool between them and before
    the current policy's last token, where the trainer's own log-prob is `poison`."""
    half, quarter = math.log(0.5), math.log(0.25)
    return StepBatch(
        uids=["p"],
        response_mask=torch.tensor([[1, 0, 1, 1, 0, 1]]),
        prefix_mask=torch.tensor([[1, 0, 1, 1, 0, 0]], dtype=torch.int8),
        policy_version=torch.tensor([[3, -1, 3, 3, -1, -1]], dtype=torch.int32),
        current_version=5,
        behavior_log_probs=torch.tensor([[half, 0.0, half, half, 0.0, half]]),
        old_log_probs=torch.tensor([[quarter, poison, quarter, quarter, poison, half]]),
        recomputed=True,
        entropy=None,
        rewards=torch.tensor([1.0]),
        solved=torch.tensor([True]),
        answers=None,
        cut_short=torch.tensor([True]),
    )


@pytest.mark.parametrize("poison", [-30.0, math.nan])
def test_what_a_tool_says_enters_no_kl_limit_no_ratio_and_no_metric(poison):
    batch = conversation(poison)
    soup = SoupConfig.parse({"kl_control": {"max_prefix_kl": 0.2, "max_second_moment": 1.0}})
    tokens, found = step.trained_tokens(batch, soup)  # k3 of 1/2 is log 2 - 1/2 = .193 at each of the three
    assert tokens.response_mask is batch.response_mask or tokens.response_mask.tolist() == [[1, 0, 1, 1, 0, 1]]
    assert found["soup/prefix_tokens_cut_share"] == 0 and found["soup/second_moment_cut_share"] == 0
    assert_close(tokens.log_ratio, torch.tensor([-3 * math.log(2)], dtype=torch.float64))
    found = metrics.step_metrics(batch)
    assert found["soup/prefix_kl_k1"] == pytest.approx(math.log(2)) and found["soup/prefix_length_mean"] == 3
    assert found["soup/alignment_error_max"] == 0 and found["soup/prefixes_cut_short_total"] == 1
    lowest = core_algos.min_prefix_weight(batch.old_log_probs, batch.behavior_log_probs, prefix_mask=batch.prefix_mask)
    assert lowest.tolist() == [[1, 0.5, 0.5, 0.5, 0.5, 0.5]]
