from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.method.history import PassRateControl, PolicyResponse, Prefix, PromptPlan, ReplaySource
from soup_verl.method.history.prefixes import cut_response, whole_response
from soup_verl.method.mixing import PrefixRequest
from soup_verl.method.sections import REPLAY_CHOICES, ReplayConfig


class Prompts:
    """Knows the prompts of every batch and their plan; samples and keeps nothing. Prompts `a` and `b` come in turn."""

    def __init__(self, *requests, unwanted=(), key="{} of {}"):
        self.requests, self.unwanted, self.key = requests, unwanted, key

    def wants_prefixes(self, step):
        return step not in self.unwanted

    def _names(self, step):
        return ["a", "b"] if step % 2 else ["b", "a"]

    def plan(self, step):
        return [PromptPlan(self.key.format(name, step), self.requests) for name in self._names(step)]

    def token_keys(self, step):
        return [f"key of {name}" for name in self._names(step)]


def source_of(engine, *, response_length=10, seed=0, **changes):
    limits = ReplayConfig(**{"capacity_tokens": 100_000} | changes)
    control = PassRateControl(0.5, low=0.0, high=1.0) if limits.choice == "balanced" else None
    how = {"response_length": response_length, "seed": seed, "control": control}
    return ReplaySource(engine, limits, **how)


def response(name, first, length=4, *, version=0, reward=0.0):
    """Token ids `first`, `first` + 1 and so on; log-probs -0.25 apart."""
    ids = np.arange(first, first + length, dtype=np.int32)
    return PolicyResponse(f"key of {name}", ids, -0.25 * np.arange(length, dtype=np.float32), version, reward, True)


def tokens(groups):
    """For each prompt: session -> token ids."""
    return [{s: p.token_ids for s, p in g.by_session.items()} for g in groups]


# ---- visits ----


def test_a_first_visit_is_onpolicy_and_a_later_one_gets_the_head_of_an_earlier_response():
    source = source_of(Prompts(PrefixRequest(2, 3)))
    assert source.prefixes(1) is None
    source.observe_responses([response("a", 20, version=0)])
    source.after_update(1)
    groups = source.prefixes(2)
    assert [g.prompt_key for g in groups] == ["b of 2", "a of 2"]  # in the order of the batch to come
    assert groups[0].by_session == {}
    assert groups[1].by_session == {2: Prefix((20, 21, 22), (0.0, -0.25, -0.5), 0, prompt_hash="key of a")}


def test_a_batch_of_first_visits_hands_over_empty_groups():
    source = source_of(Prompts(PrefixRequest(2, 3)))
    source.observe_responses([response("c", 20)])
    source.after_update(1)
    assert tokens(source.prefixes(2)) == [{}, {}]


def test_before_anything_is_stored_there_is_no_history():
    source = source_of(Prompts(PrefixRequest(2, 3)))
    assert source.without_history(1) == [1]
    source.after_update(1)
    assert source.prefixes(2) is None
    source.observe_responses([response("a", 20)])
    assert source.without_history(2) == []
    assert source_of(Prompts(unwanted={1})).without_history(1) == []


def test_a_prompt_that_the_gate_keeps_out_gets_no_prefix():
    source = source_of(Prompts())
    source.observe_responses([response("a", 20)])
    source.after_update(1)
    assert tokens(source.prefixes(2)) == [{}, {}]


def test_nothing_is_cut_for_a_step_that_mixes_nothing():
    source = source_of(Prompts(PrefixRequest(2, 3), unwanted={2}))
    source.observe_responses([response("a", 20)])
    source.after_update(1)
    assert source.prefixes(2) is None


# ---- the cut ----


@pytest.mark.parametrize(
    ("request_", "length"),
    [
        (PrefixRequest(1, 3), 3),
        (PrefixRequest(1, 8), 8),
        (PrefixRequest(1, 50), 8),  # the source has no more
        (PrefixRequest(1, share=0.5), 4),
        (PrefixRequest(1, share=0.25), 2),
        (PrefixRequest(1, share=0.01), 1),  # at least one
        (PrefixRequest(1, share=1.0), 8),
    ],
)
def test_a_source_response_of_8_tokens_is_cut_by_tokens_or_by_share(request_, length):
    source = source_of(Prompts(request_))
    source.observe_responses([response("a", 20, 8)])
    source.after_update(1)
    prefix = source.prefixes(2)[1].by_session[1]
    expected = Prefix(tuple(range(20, 20 + length)), tuple(-0.25 * i for i in range(length)), 0)
    assert prefix == replace(expected, prompt_hash="key of a")
    assert all(type(t) is int for t in prefix.token_ids) and all(type(p) is float for p in prefix.log_probs)


