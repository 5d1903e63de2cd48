"""One conversation by hand: the prompt 10, 11; a turn 20, 21, 2; a tool that says 90, 91; a turn 30, 31, 2."""

import asyncio
from dataclasses import replace

import pytest
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.history import Prefix
from soup_verl.method.history.prefixes import prompt_hash
from soup_verl.method.mixing import stable_seed
from soup_verl.stack.session import FACTS, FirstRequest, MixedOutput, Opening, Session, SessionClient, holding
from tests.unit.stack.server import tokens_allowed

PROMPT = [10, 11]
ONE = Prefix((20, 21, 22), (-0.1, -0.2, -0.3), 4)
TWO = Prefix(
    token_ids=(20, 21, 2, 90, 91, 30, 31),
    log_probs=(-0.1, -0.2, -0.3, 0.0, 0.0, -0.4, -0.5),
    policy_version=4,
    loss_mask=(1, 1, 1, 0, 0, 1, 1),
    turn_starts=(5,),
)


BUDGETS = {"prompt_length": 4, "response_length": 16}


class FakeClient:
    """An LLM client that notes its requests and answers with two tokens, or with as many as verl's server allows."""

    tokenizer = "a tokenizer"

    def __init__(self):
        self.requests = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.requests.append((request_id, list(prompt_ids), sampling_params, kwargs))
        most = tokens_allowed(prompt_ids, sampling_params, **BUDGETS)
        return TokenOutput(token_ids=[40, 2][:most], log_probs=[-1.0, -2.0][:most], extra_fields={"global_steps": 6})


def session_of(prefix=None, **more):
    return Session("some_agent", version=6, prefix=prefix, **BUDGETS, **more)


def ask(session, prompt_ids, params=None, *, client=None, **kwargs):
    """What a loop gets that asks with these token ids."""
    client = SessionClient(client or FakeClient())

    async def generate():
        with holding(session):
            return await client.generate("r", prompt_ids=prompt_ids, sampling_params=params or {}, **kwargs)

    return asyncio.run(generate())


# ---- one turn ----


def test_the_engine_continues_the_prefix_within_what_is_left_of_the_budget():
    client, params = FakeClient(), {"temperature": 0.7}
    output = ask(session_of(ONE), PROMPT, params, client=client, priority=3, image_data=None)
    request = ("r", [10, 11, 20, 21, 22], {"temperature": 0.7, "max_tokens": 13}, {"priority": 3, "image_data": None})
    assert client.requests == [request] and params == {"temperature": 0.7}
    assert output.token_ids == [20, 21, 22, 40, 2] and output.log_probs == [-0.1, -0.2, -0.3, -1.0, -2.0]
    assert output.extra_fields == {"global_steps": 6}


@pytest.mark.parametrize(
    ("params", "prompt", "left"),
    [
        ({"max_tokens": 9}, PROMPT, 6),  # the loop's own
        ({"max_new_tokens": 9}, PROMPT, 6),
        ({}, [*PROMPT, 12, 13, 14, 15], 11),  # longer than prompt_length=4: verl's server allows 4 + 16 - 6
    ],
)
def test_the_budget_is_that_of_the_loop(params, prompt, left):
    client = FakeClient()
    ask(session_of(ONE), prompt, params, client=client)
    assert client.requests[0][2]["max_tokens"] == left


def test_a_turn_that_fills_the_loops_budget_is_over():
    client = FakeClient()
    output = ask(session_of(ONE), PROMPT, {"max_tokens": 3}, client=client)
    assert client.requests == [] and output.token_ids == [20, 21, 22]


def test_a_complete_response_is_handed_out_without_asking_the_engine():
    client = FakeClient()
    complete = Prefix((20, 21, 2), (-0.1, -0.2, -0.3), 4, head=1, complete=True)
    output = ask(session_of(complete), PROMPT, client=client)
    assert client.requests == []
    assert output.token_ids == [20, 21, 2] and output.log_probs == [-0.1, -0.2, -0.3]
    assert output.stop_reason == "completed"
    versions = {"global_steps": 6, "min_global_steps": 6, "max_global_steps": 6}  # of the policy that is in training
    assert output.extra_fields == versions


@pytest.mark.parametrize("session", [None, session_of()])
def test_without_a_prefix_the_request_is_the_loops_own(session):
    client, params = FakeClient(), {"temperature": 0.7}
    if session is None:
        asked = SessionClient(client)
        asyncio.run(asked.generate("r", prompt_ids=PROMPT, sampling_params=params, priority=0))
    else:
        ask(session, PROMPT, params, client=client, priority=0)
    assert client.requests == [("r", PROMPT, {"temperature": 0.7}, {"priority": 0})]


def test_other_things_of_verls_client_are_there():
    assert SessionClient(FakeClient()).tokenizer == "a tokenizer"


