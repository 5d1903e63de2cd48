import asyncio

import pytest
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.workers.rollout.replica import TokenOutput

from soup_verl.history import Prefix
from soup_verl.rollout import ContinuingClient, MixedOutput, PendingGroups, SoupAgentLoopManager, cut_prefix

EOS, PAD = 2, 9


def cut(*tokens, wanted):
    log_probs = [-float(token) for token in tokens]
    return cut_prefix(tokens, log_probs, wanted=wanted, eos_token_ids=frozenset({EOS, PAD}), policy_version=4)


@pytest.mark.parametrize(
    ("tokens", "wanted", "kept"),
    [
        ((5, 6, 7), 3, (5, 6, 7)),
        ((5, EOS, 7), 3, (5,)),
        ((5, 6, PAD), 3, (5, 6)),
        ((5, EOS, 7, PAD), 4, (5,)),
        ((5, 6), 3, (5,)),  # stopped early by something that is no end token: it goes too
        ((5, EOS), 3, (5,)),  # stopped early by an end token: only that goes
    ],
)
def test_prefix_ends_before_what_stopped_the_engine(tokens, wanted, kept):
    assert cut(*tokens, wanted=wanted) == Prefix(kept, tuple(-float(t) for t in kept), 4)


@pytest.mark.parametrize("tokens", [(EOS,), (EOS, 5, 6), (5,), ()])
def test_nothing_left_is_no_prefix(tokens):
    assert cut(*tokens, wanted=3) is None


class FakeClient:
    """An LLM client that notes its request and answers with two tokens."""

    def __init__(self, log_probs):
        self.log_probs = log_probs

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.request = (request_id, prompt_ids, sampling_params, kwargs)
        return TokenOutput(token_ids=[30, 31], log_probs=self.log_probs, extra_fields={"global_steps": 6})


def continue_prefix(client, sampling_params):
    prefix = Prefix((20, 21, 22), (-0.1, -0.2, -0.3), 4)
    continuing = ContinuingClient(client, prefix, response_length=16)
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


def mixed_output(**fields):
    return MixedOutput(
        prompt_ids=[1],
        response_ids=[20, 21, 30],
        response_mask=[1, 1, 1],
        response_logprobs=[-0.1, -0.2, -1.0],
        metrics=AgentLoopMetrics(),
        **fields,
    )


@pytest.mark.parametrize(("length", "mask"), [(0, [0, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_a_mixed_output_marks_its_prefix(length, mask):
    fields = mixed_output(prefix_length=length, policy_version=4).as_dict()
    assert fields["prefix_mask"].tolist() == mask and str(fields["prefix_mask"].dtype) == "torch.int8"
    assert fields["policy_version"].item() == 4 and fields["policy_version"].shape == ()
    assert fields["responses"].tolist() == [20, 21, 30]


def test_an_onpolicy_output_has_the_same_fields_as_a_mixed_one():
    onpolicy = mixed_output().as_dict()
    assert onpolicy["prefix_mask"].tolist() == [0, 0, 0] and onpolicy["policy_version"].item() == -1
    assert set(onpolicy) == set(mixed_output(prefix_length=2, policy_version=4).as_dict())
    assert not {"prefix_length"} & set(onpolicy)


class FakeWorker:
    """Stands in for a Ray actor handle: `worker.sample_prefixes.remote(...)` notes its arguments."""

    def __init__(self):
        self.requests = []
        self.sample_prefixes = self

    def remote(self, step, raw_prompts, plan, start):
        self.requests.append((step, raw_prompts, plan, start))


@pytest.mark.parametrize(
    ("workers", "chunks"),
    [
        (1, [(0, "abcde")]),
        (2, [(0, "abc"), (3, "de")]),
        (3, [(0, "ab"), (2, "cd"), (4, "e")]),
        (8, list(enumerate("abcde"))),
    ],
)
def test_prefix_requests_reach_the_workers_with_their_place_in_the_batch(workers, chunks):
    manager = SoupAgentLoopManager.__new__(SoupAgentLoopManager)
    manager.agent_loop_workers = [FakeWorker() for _ in range(workers)]
    pending = manager.sample_prefixes(5, list("abcde"), list("ABCDE"), list("12345"))
    requests = [request for worker in manager.agent_loop_workers for request in worker.requests]
    assert [(start, "".join(prompts)) for _, prompts, _, start in requests] == chunks
    assert "".join(p for _, _, plan, _ in requests for p in plan) == "12345"
    assert isinstance(pending, PendingGroups)
