"""The prefix below the agent loop: one client for any loop of verl, which is given it in place of verl's own.

    SoupAgentLoopWorker._run_agent_loop    holds a Session while a loop runs
      -> the loop, unmodified              asks for the turns of a conversation, calls tools between them
           -> SessionClient.generate       hands out the prefix's turns, then the engine's, token ids and log-probs
      -> Session.output                    says which tokens of the loop's response are historical

A recorded turn is handed out where the loop asks with the very token ids that it followed: so the tools answered as
they did. Where they did not, history ends, and the engine answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.history.prefixes import Prefix, Turn, prompt_hash
from soup_verl.method.mixing import stable_seed
from soup_verl.stack.prefix_sampler import LIMITS, with_limit

FACTS = "soup"
"""Entry of an output's `extra_fields`, where there is anything to say: `turn_starts`, `cut_short` and `images` of its
session."""


class MixedOutput(AgentLoopOutput):
    """verl's output of one session, plus which of its tokens came from which policy."""

    prefix_mask: list[int]
    """1 on the response tokens that a historical policy sampled."""
    policy_version: int = -1
    """Version of that policy; -1 for an on-policy response."""

    def as_dict(self) -> dict[str, Any]:
        """verl's fields, plus `prefix_mask` (response_length,) int8 and `policy_version` (scalar) int64."""
        fields = super().as_dict()
        fields["prefix_mask"] = torch.tensor(fields.pop("prefix_mask"), dtype=torch.int8)
        fields["policy_version"] = torch.tensor(fields.pop("policy_version", -1), dtype=torch.int64)
        return fields


class FirstRequest(BaseException):
    """Ends a loop that was run only to learn what it asks first. No `Exception`: loops may catch those."""

    def __init__(self, prompt_ids: list[int], params: dict[str, Any], media: dict[str, Any]):
        super().__init__()
        self.prompt_ids = prompt_ids
        self.params = params
        self.media = media  # what verl's client is given beside them: `image_data` and so on


@dataclass(frozen=True)
class Opening:
    """In a session's place: the agent loop `agent_name` is stopped at its first request."""

    agent_name: str


@dataclass
class Session:
    """One run of an agent loop.

    Args:
        agent_name: of the loop.
        version: of the policy that the engine holds.
        prompt_length, response_length: the run's budgets in tokens; verl's server makes the limit of a request of them.
        prefix: what the response is to begin with; None for an on-policy response.
        seed: parts of the seed of its requests; None leaves sampling to the engine.
        images: `images.images_key` of its prompt.
    """

    agent_name: str
    version: int
    prompt_length: int
    response_length: int
    prefix: Prefix | None = None
    seed: tuple[Any, ...] | None = None
    images: str = ""
    _requests: int = field(default=0, init=False)
    _prompt: list[int] | None = field(default=None, init=False)
    _shown: int = field(default=0, init=False)
    _starts: list[int] = field(default_factory=list, init=False)
    _given: list[Turn] = field(default_factory=list, init=False)

    def params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The sampling parameters of the next request: every turn has a seed of its own."""
        number, self._requests = self._requests, self._requests + 1
        if self.seed is None:
            return params
        return params | {"seed": stable_seed("response", *self.seed, *([number] if number else []))}

    def next_turn(self, prompt_ids: Sequence[int], shown: int = 0) -> Turn | None:
        """The turn to hand out to a request with these token ids and so many images; None leaves it to the engine.

        Requests that do not continue the first one's conversation, such as a loop's own summaries, are none of ours.
        A tool that answers with an image ends history: token ids do not say whether it is the same one.
        """
        prompt_ids = list(prompt_ids)
        if self._prompt is None:
            self._prompt, self._shown = prompt_ids, shown
        start, number = len(prompt_ids) - len(self._prompt), len(self._starts)
        if prompt_ids[: len(self._prompt)] != self._prompt:
            return None
        self._starts.append(start)
        if self.prefix is None or number != len(self._given) or number >= len(self.prefix.turns):
            return None
        if shown != self._shown:
            return None
        turn = self.prefix.turns[number]
        known = self.prefix.prompt_hash in ("", prompt_hash(self._prompt))
        if not known or prompt_ids[len(self._prompt) :] != list(self.prefix.token_ids[: turn.start]):
            return None
        self._given.append(turn)
        return turn

    def limit(self, prompt_ids: Sequence[int], params: dict[str, Any]) -> int:
        """Most tokens of a turn: the loop's own limit, else what verl's server would allow."""
        for name in LIMITS:
            if params.get(name) is not None:
                return params[name]
        return min(self.response_length, self.prompt_length + self.response_length - len(prompt_ids))

    @property
    def cut_short(self) -> bool:
        """Whether history ended before the prefix did: its prompt, or the answer of a tool, was another one."""
        return self.prefix is not None and len(self._given) < len(self.prefix.turns)

    def output(self, output: AgentLoopOutput | list[AgentLoopOutput]) -> MixedOutput:
        """The loop's output, with what a historical policy sampled of it marked.

        Raises:
            ValueError: it is no single response that continues the first request and begins with the prefix.
        """
        output = self.single(output)
        mask = self._prefix_mask(output)
        facts = {
            "turn_starts": [s for s in sorted(set(self._starts)) if 0 < s < len(mask)],
            "cut_short": self.cut_short,
            **({"images": self.images} if self.images else {}),
        }
        if any(facts.values()):
            output.extra_fields[FACTS] = facts
        version = self.prefix.policy_version if self.prefix and any(mask) else -1
        fields = {name: getattr(output, name) for name in output.model_fields_set | {"extra_fields"}}
        return MixedOutput(**fields, prefix_mask=mask, policy_version=version)

    def single(self, output: AgentLoopOutput | list[AgentLoopOutput]) -> AgentLoopOutput:
        """The only one of a loop's outputs; raises ValueError if there are several."""
        outputs = output if isinstance(output, list) else [output]
        if len(outputs) != 1:
            raise refusal(self.agent_name, f"it returned {len(outputs)} outputs")
        return outputs[0]

    def _prefix_mask(self, output: AgentLoopOutput) -> list[int]:
        ids, mask = output.response_ids, [0] * len(output.response_ids)
        if self._prompt is not None and output.prompt_ids != self._prompt:
            raise refusal(self.agent_name, "its response does not continue its first request")
        for turn in self._given:
            assert self.prefix is not None
            for place in range(turn.start, min(turn.stop, len(ids))):
                if output.response_mask[place]:
                    if ids[place] != self.prefix.token_ids[place]:
                        raise refusal(self.agent_name, "its response lost turns that it was given")
                    mask[place] = int(place >= self.prefix.head)
        return mask