def test_an_end_token_is_not_cut_with_and_a_share_does_not_count_it():
    source = source_of(Prompts(PrefixRequest(1, share=1.0), PrefixRequest(2, share=0.5)))
    source.observe_responses([replace(response("a", 20, 4), end_token_id=2, end_log_prob=-1.0)])
    source.after_update(1)
    assert tokens(source.prefixes(2)) == [{}, {1: (20, 21, 22, 23), 2: (20, 21)}]


# Of three turns: 20, 21; a tool says 22, 23; 24, 25; the loop asks again at once: 26, 27; and an end token.
TURNS = replace(
    response("a", 20, 8),
    token_key="7:a1b2",
    loss_mask=np.array([1, 1, 0, 0, 1, 1, 1, 1], np.int8),
    turn_starts=(4, 6),
    end_token_id=2,
    end_log_prob=-1.5,
)


@pytest.mark.parametrize(
    ("wanted", "length", "turns"),
    [
        (1, 1, [(0, 1, False)]),
        (2, 3, [(0, 2, True)]),  # a whole turn: the tool's first token says so
        (3, 5, [(0, 2, True), (4, 5, False)]),
        (4, 7, [(0, 2, True), (4, 6, True), (6, 7, False)]),  # a whole turn, by a token of the next
        (6, 8, [(0, 2, True), (4, 6, True), (6, 8, False)]),  # its end token is left to the current policy
    ],
)
def test_a_response_of_several_turns_is_cut_inside_a_turn_or_behind_one(wanted, length, turns):
    prefix = cut_response(TURNS, wanted=wanted, longest=9)
    assert len(prefix) == length and [tuple(t) for t in prefix.turns] == turns
    assert prefix.loss_mask == (1, 1, 0, 0, 1, 1, 1, 1)[:length] and prefix.prompt_hash == "a1b2"
    assert prefix.log_probs == (0.0, -0.25, 0.0, 0.0, -1.0, -1.25, -1.5, -1.75)[:length]  # 0 where the tool spoke


def test_a_cut_counts_the_policys_tokens_and_its_budget_all():
    assert len(cut_response(TURNS, wanted=6, longest=3)) == 4  # in the tool's answer: the first turn is whole
    source = source_of(Prompts(PrefixRequest(1, share=0.5)))
    source.observe_responses([replace(TURNS, token_key="key of a")])
    source.after_update(1)
    assert source.prefixes(2)[1].by_session[1].historical == 3  # of 6


def test_a_whole_trajectory_is_complete_with_its_last_end_token():
    prefix = whole_response(TURNS)
    assert prefix.token_ids == (*range(20, 28), 2) and prefix.loss_mask == (1, 1, 0, 0, 1, 1, 1, 1, 1)
    assert [tuple(t) for t in prefix.turns] == [(0, 2, True), (4, 6, True), (6, 9, True)] and prefix.complete


def test_a_trajectory_comes_back_from_a_store_as_it_was():
    source = source_of(Prompts(PrefixRequest(1, 2)))
    source.observe_responses([TURNS])
    (found,) = source.store.choose("7:a1b2", 1, choice="latest", seed=0)
    assert whole_response(found) == whole_response(TURNS)


@given(st.integers(1, 12), st.one_of(st.integers(1, 12), st.floats(0.01, 1)), st.integers(2, 12))
def test_a_prefix_never_fills_the_budget_and_is_a_head_of_its_source(length, cut, response_length):
    length = min(length, response_length)
    request = PrefixRequest(1, cut) if isinstance(cut, int) else PrefixRequest(1, share=cut)
    source = source_of(Prompts(request), response_length=response_length)
    source.observe_responses([response("a", 20, length)])
    source.after_update(1)
    prefix = source.prefixes(2)[1].by_session[1]
    wanted = cut if isinstance(cut, int) else max(1, round(cut * length))
    assert len(prefix) == min(wanted, length, response_length - 1) >= 1
    assert prefix.token_ids == tuple(range(20, 20 + len(prefix)))


