"""Sampling prefixes from whatever policy the rollout engine holds: one request a prefix, joined as token ids.

Knows the engine's client and nothing else of verl; `rollout.SoupAgentLoopWorker` owns one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from soup_verl.history.base import Prefix
from soup_verl.mixing import PrefixRequest, stable_seed

PRIORITY = 1
"""Of every request made here: after the step's own responses, which have verl's 0 (vLLM takes lower numbers first)."""


@dataclass(frozen=True)
class PrefixSampler:
    """Samples the historical tokens of some prompts, and the heads before them.

    Args:
        client: verl's LLM client, `generate(request_id, prompt_ids=, sampling_params=, priority=)`.
        prompt_ids_of: chat messages -> the token ids a response is sampled from.
        params: sampling parameters of the training rollout, log-probs included.
        response_length: budget of a response in tokens.
        eos_token_ids: tokens that end a response.
        seed: seed of every request; None leaves sampling to the engine.
    """

    client: Any
    prompt_ids_of: Callable[[list[dict]], Awaitable[list[int]]]
    params: dict[str, Any]
    response_length: int
    eos_token_ids: frozenset[int]
    seed: int | None

    async def heads(
        self, step: int, position: int, raw_prompt: list[dict], requests: Sequence[PrefixRequest]
    ) -> dict[int, Prefix]:
        """What the current policy says before the historical tokens; complete if the response ends there.

        Args:
            step, position: the batch the prompt belongs to, and its place in it.
            raw_prompt: chat messages.
            requests: the planned prefixes.

        Returns:
            session -> head.
        """
        if not requests:
            return {}
        prompt_ids = await self.prompt_ids_of(raw_prompt)
        heads = await asyncio.gather(*(self._head(step, position, prompt_ids, r) for r in requests))
        return {r.session: head for r, head in zip(requests, heads, strict=True)}

    async def prefixes(
        self,
        step: int,
        position: int,
        raw_prompt: list[dict],
        requests: Sequence[PrefixRequest],
        heads: dict[int, Prefix],
    ) -> dict[int, Prefix]:
        """The historical tokens, after their heads where there are any.

        Args:
            step, position, raw_prompt, requests: as for `heads`.
            heads: session -> head.

        Returns:
            session -> prefix, without those that came out empty.
        """
        if not requests:
            return {}
        prompt_ids = await self.prompt_ids_of(raw_prompt)
        found = await asyncio.gather(
            *(self._prefix(step, position, prompt_ids, r, heads.get(r.session)) for r in requests)
        )
        return {r.session: prefix for r, prefix in zip(requests, found, strict=True) if prefix is not None}

    async def _head(self, step: int, position: int, prompt_ids: list[int], request: PrefixRequest) -> Prefix:
        output = await self._generate(prompt_ids, request.head, "head", step, position, request.session)
        ids = tuple(output.token_ids)
        ended = len(ids) < request.head or ids[-1] in self.eos_token_ids
        return Prefix(ids, tuple(output.log_probs), -1, head=len(ids), complete=ended)

    async def _prefix(
        self, step: int, position: int, prompt_ids: list[int], request: PrefixRequest, head: Prefix | None
    ) -> Prefix | None:
        if head is not None and head.complete:
            return head
        given = head.token_ids if head else ()
        wanted = self.response_length - len(given) if request.to_the_end else request.length
        output = await self._generate([*prompt_ids, *given], wanted, "prefix", step, position, request.session)
        version = output.extra_fields["global_steps"]
        if request.to_the_end:
            stretch: Prefix | None = Prefix(tuple(output.token_ids), tuple(output.log_probs), version, complete=True)
        else:
            stretch = cut_prefix(
                output.token_ids,
                output.log_probs,
                wanted=wanted,
                eos_token_ids=self.eos_token_ids,
                policy_version=version,
            )
        return stretch if head is None else extended(head, stretch)

    async def _generate(
        self, prompt_ids: list[int], max_tokens: int, purpose: str, step: int, position: int, session: int
    ) -> Any:
        params = {**self.params, "max_tokens": max_tokens}
        if self.seed is not None:
            params["seed"] = stable_seed(purpose, self.seed, step, position, session)
        output = await self.client.generate(
            uuid4().hex, prompt_ids=prompt_ids, sampling_params=params, priority=PRIORITY
        )
        assert output.log_probs is not None, "the rollout engine returned no log-probs"
        return output


def cut_prefix(
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    *,
    wanted: int,
    eos_token_ids: frozenset[int],
    policy_version: int,
) -> Prefix | None:
    """A sampled head as a prefix: it ends before the first end-of-sequence token, or where the engine stopped early.

    Returns:
        The prefix, or None if nothing is left of it.
    """
    ends = [i for i, token in enumerate(token_ids) if token in eos_token_ids]
    if ends:
        length = ends[0]
    else:  # an early stop without an end token known to us: the last token is what stopped the engine
        length = len(token_ids) if len(token_ids) >= wanted else len(token_ids) - 1
    if length <= 0:
        return None
    return Prefix(tuple(token_ids[:length]), tuple(log_probs[:length]), policy_version)


def extended(head: Prefix, stretch: Prefix | None) -> Prefix:
    """`head` followed by the historical policy's `stretch`; None adds nothing, and the response is on-policy."""
    if stretch is None:
        return head
    return Prefix(
        head.token_ids + stretch.token_ids,
        head.log_probs + stretch.log_probs,
        stretch.policy_version,
        head=len(head),
        complete=stretch.complete,
    )