def refusal(agent_name: str, fault: str) -> ValueError:
    """Of an agent loop that no prefix can be given to."""
    return ValueError(
        f"agent_name={agent_name!r}: {fault}: expected one response a session, made of what it asked verl's client for "
        "in one growing conversation. Set soup.mixed_fraction=0 for this agent loop."
    )


_held: ContextVar[Session | Opening | None] = ContextVar("soup_session", default=None)


@contextmanager
def holding(session: Session | Opening) -> Iterator[None]:
    """Inside the block, and in the tasks that are started there, clients serve this session."""
    token = _held.set(session)
    try:
        yield
    finally:
        _held.reset(token)


def held() -> Session | Opening | None:
    """The session of the agent loop that runs."""
    return _held.get()


class SessionClient:
    """In place of verl's LLM client, `client`: the engine continues a session's prefix, the loop sees one response."""

    def __init__(self, client: LLMServerClient):
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def generate(
        self, request_id: str, *, prompt_ids: Sequence[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """As `LLMServerClient.generate`; the token ids and log-probs returned begin with those of the prefix's turn."""
        session, turn = held(), None
        if isinstance(session, Opening):
            media = {name: value for name, value in kwargs.items() if name != "priority" and value is not None}
            raise FirstRequest(list(prompt_ids), sampling_params, media)
        if session is not None:
            turn = session.next_turn(prompt_ids, len(kwargs.get("image_data") or ()))
            sampling_params = session.params(sampling_params)
        if session is None or turn is None:
            return await self.client.generate(
                request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs
            )
        assert session.prefix is not None
        given = list(session.prefix.token_ids[turn.start : turn.stop])
        log_probs = list(session.prefix.log_probs[turn.start : turn.stop])
        left = session.limit(prompt_ids, sampling_params) - len(given)
        if turn.whole or left < 1:
            versions = dict.fromkeys(("global_steps", "min_global_steps", "max_global_steps"), session.version)
            return TokenOutput(token_ids=given, log_probs=log_probs, stop_reason="completed", extra_fields=versions)
        output = await self.client.generate(
            request_id,
            prompt_ids=[*prompt_ids, *given],
            sampling_params=with_limit(sampling_params, left),
            **kwargs,
        )
        output.token_ids = [*given, *output.token_ids]
        output.log_probs = [*log_probs, *(output.log_probs or [])]
        return output
