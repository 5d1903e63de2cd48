"""verl's own ToolAgentLoop, parser and tokenizer under our worker, with a fake engine: prefixes and whole turns."""

import asyncio
import inspect
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.history import GroupPrefixes, Prefix
from soup_verl.method.history.prefixes import prompt_hash
from soup_verl.method.mixing import PrefixRequest
from soup_verl.stack import rollout
from soup_verl.stack.session import FACTS
from tests.unit import preflight_files as files
from tests.unit.stack.server import tokens_allowed

TOOLS = Path(__file__).parents[2] / "examples" / "tools"
sys.path[:0] = [str(TOOLS), *(str(TOOLS.parent / folder) for folder in ("common", "quickstart"))]

pytestmark = pytest.mark.contract
QUESTION = [{"role": "user", "content": "2+0+1="}]
ROW = {"raw_prompt": QUESTION, "index": 7, "agent_name": "tool_agent"}


BUDGETS = {"prompt_length": 64, "response_length": 120}


class Engine:
    """A policy of some version: two calls of the tool, then what it said last. The log-prob of a turn's token i is
    -version - i / 1000."""

    def __init__(self, tokenizer):
        self.tokenizer, self.version, self.requests, self.last = tokenizer, 1, [], "v{}: {}"

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        from teach import CALL, CALL_END

        self.requests.append((len(prompt_ids), sampling_params, kwargs))
        before, _, said = self.tokenizer.decode(prompt_ids).rpartition("<|im_start|>assistant\n")
        answers = [part.partition("<|im_end|>")[0] for part in before.split("<|im_start|>tool\n")[1:]]
        turn = f"{CALL}2+{len(answers)}{CALL_END}" if len(answers) < 2 else self.last.format(self.version, answers[-1])
        given = self.tokenizer.encode(said)
        rest = [*self.tokenizer.encode(turn), self.tokenizer.eos_token_id][len(given) :]
        rest = rest[: tokens_allowed(prompt_ids, sampling_params, **BUDGETS)]
        log_probs = [-self.version - (len(given) + i) / 1000 for i in range(len(rest))]
        versions = dict.fromkeys(("global_steps", "min_global_steps", "max_global_steps"), self.version)
        return TokenOutput(token_ids=rest, log_probs=log_probs, stop_reason="completed", extra_fields=versions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from teach import tool_tokenizer
    from tiny_model import build_model

    made = tmp_path_factory.mktemp("model")
    tokenizer = tool_tokenizer()
    tokenizer.save_pretrained(made)
    build_model(tokenizer, hidden=64, intermediate=64, layers=1, heads=2, kv_heads=1).save_pretrained(made)
    return made


@pytest.fixture
def worker(folder, monkeypatch):
    """A worker that is no Ray actor, with the calculator; what it would store is in `stored`."""
    monkeypatch.setattr(rollout.tq, "init", lambda: None)
    config = files.configure(
        platform="cpu",
        actor_rollout_ref__model__path=folder,
        data__max_prompt_length=BUDGETS["prompt_length"],
        data__max_response_length=BUDGETS["response_length"],
        actor_rollout_ref__rollout__multi_turn__function_tool_path=TOOLS / "calculator.py",
        soup__prefix_length__high=40,
    )
    worker = rollout.SoupAgentLoopWorker(config, None)
    worker.llm_client.client = worker.engine = Engine(worker.tokenizer)
    worker.stored = []

    async def store(output, validate, **kwargs):
        assert "group_prefixes" not in kwargs
        worker.stored.append(output)

    worker._store_output = store
    return worker


def run(worker, prefix=None, agent_name="tool_agent", validate=False, **more):
    """The output of a session."""
    trajectory = {"step": 6, "sample_index": 0, "rollout_n": 0, "validate": validate}
    row = ROW | {"agent_name": agent_name, "session_id": 0, "global_steps": worker.engine.version + 1} | more
    if prefix is not None:
        row[rollout.GROUP_PREFIXES] = GroupPrefixes("key", {0: prefix})
    asyncio.run(worker._run_agent_loop({"temperature": 1.0, "logprobs": True}, trajectory, **row))
    return worker.stored.pop()


def whole(output, version, *, length=None, **more):
    """The first `length` tokens of an output as a prefix."""
    starts = output.extra_fields[FACTS]["turn_starts"]
    part = slice(length)
    return Prefix(
        tuple(output.response_ids[part]),
        tuple(output.response_logprobs[part]),
        version,
        prompt_hash=prompt_hash(output.prompt_ids),
        loss_mask=tuple(output.response_mask[part]),
        turn_starts=tuple(s for s in starts if length is None or s < length),
        **more,
    )


def test_a_session_without_a_prefix_is_verls_own_with_the_places_of_its_turns(worker):
    output = run(worker)
    text = worker.tokenizer.decode(output.response_ids)
    assert text.count("<tool_call>") == 2 and text.endswith("v1: 3<|im_end|>")
    assert output.prefix_mask == [0] * len(output.response_ids) and output.policy_version == -1
    starts = output.extra_fields[FACTS]["turn_starts"]
    begins = [i for i in range(1, len(text)) if output.response_mask[i - 1 : i + 1] == [0, 1]]
    assert starts == begins and len(starts) == 2
    assert "calculate(expression)" in worker.tokenizer.decode(output.prompt_ids)


def test_the_example_teaches_what_the_loop_will_ask_for(worker):
    from prepare import work_out
    from teach import conversation
    from tiny_model import IGNORED

    ids, labels = conversation(worker.tokenizer, work_out("2 + 0 + 1"))
    worker.engine.last = "{1}"
    output = run(worker)
    assert [*output.prompt_ids, *output.response_ids] == ids
    assert [int(label != IGNORED) for label in labels] == [0] * len(output.prompt_ids) + output.response_mask


def test_a_prefix_of_the_first_turn_follows_the_loops_own_prompt(worker):
    onpolicy = run(worker)
    (found,) = asyncio.run(worker.sample_share(6, [ROW], [[PrefixRequest(0, 4)]], 0, [{}], False))
    assert asyncio.run(worker.prompt_ids(6, [ROW])) == [onpolicy.prompt_ids]  # with the tools' names
    prefix = found[0]
    assert prefix.token_ids == tuple(onpolicy.response_ids[:4]) and prefix.policy_version == 1
    assert worker.stored == []
    worker.engine.version = 5
    output = run(worker, prefix)
    assert output.prefix_mask == [1] * 4 + [0] * (len(output.response_ids) - 4) and output.policy_version == 1
    assert output.response_logprobs[3:6] == [-1.003, -5.004, -5.005]
    assert output.response_ids[: len(onpolicy.response_ids) - 5] == onpolicy.response_ids[:-5]


def test_the_single_turn_loop_asks_for_its_prefix_as_it_would_for_a_response(worker):
    row = ROW | {"agent_name": "soup_agent"}
    asyncio.run(worker.sample_share(6, [row], [[PrefixRequest(0, 4)]], 0, [{}], False))
    run(worker, agent_name="soup_agent")
    (asked, params, _), (own, own_params, _) = worker.engine.requests
    assert asked == own and own_params == {"temperature": 1.0, "logprobs": True}
    assert {"temperature", "top_p", "top_k", "logprobs", "repetition_penalty", "max_tokens"} == set(params)


def test_whole_turns_are_played_back_and_the_engine_goes_on(worker):
    recorded = run(worker)
    worker.engine.version, worker.engine.requests = 5, []
    third = recorded.extra_fields[FACTS]["turn_starts"][1]
    output = run(worker, whole(recorded, 1, length=third + 2))
    assert len(worker.engine.requests) == 1  # the third turn; the tool was called twice
    historical = [m if i < third + 2 else 0 for i, m in enumerate(recorded.response_mask)]
    assert output.prefix_mask == historical and output.policy_version == 1
    assert output.response_mask == recorded.response_mask
    assert output.response_logprobs[: third + 2] == recorded.response_logprobs[: third + 2]
    assert output.response_logprobs[third + 2] == -5.002
    assert all(p == 0.0 for p, m in zip(output.response_logprobs, output.response_mask, strict=True) if not m)
    assert FACTS in output.extra_fields and output.extra_fields[FACTS]["cut_short"] is False


def test_a_complete_trajectory_is_played_back_without_the_engine(worker):
    recorded = run(worker)
    worker.engine.version, worker.engine.requests = 5, []
    output = run(worker, whole(recorded, 1, complete=True))
    assert worker.engine.requests == [] and output.response_ids == recorded.response_ids
    assert output.prefix_mask == recorded.response_mask


def test_where_the_tool_answers_otherwise_history_ends(worker, monkeypatch):
    recorded = run(worker)
    (tool,) = worker.tools
    monkeypatch.setattr(tool, "fn", lambda expression: "9" if expression == "2+1" else "2")
    worker.engine.version, worker.engine.requests = 5, []
    output = run(worker, whole(recorded, 1))
    second = recorded.extra_fields[FACTS]["turn_starts"][1]
    mask = [m if i < second else 0 for i, m in enumerate(recorded.response_mask)]
    assert output.prefix_mask[:second] == mask[:second] and sum(output.prefix_mask) == sum(mask)
    assert output.extra_fields[FACTS]["cut_short"] and worker.tokenizer.decode(output.response_ids).endswith(
        "v5: 9<|im_end|>"
    )


def test_a_prefix_of_another_prompt_is_left_out(worker):
    recorded = run(worker)
    other = replace(whole(recorded, 1, length=4), prompt_hash="of another prompt")
    output = run(worker, other)
    assert sum(output.prefix_mask) == 0 and output.policy_version == -1 and output.extra_fields[FACTS]["cut_short"]


@pytest.mark.parametrize("budget", [40, 60])
def test_the_budget_is_the_loops(worker, budget):
    """Whatever is played back, the response is as long as verl's own would be."""
    recorded = run(worker)
    worker.config.actor_rollout_ref.rollout.response_length = worker.rollout_config.response_length = budget
    plain, mixed = run(worker), run(worker, whole(recorded, 1))
    assert mixed.response_ids == plain.response_ids and len(plain.response_ids) <= budget
    assert mixed.prefix_mask == plain.response_mask


def test_validation_is_verls_own(worker):
    output = run(worker, validate=True)
    assert type(output) is AgentLoopOutput and FACTS not in output.extra_fields


# ---- loops that no prefix can be given to ----


@register("silent_agent")
class SilentLoop(AgentLoopBase):
    """Asks verl's client for nothing."""

    async def run(self, sampling_params, **kwargs):
        fields = {"prompt_ids": [1], "response_ids": [2], "response_mask": [1], "metrics": AgentLoopMetrics()}
        return AgentLoopOutput(**fields)


@register("branching_agent")
class BranchingLoop(ToolAgentLoop):
    async def run(self, sampling_params, **kwargs):
        first = await super().run(sampling_params, **kwargs)
        return [first, await super().run(sampling_params, **kwargs)]


@register("careful_agent")
class CarefulLoop(ToolAgentLoop):
    """Catches whatever goes wrong."""

    async def run(self, sampling_params, **kwargs):
        try:
            return await super().run(sampling_params, **kwargs)
        except Exception:
            return None


def test_a_loop_that_asks_for_nothing_is_refused_by_name(worker):
    with pytest.raises(ValueError, match="^agent_name='silent_agent': it ended without a request: expected one resp"):
        asyncio.run(worker.prompt_ids(6, [ROW | {"agent_name": "silent_agent"}]))
    assert worker.stored == []


def test_several_responses_a_session_are_refused_by_name_where_something_is_mixed(worker):
    with pytest.raises(ValueError, match="^agent_name='branching_agent': it returned 2 outputs: expected one response"):
        run(worker, agent_name="branching_agent")
    (error,) = worker.take_errors()
    assert error.startswith("ValueError: agent_name='branching_agent'")
    assert len(run(worker, agent_name="branching_agent", validate=True)) == 2


def test_a_loop_that_catches_errors_is_stopped_all_the_same(worker):
    ids = asyncio.run(worker.prompt_ids(6, [ROW, ROW | {"agent_name": "careful_agent"}]))
    assert ids[0] == ids[1]


# ---- what we lean on ----


def test_verls_worker_gives_a_loop_its_client_and_what_a_row_has():
    source = inspect.getsource(AgentLoopWorker._run_agent_loop)
    assert "server_manager=self.llm_client" in source and "agent_loop.run(sampling_params, **kwargs)" in source
