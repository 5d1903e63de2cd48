"""The engine is a client that says token after token 20, 21 and so on, from a script or without end."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.history import Prefix
from soup_verl.method.history.prefixes import cut_prefix, extended, prompt_hash
from soup_verl.method.mixing import MixingPlanner, PrefixRequest, Schedule, stable_seed
from soup_verl.stack.prefix_sampler import PrefixSampler
from tests.unit.stack.server import tokens_allowed

EOS, PAD = 2, 9
PARAMS = {"temperature": 0.7, "logprobs": True}
CHAT = [{"role": "user", "content": "1+1?"}]


# ---- cutting and joining ----


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


@given(st.lists(st.sampled_from([EOS, PAD, 5, 6, 7]), max_size=8), st.integers(1, 8))
def test_no_cut_prefix_has_an_end_token_or_is_longer_than_wanted(tokens, wanted):
    prefix = cut(*tokens[:wanted], wanted=wanted)
    if prefix is not None:
        assert not {EOS, PAD} & set(prefix.token_ids) and len(prefix) <= wanted
        assert prefix.token_ids == tuple(tokens[: len(prefix)]) and not prefix.complete


def test_a_head_and_the_stretch_after_it_are_one_prefix():
    head = Prefix((5, 6), (-0.5, -0.6), -1, head=2)
    stretch = Prefix((7,), (-0.7,), 3)
    assert extended(head, stretch) == Prefix((5, 6, 7), (-0.5, -0.6, -0.7), 3, head=2)
    assert extended(head, None) is head
    assert extended(head, Prefix((7,), (-0.7,), 3, complete=True)).complete


# ---- sampling ----


@dataclass
class Client:
    """An engine of version 6. `says` is what it answers, one list a request, then 20, 21 and so on up to the limit. The
    first of several requests is answered last."""

    says: list = field(default_factory=list)
    requests: list = field(default_factory=list)

    async def generate(self, request_id, *, prompt_ids, sampling_params, priority, **media):
        assert request_id not in {r.id for r in self.requests}, "every request needs its own id"
        limit = sampling_params["max_tokens"]
        assert limit == tokens_allowed(prompt_ids, sampling_params, prompt_length=2, response_length=16), "no room"
        scripted = self.says.pop(0) if self.says else list(range(20, 20 + limit))
        assert 0 < len(scripted) <= limit, "the script is longer than what was asked for"
        assert priority > 0, "the step's own responses have verl's 0 and would not go first"
        request = {"prompt_ids": prompt_ids, "params": sampling_params, "media": media}
        self.requests.append(SimpleNamespace(id=request_id, **request))
        for _ in range(9 - len(self.requests)):
            await asyncio.sleep(0)
        log_probs = [-token / 100 for token in scripted]
        return SimpleNamespace(token_ids=scripted, log_probs=log_probs, extra_fields={"global_steps": 6})


ASKED = prompt_hash([10, 11])
MEDIA = {"image_data": ["an image"]}


def sampler_of(client, *, seed=None, response_length=16):
    async def opening_of(step, prompt):
        assert step == 3 and prompt is CHAT
        return SimpleNamespace(prompt_ids=[10, 11], params=PARAMS, media=MEDIA)

    return PrefixSampler(
        client=client,
        opening_of=opening_of,
        response_length=response_length,
        eos_token_ids=frozenset({EOS}),
        seed=seed,
    )


def heads_of(client, *requests, **settings):
    return asyncio.run(sampler_of(client, **settings).heads(3, 1, CHAT, requests))


def prefixes_of(client, *requests, heads=None, **settings):
    return asyncio.run(sampler_of(client, **settings).prefixes(3, 1, CHAT, requests, heads or {}))


def given_head(*ids, complete=False):
    return Prefix(ids, tuple(-i / 100 for i in ids), -1, head=len(ids), complete=complete, prompt_hash=ASKED)


def test_a_prefix_follows_the_prompt_and_has_the_engines_version():
    client = Client()
    found = prefixes_of(client, PrefixRequest(2, 3))
    assert found == {2: Prefix((20, 21, 22), (-0.2, -0.21, -0.22), 6, prompt_hash=ASKED)}
    (request,) = client.requests
    assert request.prompt_ids == [10, 11] and request.params == {**PARAMS, "max_tokens": 3}
    assert request.media == MEDIA
    assert PARAMS == {"temperature": 0.7, "logprobs": True}


def test_a_token_that_ends_a_turn_of_the_loop_ends_a_prefix_wherever_it_stands(monkeypatch):
    """A tool call's, which the engine stops at: nothing of the same turn may follow it."""
    monkeypatch.setitem(PARAMS, "stop_token_ids", [77])
    assert prefixes_of(Client([[20, 21, 77]]), PrefixRequest(2, 3))[2].token_ids == (20, 21)