# ---- whole responses ----


def test_a_whole_response_comes_with_its_end_token_and_is_complete():
    source = source_of(Prompts(PrefixRequest(1, to_the_end=True)))
    source.observe_responses([replace(response("a", 20, 3), end_token_id=2, end_log_prob=-1.5)])
    source.after_update(1)
    found = source.prefixes(2)[1].by_session[1]
    assert found == Prefix((20, 21, 22, 2), (0.0, -0.25, -0.5, -1.5), 0, complete=True, prompt_hash="key of a")


def test_a_response_that_filled_the_budget_is_whole_without_an_end_token():
    source = source_of(Prompts(PrefixRequest(1, to_the_end=True)), response_length=4)
    source.observe_responses([replace(response("a", 20, 4), ended=False)])
    source.after_update(1)
    prefix = source.prefixes(2)[1].by_session[1]
    assert (prefix.token_ids, prefix.complete) == ((20, 21, 22, 23), True)


def test_a_response_whose_end_token_was_not_kept_is_never_passed_off_as_whole():
    source = source_of(Prompts(PrefixRequest(1, to_the_end=True)))
    source.observe_responses([response("a", 20, 3)])
    with pytest.raises(AssertionError, match="without its end token"):
        source.prefixes(2)


# ---- balanced ----


def balanced(*, right=True, wrong=True):
    """A source that has a right response of 8 tokens from 20 on for `a`, and a wrong one from 40 on."""
    source = source_of(Prompts(PrefixRequest(1, share=0.9), PrefixRequest(2, share=0.1)), choice="balanced")
    if right:
        source.observe_responses([response("a", 20, 8, reward=1.0)])
    if wrong:
        source.observe_responses([response("a", 40, 8)])
    return source


@pytest.mark.parametrize(("rate", "first"), [(0.0, 20), (0.4, 20), (0.6, 40), (1.0, 40)])
def test_failing_prompts_continue_a_success_and_passing_ones_a_failure(rate, first):
    """All at the same share, one half at first, whatever the plan drew."""
    source = balanced()
    source.observe_solved({"a of 2": rate}, {})
    source.after_update(1)
    half = tuple(range(first, first + 4))
    assert tokens(source.prefixes(2)) == [{}, {1: half, 2: half}]


def test_nothing_is_cut_at_the_target_before_the_first_visit_and_without_the_outcome_that_is_wanted():
    for source, rates in (
        (balanced(), {"a of 2": 0.5}),
        (balanced(), {}),
        (balanced(right=False), {"a of 2": 0.0}),
        (balanced(wrong=False), {"a of 2": 1.0}),
    ):
        source.observe_solved(rates, {})
        source.after_update(1)
        assert tokens(source.prefixes(2)) == [{}, {}]


# ---- the choice ----


CANDIDATES = [  # (first token, version, reward)
    (20, 1, 0.0),
    (30, 2, 1.0),
    (40, 3, 0.5),
]


def first_tokens(choice, sessions=2, seed=0):
    source = source_of(Prompts(*(PrefixRequest(s, 1) for s in range(sessions))), choice=choice, seed=seed)
    source.observe_responses([response("a", f, version=v, reward=r) for f, v, r in CANDIDATES])
    source.after_update(3)
    return [prefix.token_ids[0] for prefix in source.prefixes(4)[1].by_session.values()]


@pytest.mark.parametrize(
    ("choice", "expected"), [("latest", [40, 30]), ("best_reward", [30, 40]), ("worst_reward", [20, 40])]
)
def test_the_choice_that_is_set_is_the_one_made(choice, expected):
    assert first_tokens(choice) == expected


def test_more_sessions_than_responses_share_them():
    assert first_tokens("latest", sessions=5) == [40, 30, 20, 40, 30]


