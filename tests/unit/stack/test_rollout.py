import asyncio
import copy
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from verl.experimental.agent_loop import AgentLoopWorker

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.method.mixing import PrefixRequest
from soup_verl.stack.rollout import PendingGroups, SoupAgentLoopManager, SoupAgentLoopWorker, token_key

GIVEN = Prefix((20, 21, 22), (-0.1, -0.2, -0.3), 4)


# ---- agent loops ----


def run_session(agent_name, *, validate=False, **soup):
    """A session of a worker that knows no more than its settings: past our check, verl has no such agent loop."""
    worker = SoupAgentLoopWorker.__new__(SoupAgentLoopWorker)
    worker._soup, worker._errors = SoupConfig.parse(soup), []
    worker.rollout_config = SimpleNamespace(prompt_length=4, response_length=16)
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": validate}
    asyncio.run(worker._run_agent_loop({}, trajectory, agent_name=agent_name, trace=False, session_id=0))


@pytest.mark.parametrize(
    "setting", [{"source": "forget"}, {"position": "whole"}, {"source": "inflight", "mixed_fraction": 1}]
)
def test_a_row_of_a_loop_with_tools_is_refused_where_a_single_turn_is_needed(setting):
    (key, value), *_ = setting.items()
    expected = f"^agent_name='no_such_agent': expected soup_agent or single_turn_agent with soup.{key}={value}. That"
    with pytest.raises(ValueError, match=expected):
        run_session("no_such_agent", **setting)


@pytest.mark.parametrize(
    ("agent_name", "how"),
    [
        ("no_such_agent", {"validate": True, "source": "forget"}),  # validation mixes nothing
        ("no_such_agent", {"mixed_fraction": 0, "source": "forget"}),
        ("no_such_agent", {"position": "whole", "source": "replay"}),
        ("soup_agent", {"source": "forget"}),
        ("no_such_agent", {}),
    ],
)
def test_agent_loops_that_our_check_leaves_to_verl(agent_name, how, monkeypatch):
    monkeypatch.setattr("verl.experimental.agent_loop.agent_loop._agent_loop_registry", {})
    with pytest.raises(AssertionError, match=f"Agent loop {agent_name} not registered"):
        run_session(agent_name, **how)


# ---- prompts and workers ----


def test_a_token_key_is_the_index_and_a_hash_that_stays_the_same_for_ever():
    assert token_key(7, [10, 11]) == "7:b71ba5fb265ccd91"
    assert token_key(7, (10, 11)) == token_key(7, [10, 11])
    assert len({token_key(7, [10, 11]), token_key(8, [10, 11]), token_key(7, [11, 10]), token_key(7, [10])}) == 4
    assert token_key(7, [10, 11], "images") == "7:images:b71ba5fb265ccd91"


class FakeMethod:
    """Stands in for a method of a Ray actor handle: `worker.method.remote(...)` notes its arguments, which `method`
    takes; they are noted as copies, because they are sent to another process."""

    def __init__(self, method, answer=None):
        self.requests = []
        self._method, self._answer = method, answer

    def remote(self, *args):
        inspect.signature(self._method).bind(None, *args)
        self.requests.append(copy.deepcopy(args))
        return self._answer(*args) if self._answer else len(self.requests)


class FakeWorker:
    def __init__(self):
        self.sample_share = FakeMethod(SoupAgentLoopWorker.sample_share)
        self.prompt_ids = FakeMethod(
            SoupAgentLoopWorker.prompt_ids, lambda step, prompts: [[step, ord(p)] for p in prompts]
        )
        self.actor_prompts = FakeMethod(
            SoupAgentLoopWorker.actor_prompts, lambda step, prompts: [(step, p) for p in prompts]
        )


def manager_of(workers):
    manager = SoupAgentLoopManager.__new__(SoupAgentLoopManager)
    manager.agent_loop_workers = [FakeWorker() for _ in range(workers)]
    return manager


SHARES = pytest.mark.parametrize(
    ("workers", "chunks"),
    [
        (1, [(0, "abcde")]),
        (2, [(0, "abc"), (3, "de")]),
        (3, [(0, "ab"), (2, "cd"), (4, "e")]),
        (4, [(0, "ab"), (2, "cd"), (4, "e")]),
        (8, list(enumerate("abcde"))),
    ],
)
PLAN = [PromptPlan(name.upper(), (PrefixRequest(3, i + 1),)) for i, name in enumerate("abcde")]