LOOPS_OWN = pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])


@LOOPS_OWN
@pytest.mark.parametrize(("limit", "ids"), [(2, (20, 21)), (9, (20, 21, 22))])
def test_a_prefix_is_no_longer_than_the_loop_itself_lets_its_turn_be(monkeypatch, name, limit, ids):
    monkeypatch.setitem(PARAMS, name, limit)
    client = Client()
    assert prefixes_of(client, PrefixRequest(2, 3))[2].token_ids == ids
    assert client.requests[0].params == {"temperature": 0.7, "logprobs": True, "max_tokens": len(ids)}


@LOOPS_OWN
def test_a_head_and_what_follows_it_are_no_longer_than_the_loop_lets_them_be(monkeypatch, name):
    monkeypatch.setitem(PARAMS, name, 3)
    full = given_head(20, 21, 22, complete=True)
    assert heads_of(Client(), PrefixRequest(1, head=3)) == heads_of(Client(), PrefixRequest(1, head=9)) == {1: full}
    for request in (PrefixRequest(1, 4, head=2), PrefixRequest(1, head=2, to_the_end=True)):
        assert prefixes_of(Client(), request, heads={1: given_head(30, 31)})[1].token_ids == (30, 31, 20)


def test_each_session_has_its_own_request_and_an_empty_prefix_is_left_out():
    client = Client([[20, 21], [EOS], [22, EOS, 23]])
    found = prefixes_of(client, PrefixRequest(0, 2), PrefixRequest(1, 3), PrefixRequest(3, 3))
    assert {s: p.token_ids for s, p in found.items()} == {0: (20, 21), 3: (22,)}
    assert [r.params["max_tokens"] for r in client.requests] == [2, 3, 3]


def test_nothing_planned_is_nothing_asked():
    client = Client()
    assert prefixes_of(client) == heads_of(client) == {} and client.requests == []


def test_heads_are_the_current_policys_own_tokens():
    client = Client([[30, 31, 32]])
    found = heads_of(client, PrefixRequest(1, 4, head=3))
    assert found == {1: Prefix((30, 31, 32), (-0.3, -0.31, -0.32), -1, head=3, prompt_hash=ASKED)}
    assert found[1].historical == 0 and not found[1].complete
    assert client.requests[0].params["max_tokens"] == 3


@pytest.mark.parametrize("says", [[30, EOS], [EOS], [30, 31, EOS], [30]])
def test_a_response_that_ends_in_its_head_is_complete(says):
    """Shorter than asked for, or an end token on the last place; the end token is the response's own and stays."""
    head = heads_of(Client([says]), PrefixRequest(1, 4, head=3))[1]
    assert head.token_ids == tuple(says) and head.complete and head.historical == 0


def test_the_historical_policy_continues_the_head_in_the_middle():
    client = Client()
    found = prefixes_of(client, PrefixRequest(1, 2, head=3), heads={1: given_head(30, 31, 32)})
    assert found == {1: Prefix((30, 31, 32, 20, 21), (-0.3, -0.31, -0.32, -0.2, -0.21), 6, head=3, prompt_hash=ASKED)}
    assert client.requests[0].prompt_ids == [10, 11, 30, 31, 32] and client.requests[0].params["max_tokens"] == 2


def test_an_end_token_in_the_middle_stretch_is_left_to_the_current_policy():
    client = Client([[20, EOS]])
    found = prefixes_of(client, PrefixRequest(1, 4, head=2), heads={1: given_head(30, 31)})
    assert found == {1: Prefix((30, 31, 20), (-0.3, -0.31, -0.2), 6, head=2, prompt_hash=ASKED)}


def test_an_end_token_right_after_the_head_leaves_an_onpolicy_head():
    head = given_head(30, 31)
    found = prefixes_of(Client([[EOS]]), PrefixRequest(1, 4, head=2), heads={1: head})
    assert found == {1: head} and found[1].historical == 0 and not found[1].complete


def test_the_historical_policy_writes_the_rest_of_the_response_its_end_included():
    client = Client([[20, 21, EOS]])
    found = prefixes_of(client, PrefixRequest(1, head=2, to_the_end=True), heads={1: given_head(30, 31)})
    assert found == {
        1: Prefix((30, 31, 20, 21, EOS), (-0.3, -0.31, -0.2, -0.21, -0.02), 6, head=2, complete=True, prompt_hash=ASKED)
    }
    assert client.requests[0].params["max_tokens"] == 14  # 16 less the head