def test_an_opening_ends_with_what_was_asked_first():
    client = FakeClient()
    with pytest.raises(FirstRequest) as asked:
        given = {"image_data": ["an image"], "audio_data": None, "priority": 0}
        ask(Opening("some_agent"), (10, 11), {"stop_token_ids": [7]}, client=client, **given)
    assert (asked.value.prompt_ids, asked.value.params) == ([10, 11], {"stop_token_ids": [7]})
    assert asked.value.media == {"image_data": ["an image"]}
    assert client.requests == [] and not isinstance(asked.value, Exception)  # which a loop may catch


def test_every_turn_has_a_seed_of_its_own_and_the_first_is_that_of_single_turn_runs():
    client, session = FakeClient(), session_of(seed=(1, 3, "7", 0))
    for prompt in (PROMPT, [*PROMPT, 40, 2, 90]):
        ask(session, prompt, client=client)
    seeds = [params["seed"] for _, _, params, _ in client.requests]
    assert seeds == [stable_seed("response", 1, 3, "7", 0), stable_seed("response", 1, 3, "7", 0, 1)]


# ---- recorded turns ----


def test_a_prefix_knows_its_turns():
    assert [tuple(t) for t in ONE.turns] == [(0, 3, False)]
    assert [tuple(t) for t in TWO.turns] == [(0, 3, True), (5, 7, False)]
    assert [tuple(t) for t in replace(TWO, complete=True).turns] == [(0, 3, True), (5, 7, True)]
    answered = replace(TWO, token_ids=TWO.token_ids[:4], log_probs=TWO.log_probs[:4], loss_mask=(1, 1, 1, 0))
    assert [tuple(t) for t in replace(answered, turn_starts=()).turns] == [(0, 3, True)]
    at_once = replace(TWO, loss_mask=(), turn_starts=(3,))  # a loop that asks again without saying anything
    assert [tuple(t) for t in at_once.turns] == [(0, 3, True), (3, 7, False)]
    assert (ONE.historical, TWO.historical, replace(TWO, head=1).historical) == (3, 5, 4)


def test_whole_turns_are_played_back_and_the_last_is_continued():
    client, session = FakeClient(), session_of(TWO)
    first = ask(session, PROMPT, client=client)
    assert first.token_ids == [20, 21, 2] and first.log_probs == [-0.1, -0.2, -0.3] and client.requests == []
    second = ask(session, [10, 11, 20, 21, 2, 90, 91], client=client)
    assert second.token_ids == [30, 31, 40, 2] and second.log_probs == [-0.4, -0.5, -1.0, -2.0]
    ((_, asked_with, params, _),) = client.requests
    assert asked_with == [10, 11, 20, 21, 2, 90, 91, 30, 31] and params["max_tokens"] == 4 + 16 - 7 - 2
    third = ask(session, [10, 11, 20, 21, 2, 90, 91, 30, 31, 40, 2, 92], client=client)
    assert third.token_ids == [40, 2] and not session.cut_short


@pytest.mark.parametrize("answer", [[90, 92], [90], [90, 91, 91]])
def test_where_a_tool_answers_otherwise_history_ends(answer):
    client, session = FakeClient(), session_of(TWO)
    ask(session, PROMPT, client=client)
    output = ask(session, [10, 11, 20, 21, 2, *answer], client=client)
    assert output.token_ids == [40, 2] and session.cut_short
    output = ask(session, [10, 11, 20, 21, 2, 90, 91], client=client)  # what follows is never recorded again
    assert output.token_ids == [40, 2]
    found = session.output(output_of([20, 21, 2, *answer, 40, 2], mask=[1] * 3 + [0] * len(answer) + [1] * 2))
    assert found.prefix_mask == [1] * 3 + [0] * (len(answer) + 2) and found.policy_version == 4
    assert found.extra_fields[FACTS]["cut_short"] is True


def test_history_that_has_ended_does_not_come_back():
    three = replace(
        TWO,
        token_ids=(*TWO.token_ids, 92, 50),
        log_probs=(*TWO.log_probs, 0.0, -0.6),
        loss_mask=(*TWO.loss_mask, 0, 1),
        turn_starts=(5, 8),
    )
    session = session_of(three)
    prompts = [PROMPT, [*PROMPT, 20, 21, 2, 99], [*PROMPT, *three.token_ids[:8]]]
    given = [ask(session, prompt).token_ids[0] for prompt in prompts]
    assert given == [20, 40, 40]  # not 50


def test_a_tool_that_answers_with_an_image_ends_history():
    for images, taken in ((["a"], True), (["a", "another"], False)):
        session = session_of(TWO)
        ask(session, PROMPT, image_data=["a"])
        output = ask(session, [10, 11, 20, 21, 2, 90, 91], image_data=images)
        assert (output.token_ids[:2] == [30, 31]) is taken and session.cut_short is not taken


