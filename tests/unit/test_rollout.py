import asyncio

import pytest
import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.workers.rollout.replica import TokenOutput

from soup_verl.config import SoupConfig
from soup_verl.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.mixing import PrefixRequest
from soup_verl.rollout import (
    ContinuingClient,
    MixedOutput,
    PendingGroups,
    SoupAgentLoopManager,
    SoupAgentLoopWorker,
    token_key,
)

GIVEN = Prefix((20, 21, 22), (-0.1, -0.2, -0.3), 4)


class FakeClient:
    """An LLM client that notes its request and answers with two tokens."""

    request = None

    def __init__(self, log_probs):
        self.log_probs = log_probs

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.request = (request_id, prompt_ids, sampling_params, kwargs)
        return TokenOutput(token_ids=[30, 31], log_probs=self.log_probs, extra_fields={"global_steps": 6})


def continue_prefix(client, sampling_params, prefix=GIVEN):
    continuing = ContinuingClient(client, prefix, response_length=16, version=6)
    return asyncio.run(
        continuing.generate("r", prompt_ids=[10, 11], sampling_params=sampling_params, priority=3, image_data=None)
    )


def test_the_engine_continues_the_prefix_within_what_is_left_of_the_budget():
    client, params = FakeClient([-1.0, -2.0]), {"temperature": 0.7, "max_tokens": 99}
    continue_prefix(client, params)
    assert client.request == (
        "r",
        [10, 11, 20, 21, 22],
        {"temperature": 0.7, "max_tokens": 13},
        {"priority": 3, "image_data": None},
    )
    assert params == {"temperature": 0.7, "max_tokens": 99}


def test_the_caller_sees_one_response():
    output = continue_prefix(FakeClient([-1.0, -2.0]), {})
    assert output.token_ids == [20, 21, 22, 30, 31]
    assert output.log_probs == [-0.1, -0.2, -0.3, -1.0, -2.0]
    assert output.extra_fields == {"global_steps": 6}


def test_a_complete_response_is_handed_out_without_asking_the_engine():
    client = FakeClient([])
    complete = Prefix((20, 21, 2), (-0.1, -0.2, -0.3), 4, head=1, complete=True)
    output = continue_prefix(client, {"max_tokens": 99}, complete)
    assert client.request is None
    assert output.token_ids == [20, 21, 2] and output.log_probs == [-0.1, -0.2, -0.3]
    assert output.stop_reason == "completed"
    versions = {"global_steps": 6, "min_global_steps": 6, "max_global_steps": 6}  # of the policy that is in training
    assert output.extra_fields == versions


def mixed_output(**fields):
    return MixedOutput(
        prompt_ids=[1],
        response_ids=[20, 21, 30],
        response_mask=[1, 1, 1],
        response_logprobs=[-0.1, -0.2, -1.0],
        metrics=AgentLoopMetrics(),
        **fields,
    )


@pytest.mark.parametrize(
    ("start", "length", "mask"),
    [
        (0, 0, [0, 0, 0]),
        (0, 2, [1, 1, 0]),
        (0, 3, [1, 1, 1]),
        (1, 1, [0, 1, 0]),  # in the middle
        (1, 2, [0, 1, 1]),  # to the end
        (2, 5, [0, 0, 1]),  # the response was cut
    ],
)
def test_a_mixed_output_marks_its_historical_tokens(start, length, mask):
    fields = mixed_output(prefix_start=start, prefix_length=length, policy_version=4).as_dict()
    assert fields["prefix_mask"].tolist() == mask and str(fields["prefix_mask"].dtype) == "torch.int8"
    assert fields["policy_version"].item() == 4 and fields["policy_version"].shape == ()
    assert fields["responses"].tolist() == [20, 21, 30]


def test_an_onpolicy_output_has_the_same_fields_as_a_mixed_one():
    onpolicy = mixed_output().as_dict()
    assert onpolicy["prefix_mask"].tolist() == [0, 0, 0] and onpolicy["policy_version"].item() == -1
    assert set(onpolicy) == set(mixed_output(prefix_start=1, prefix_length=2, policy_version=4).as_dict())
    assert not {"prefix_start", "prefix_length"} & set(onpolicy)


# ---- agent loops ----


def run_session(agent_name, *, validate=False, **soup):
    """A session of a worker that knows no more than its settings: past our check, verl has no such agent loop."""
    worker = SoupAgentLoopWorker.__new__(SoupAgentLoopWorker)
    worker._soup, worker._errors = SoupConfig.parse(soup), []
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": validate}
    asyncio.run(worker._run_agent_loop({}, trajectory, agent_name=agent_name, trace=False, session_id=0))


@pytest.mark.parametrize("agent_name", ["no_such_agent", None, ""])
def test_a_row_of_another_agent_loop_is_refused_before_there_is_any_prefix(agent_name):
    with pytest.raises(ValueError, match=rf"^agent_name={agent_name!r}: expected soup_agent.*agent_name column"):
        run_session(agent_name)


@pytest.mark.parametrize(
    ("agent_name", "how"),
    [
        ("no_such_agent", {"validate": True}),  # validation mixes nothing
        ("no_such_agent", {"mixed_fraction": 0}),
        ("soup_agent", {}),
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


class FakeMethod:
    """Stands in for a method of a Ray actor handle: `worker.method.remote(...)` notes its arguments."""

    def __init__(self, answer=None):
        self.requests = []
        self._answer = answer

    def remote(self, *args):
        self.requests.append(args)
        return self._answer(*args) if self._answer else len(self.requests)


class FakeWorker:
    def __init__(self):
        self.sample_prefixes = FakeMethod()
        self.prompt_ids = FakeMethod(lambda prompts: [[ord(p)] for p in prompts])


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
    pending = manager.sample_prefixes(5, list("abcde"), PLAN, heads=heads if with_heads else None)
    requests = [request for worker in manager.agent_loop_workers for request in worker.sample_prefixes.requests]
    assert [(start, "".join(prompts)) for _, prompts, _, start, *_ in requests] == chunks
    assert all(step == 5 and only_heads is False for step, *_, only_heads in requests)
    assert [r for _, _, asked, *_ in requests for r in asked] == [p.requests for p in PLAN]
    given = [head for *_, heads_, _ in requests for head in heads_]
    assert given == ([h.by_session for h in heads] if with_heads else [{}] * 5)
    assert isinstance(pending, PendingGroups)


def test_heads_are_asked_for_in_their_own_right():
    manager = manager_of(1)
    manager.sample_prefixes(5, list("abcde"), PLAN, only_heads=True)
    assert manager.agent_loop_workers[0].sample_prefixes.requests[0][-1] is True


@SHARES
def test_prompt_ids_come_back_in_batch_order(workers, chunks, monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    manager = manager_of(workers)
    assert manager.prompt_ids(list("abcde")) == [[97], [98], [99], [100], [101]]
    asked = [args[0] for worker in manager.agent_loop_workers for args in worker.prompt_ids.requests]
    assert ["".join(part) for part in asked] == [chunk for _, chunk in chunks]


def test_pending_prefixes_come_back_in_batch_order_with_their_prompts(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    pending = PendingGroups([[{1: GIVEN}, {}], [{2: GIVEN}]], ["A", "B", "C"])
    assert pending.result() == [
        GroupPrefixes("A", {1: GIVEN}),
        GroupPrefixes("B", {}),
        GroupPrefixes("C", {2: GIVEN}),
    ]
