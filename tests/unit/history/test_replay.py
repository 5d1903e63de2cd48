import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.config import REPLAY_CHOICES, ReplayConfig
from soup_verl.history import PolicyResponse, Prefix, PromptPlan, ReplaySource
from soup_verl.mixing import PrefixRequest


class Prompts:
    """Knows the prompts of every batch and their plan; samples and keeps nothing. Prompts `a` and `b` come in turn."""

    def __init__(self, *requests, unwanted=()):
        self.requests, self.unwanted = requests, unwanted

    def wants_prefixes(self, step):
        return step not in self.unwanted

    def _names(self, step):
        return ["a", "b"] if step % 2 else ["b", "a"]

    def plan(self, step):
        return [PromptPlan(f"{name} of {step}", self.requests) for name in self._names(step)]

    def token_keys(self, step):
        return [f"key of {name}" for name in self._names(step)]


def source_of(engine, *, response_length=10, seed=0, last_step=9, **changes):
    limits = ReplayConfig(**{"capacity_tokens": 100_000} | changes)
    return ReplaySource(engine, limits, response_length=response_length, seed=seed, last_step=last_step)


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
    assert groups[1].by_session == {2: Prefix((20, 21, 22), (0.0, -0.25, -0.5), 0)}
    assert source.prefixes(2) is None, "handed over once"


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


@pytest.mark.parametrize(("unwanted", "last_step"), [({2}, 9), ((), 1)])
def test_nothing_is_cut_for_a_step_that_mixes_nothing_or_is_beyond_the_last(unwanted, last_step):
    source = source_of(Prompts(PrefixRequest(2, 3), unwanted=unwanted), last_step=last_step)
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
    assert prefix == Prefix(tuple(range(20, 20 + length)), tuple(-0.25 * i for i in range(length)), 0)
    assert all(type(t) is int for t in prefix.token_ids) and all(type(p) is float for p in prefix.log_probs)


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
    source = source_of(Prompts(PrefixRequest(1, 1)), last_step=99)
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
        engine = Prompts(PrefixRequest(1, 2), PrefixRequest(2, share=0.5))
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


def test_loading_from_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="responses.parquet"):
        source_of(Prompts()).load(tmp_path)