def test_uniform_depends_on_the_seed_and_differs_by_step_and_prompt():
    assert first_tokens("uniform") == first_tokens("uniform")
    assert len({tuple(first_tokens("uniform", sessions=3, seed=s)) for s in range(20)}) > 3
    source = source_of(Prompts(PrefixRequest(1, 1)))
    source.observe_responses([response(n, f, version=v, reward=r) for n in "ab" for f, v, r in CANDIDATES])
    seen = []
    for step in range(1, 41):
        source.after_update(step)
        seen.append(tuple(ids[1] for ids in tokens(source.prefixes(step + 1))))
    assert {a for pair in seen for (a,) in pair} == {20, 30, 40}
    assert any(one != other for one, other in seen)


# ---- age and capacity ----


def test_responses_older_than_the_limit_are_not_replayed():
    source = source_of(Prompts(PrefixRequest(1, 1)), max_policy_age=2)
    source.observe_responses([response("a", 20, version=1)])
    source.after_update(3)  # version 3 samples step 4: an age of 2
    assert source.prefixes(4)[1].by_session[1].policy_version == 1
    source.after_update(4)
    assert source.prefixes(5) is None and len(source.store) == 0


def test_the_store_and_what_it_reports_stay_within_the_limits():
    source = source_of(Prompts(), per_prompt=2)
    source.observe_responses([response("a", 20 + i, 3, version=i) for i in range(5)] + [response("b", 90, 4)])
    assert source.metrics() == {"soup/replay_responses_total": 3.0, "soup/replay_tokens_total": 10.0}
    kept = source.store.choose("key of a", 2, choice="latest", seed=0)
    assert [r.policy_version for r in kept] == [4, 3]


def test_it_says_what_it_needs_and_that_its_prefixes_cost_no_decoding():
    source = source_of(Prompts())
    assert source.wants_responses and not source.decodes_prefixes


# ---- checkpoints ----


def visit(source, step):
    """One step of the trainer: what was handed over; both prompts get two responses of the policy of `step` - 1."""
    groups = source.prefixes(step)
    mixed = {group.prompt_key: (step % 4) / 4 for group in groups or () if group.by_session}
    source.observe_solved({"a": (step % 3) / 2, "b": 1 - (step % 5) / 4}, mixed)
    for i, name in enumerate("ab"):
        rewards = [(step + i) % 3 / 2, step % 2]
        source.observe_responses(
            [response(name, 100 * step + 10 * i + k, 5, version=step - 1, reward=r) for k, r in enumerate(rewards)]
        )
    return groups


@settings(max_examples=30)
@given(st.integers(1, 7), st.sampled_from(REPLAY_CHOICES), st.sampled_from([None, 1, 3]), st.integers(1, 3))
def test_a_resumed_run_gets_what_an_uninterrupted_one_gets(
    tmp_path_factory, interrupted, choice, max_policy_age, per_prompt
):
    folder = tmp_path_factory.mktemp("history")

    def new():
        engine = Prompts(PrefixRequest(1, 2), PrefixRequest(2, share=0.5), key="{}")
        return source_of(engine, choice=choice, max_policy_age=max_policy_age, per_prompt=per_prompt)

    whole, expected = new(), {}
    for step in range(1, 9):
        expected[step] = visit(whole, step)
        if step == interrupted:
            whole.save(folder)
        whole.after_update(step)
    resumed = new()
    resumed.load(folder)
    resumed.after_update(interrupted)
    for step in range(interrupted + 1, 9):
        assert visit(resumed, step) == expected[step]
        resumed.after_update(step)
    assert resumed.metrics() == whole.metrics()


def test_a_control_is_resumed_bit_for_bit_and_starts_anew_where_there_was_none(tmp_path):
    for folder in (before := tmp_path / "before", other := tmp_path / "other"):
        folder.mkdir()
    first, control = balanced(), "pass_rates.json"
    for mixed in (0.1, 0.7, 1 / 3):
        first.observe_solved({"a of 2": 1 / 7}, {"a of 2": mixed} if first._control.state() else {})
    first.save(before)
    source_of(Prompts()).save(other)
    second, third = balanced(), balanced()
    second.load(before)
    third.load(other)
    assert second._control.state() == first._control.state() and first._control.state()["a of 2"][2] == 2
    assert third._control.state() == {} and not (other / control).exists()


def test_loading_from_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="responses.parquet"):
        source_of(Prompts()).load(tmp_path)