def test_the_historical_policy_writes_a_whole_response():
    client = Client([[20, 21, EOS]])
    found = prefixes_of(client, PrefixRequest(1, to_the_end=True))
    assert found == {1: Prefix((20, 21, EOS), (-0.2, -0.21, -0.02), 6, complete=True, prompt_hash=ASKED)}
    assert client.requests[0].params["max_tokens"] == 16


@pytest.mark.parametrize("to_the_end", [False, True])
def test_a_complete_head_is_not_continued(to_the_end):
    client, head = Client(), given_head(30, EOS, complete=True)
    length = 0 if to_the_end else 4
    assert prefixes_of(client, PrefixRequest(1, length, head=3, to_the_end=to_the_end), heads={1: head}) == {1: head}
    assert client.requests == []


def test_every_session_continues_its_own_head():
    client = Client()
    heads = {1: given_head(30), 2: given_head(40, EOS, complete=True), 3: given_head(50)}
    found = prefixes_of(client, *(PrefixRequest(s, 1, head=1) for s in (1, 2, 3)), heads=heads)
    assert {s: p.token_ids for s, p in found.items()} == {1: (30, 20), 2: (40, EOS), 3: (50, 20)}
    assert [r.prompt_ids for r in client.requests] == [[10, 11, 30], [10, 11, 50]]


@pytest.mark.parametrize(("seed", "seeded"), [(None, False), (5, True)])
def test_every_request_has_its_own_seed_if_sampling_is_seeded(seed, seeded):
    client, requests = Client(), [PrefixRequest(s, 2, head=2) for s in (1, 2)]
    heads = heads_of(client, *requests, seed=seed)
    prefixes_of(client, *requests, heads=heads, seed=seed)
    seeds = [r.params.get("seed") for r in client.requests]
    if not seeded:
        assert seeds == [None] * 4
    else:
        expected = [stable_seed(purpose, 5, 3, 1, s) for purpose in ("head", "prefix") for s in (1, 2)]
        assert seeds == expected and len(set(seeds)) == 4


def test_an_engine_that_reports_no_log_probs_is_an_error():
    class Silent(Client):
        async def generate(self, *args, **kwargs):
            output = await super().generate(*args, **kwargs)
            output.log_probs = None
            return output

    with pytest.raises(AssertionError, match="log-probs"):
        prefixes_of(Silent(), PrefixRequest(1, 2))


@st.composite
def scripts(draw):
    """An engine that now and then ends a response."""
    return draw(st.lists(st.sampled_from([20, 21, 22, 23, 24, 25, EOS]), min_size=16, max_size=16))


@given(
    st.sampled_from(["prefix", "middle", "suffix"]),
    scripts(),
    scripts(),
    st.integers(0, 99),
    st.integers(1, 7),
)
def test_no_prefix_exceeds_the_budget_or_hides_an_end_token(position, head_says, stretch_says, seed, high):
    class Ending(Client):
        def __init__(self, script):
            super().__init__()
            self.script = script

        async def generate(self, request_id, *, sampling_params, **rest):
            ids = self.script[: sampling_params["max_tokens"]]
            ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
            self.says = [ids]
            return await super().generate(request_id, sampling_params=sampling_params, **rest)

    planner = MixingPlanner(seed, 4, Schedule(0.5), 1, Schedule(high), position=position)
    requests = planner.plan_prompt(step=3, place=1)
    heads = heads_of(Ending(head_says), *requests) if position != "prefix" else {}
    found = prefixes_of(Ending(stretch_says), *requests, heads=heads)
    for prefix in found.values():
        assert len(prefix) < 16 or (prefix.complete and len(prefix) == 16)
        inner = prefix.token_ids[:-1] if prefix.complete else prefix.token_ids
        assert EOS not in inner
        assert len(prefix) == prefix.head + prefix.historical
        if position == "prefix":
            assert prefix.head == 0 and not prefix.complete


def test_a_head_that_fills_the_budget_is_complete():
    """Whole responses of the current policy are heads: nothing could follow them."""
    assert heads_of(Client(), PrefixRequest(0, head=4), response_length=4) == {
        0: given_head(20, 21, 22, 23, complete=True)
    }
    assert heads_of(Client(), PrefixRequest(0, head=4), response_length=5) == {0: given_head(20, 21, 22, 23)}