def test_the_output_says_which_images_its_prompt_had():
    session = session_of(images="a key")
    ask(session, PROMPT)
    assert session.output(output_of([20, 21])).extra_fields[FACTS]["images"] == "a key"


def test_a_prefix_of_another_prompt_is_not_taken():
    for ids, taken in (([10, 11], True), ([10, 12], False)):
        session = session_of(replace(ONE, prompt_hash=prompt_hash([10, 11])))
        output = ask(session, ids)
        assert (output.token_ids[:3] == [20, 21, 22]) is taken and session.cut_short is not taken
    assert session.output(output_of([40, 2], prompt=[10, 12])).policy_version == -1


def test_requests_beside_the_conversation_are_left_alone():
    client, session = FakeClient(), session_of(TWO)
    ask(session, PROMPT, client=client)
    assert ask(session, [77, 78], client=client).token_ids == [40, 2]
    assert ask(session, [10, 11, 20, 21, 2, 90, 91], client=client).token_ids[:2] == [30, 31]
    assert not session.cut_short


# ---- outputs ----


def output_of(ids, *, mask=None, prompt=(10, 11), **more):
    return AgentLoopOutput(
        prompt_ids=list(prompt),
        response_ids=ids,
        response_mask=mask or [1] * len(ids),
        response_logprobs=[-1.0] * len(ids),
        metrics=AgentLoopMetrics(),
        **more,
    )


def played(prefix, *prompts):
    """A session whose loop has asked with these token ids."""
    session = session_of(prefix)
    for prompt in prompts:
        ask(session, prompt)
    return session


def test_historical_tokens_are_the_policys_own_of_the_turns_that_were_played():
    session = played(TWO, PROMPT, [10, 11, 20, 21, 2, 90, 91])
    output = session.output(output_of([20, 21, 2, 90, 91, 30, 31, 40, 2], mask=[1, 1, 1, 0, 0, 1, 1, 1, 1]))
    assert output.prefix_mask == [1, 1, 1, 0, 0, 1, 1, 0, 0] and output.policy_version == 4
    assert output.extra_fields[FACTS] == {"turn_starts": [5], "cut_short": False}


@pytest.mark.parametrize(
    ("prefix", "mask"),
    [
        (ONE, [1, 1, 1, 0]),
        (replace(ONE, head=1), [0, 1, 1, 0]),  # in the middle
        (replace(ONE, head=3), [0, 0, 0, 0]),
        (None, [0, 0, 0, 0]),
    ],
)
def test_the_output_of_one_turn(prefix, mask):
    output = played(prefix, PROMPT).output(output_of([20, 21, 22, 40]))
    assert output.prefix_mask == mask and output.policy_version == (4 if any(mask) else -1)
    assert FACTS not in output.extra_fields  # nothing to say
    fields = output.as_dict()
    assert fields["prefix_mask"].tolist() == mask and str(fields["prefix_mask"].dtype) == "torch.int8"
    assert fields["policy_version"].shape == () and fields["responses"].tolist() == [20, 21, 22, 40]


def test_an_end_token_that_the_loop_replaces_is_no_historical_one():
    """GLM's turns end with the token that the next message begins with."""
    session = played(TWO, PROMPT)
    assert session.output(output_of([20, 21, 95, 40], mask=[1, 1, 0, 1])).prefix_mask == [1, 1, 0, 0]


def test_the_output_of_a_response_that_the_loop_cut():
    assert played(ONE, PROMPT).output(output_of([20, 21])).prefix_mask == [1, 1]


def test_mixed_and_onpolicy_outputs_have_the_same_fields_and_keep_what_the_loop_set():
    given = output_of([20, 21, 22, 40], reward_score=0.5, extra_fields={"turn_scores": []})
    mixed, onpolicy = (played(prefix, PROMPT).output(given).as_dict() for prefix in (ONE, None))
    assert set(mixed) == set(onpolicy) == {*given.as_dict(), "prefix_mask", "policy_version"}
    assert mixed["rm_scores"].tolist() == [0, 0, 0, 0.5] and mixed["extra_fields"] == {"turn_scores": []}


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ([output_of([20, 21, 22])] * 2, "it returned 2 outputs"),
        ([], "it returned 0 outputs"),
        (output_of([20, 21, 22], prompt=[10]), "its response does not continue its first request"),
        (output_of([20, 25, 22]), "its response lost turns that it was given"),
    ],
)
def test_loops_that_no_prefix_can_be_given_to_are_refused_by_name(outputs, fault):
    with pytest.raises(ValueError, match=f"^agent_name='some_agent': {fault}: expected one response a session"):
        played(ONE, PROMPT).output(outputs)


def test_a_list_of_one_is_one():
    assert isinstance(played(ONE, PROMPT).output([output_of([20, 21, 22])]), MixedOutput)


def test_a_session_that_asked_for_nothing_is_onpolicy():
    assert session_of().output(output_of([50], mask=[0], prompt=[1])).prefix_mask == [0]