@SHARES
@pytest.mark.parametrize("with_heads", [False, True])
def test_prefix_requests_reach_the_workers_with_their_place_in_the_batch(workers, chunks, with_heads):
    manager = manager_of(workers)
    heads = [
        GroupPrefixes(p.prompt_key, {3: GIVEN}) if i % 2 else GroupPrefixes(p.prompt_key, {})
        for i, p in enumerate(PLAN)
    ]
    pending = manager.request_prefixes(5, list("abcde"), PLAN, heads=heads if with_heads else None)
    requests = [request for worker in manager.agent_loop_workers for request in worker.sample_share.requests]
    assert [(start, "".join(prompts)) for _, prompts, _, start, *_ in requests] == chunks
    assert all(step == 5 and only_heads is False for step, *_, only_heads in requests)
    assert [r for _, _, asked, *_ in requests for r in asked] == [p.requests for p in PLAN]
    given = [head for *_, heads_, _ in requests for head in heads_]
    assert given == ([h.by_session for h in heads] if with_heads else [{}] * 5)
    assert isinstance(pending, PendingGroups)


def test_heads_are_asked_for_in_their_own_right():
    manager = manager_of(1)
    manager.request_prefixes(5, list("abcde"), PLAN, only_heads=True)
    assert manager.agent_loop_workers[0].sample_share.requests[0][-1] is True


def test_what_the_actor_reads_comes_back_in_batch_order(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    manager = manager_of(2)
    assert manager.actor_prompts(5, list("abcde")) == [(5, name) for name in "abcde"]


@SHARES
def test_prompt_ids_come_back_in_batch_order(workers, chunks, monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    manager = manager_of(workers)
    assert manager.prompt_ids(5, list("abcde")) == [[5, 97], [5, 98], [5, 99], [5, 100], [5, 101]]
    asked = [args[1] for worker in manager.agent_loop_workers for args in worker.prompt_ids.requests]
    assert ["".join(part) for part in asked] == [chunk for _, chunk in chunks]


def test_pending_prefixes_come_back_in_batch_order_with_their_prompts(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    pending = PendingGroups([[{1: GIVEN}, {}], [{2: GIVEN}]], ["A", "B", "C"])
    assert pending.result() == [
        GroupPrefixes("A", {1: GIVEN}),
        GroupPrefixes("B", {}),
        GroupPrefixes("C", {2: GIVEN}),
    ]


# ---- what a reward function returned, and which row it was about ----


@pytest.mark.parametrize(
    ("reward", "named"),
    [(None, "None"), ("1.0", "'1.0'"), (float("nan"), "nan"), (np.float32("inf"), "inf"), ([1.0], "[1.0]")],
)
def test_a_reward_that_is_no_finite_number_ends_the_session_with_its_row(monkeypatch, reward, named):
    with pytest.raises(ValueError, match=f"returned .*{re.escape(named)}.* prompt index=9a9b-uuid .data_source='sums'"):
        scored(monkeypatch, reward, handles=["a worker"])


@pytest.mark.parametrize("reward", [1, 0.5, True, np.float32(2), torch.tensor(0.5)])
def test_any_finite_number_is_a_reward(monkeypatch, reward):
    scored(monkeypatch, reward, handles=["a worker"])


def test_without_workers_that_score_there_is_no_reward_yet(monkeypatch):
    scored(monkeypatch, None, handles=None)


def scored(monkeypatch, reward, handles):
    async def as_verl(self, outputs, kwargs):
        outputs[-1].reward_score = reward

    monkeypatch.setattr(AgentLoopWorker, "_compute_score", as_verl)
    worker = SoupAgentLoopWorker.__new__(SoupAgentLoopWorker)
    worker.reward_loop_worker_handles = handles
    outputs = [SimpleNamespace(reward_score=None), SimpleNamespace(reward_score=None)]
    asyncio.run(worker._compute_score(outputs, {"index": "9a9b-uuid", "data_source": "sums"}))


def test_a_prompts_key_takes_an_index_of_any_kind():
    assert token_key(7, [1, 2]) == token_key(np.int64(7), [1, 2]) == "7:0c730b69905c5ef7"
    keys = [token_key(index, [1, 2]) for index in (7, "9a9b-uuid", None, {"row": None})]
    assert len(set(keys)) == 4 and keys[1].startswith("9a9b-uuid:") and keys[2].startswith("none:")
    assert token_key(None, [1, 2]) != token_key(None, [1, 3])
