"""verl's repeated requests, as `stack/inflight.py` leans on them: each attempt is the next class's `generate`."""

import asyncio

import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.workers.rollout import llm_server
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.mixing import stable_seed
from soup_verl.stack import inflight
from soup_verl.stack.inflight import AttemptRecorder, RecordingClient

pytestmark = pytest.mark.contract


@pytest.fixture
def engine(monkeypatch):
    """Answers a request in four attempts, two of them without a token; notes what it is asked."""
    asked = []
    attempts = [([7, 8], 3, "aborted"), ([], 3, "aborted"), ([9], 4, "aborted"), ([2], 6, "completed")]

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        ids, version, reason = attempts[len(asked) % 4]
        asked.append((prompt_ids, dict(sampling_params)))
        log_probs = [-1.0] * len(ids) if ids else None
        return TokenOutput(
            token_ids=ids, log_probs=log_probs, stop_reason=reason, extra_fields={"global_steps": version}
        )

    async def no_nap(_):
        return None

    monkeypatch.setattr(LLMServerClient, "generate", generate)
    monkeypatch.setattr(llm_server.asyncio, "sleep", no_nap)
    return asked


def answer(*, recorded, seed=5):
    """One session: what it is given and what is handed on of it."""
    client = RecordingClient(OmegaConf.create({}))

    async def session():
        with inflight.recorded_versions(recorded):
            params = {"temperature": 1.0, "max_tokens": 9} | ({} if seed is None else {"seed": seed})
            output = await client.generate("r", prompt_ids=[1], sampling_params=params)
            given = AgentLoopOutput(
                prompt_ids=[1],
                response_ids=output.token_ids,
                response_mask=[1] * len(output.token_ids),
                response_logprobs=output.log_probs,
                metrics=AgentLoopMetrics(),
            )
            return output, inflight.with_versions(given)

    return asyncio.run(session())


def test_the_recorder_stands_below_verls_client():
    assert RecordingClient.__mro__[:4] == (RecordingClient, FullyAsyncLLMServerClient, AttemptRecorder, LLMServerClient)


def test_every_token_has_the_version_of_the_attempt_that_gave_it(engine):
    output, handed_on = answer(recorded=True)
    assert output.token_ids == [7, 8, 9, 2] and output.log_probs == [-1.0] * 4
    assert handed_on.token_versions == [3, 3, 4, 6]
    fields = handed_on.as_dict()
    assert fields["token_versions"].tolist() == [3, 3, 4, 6] and fields["responses"].tolist() == [7, 8, 9, 2]


def test_verl_asks_for_the_rest_of_what_there_is_within_the_budget(engine):
    answer(recorded=True)
    assert [prompt for prompt, _ in engine] == [[1], [1, 7, 8], [1, 7, 8], [1, 7, 8, 9]]
    assert [params["max_tokens"] for _, params in engine] == [9, 7, 7, 6]


def test_an_attempt_that_goes_on_has_a_random_stream_of_its_own(engine):
    """The second attempt drew no number that the third would draw again."""
    answer(recorded=True)
    rest = [stable_seed("rest", 5, tokens) for tokens in (2, 2, 3)]
    assert [params["seed"] for _, params in engine] == [5, *rest] and len({5, *rest}) == 3


def test_without_a_seed_none_is_made_up(engine):
    answer(recorded=True, seed=None)
    assert all("seed" not in params for _, params in engine)


def test_where_nothing_is_recorded_the_requests_are_verls_own(engine):
    _, handed_on = answer(recorded=False)
    assert [params["seed"] for _, params in engine] == [5] * 4
    assert type(handed_on) is AgentLoopOutput


def test_sessions_at_the_same_time_keep_their_own_versions(engine):
    client = RecordingClient(OmegaConf.create({}))

    async def session(n):
        with inflight.recorded_versions(True):
            await client.generate("r", prompt_ids=[n], sampling_params={"max_tokens": 9})
            given = AgentLoopOutput(
                prompt_ids=[1], response_ids=[7, 8, 9, 2], response_mask=[1] * 4, metrics=AgentLoopMetrics()
            )
            return inflight.with_versions(given).token_versions

    async def both():
        first, second = await session(1), await session(2)
        return first, second

    assert asyncio.run(both()) == ([3, 3, 4, 6],) * 2


def test_tokens_that_no_policy_sampled_have_no_version_and_a_cut_response_has_fewer(engine):
    async def session():
        with inflight.recorded_versions(True):
            await RecordingClient(OmegaConf.create({})).generate("r", prompt_ids=[1], sampling_params={"max_tokens": 9})
            given = AgentLoopOutput(
                prompt_ids=[1], response_ids=[7, 8, 50, 9], response_mask=[1, 1, 0, 1], metrics=AgentLoopMetrics()
            )
            return inflight.with_versions(given).token_versions

    assert asyncio.run(session()) == [3, 3, -1, 4]
