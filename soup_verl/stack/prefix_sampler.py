"""Sampling prefixes from whatever policy the rollout engine holds: one request a prefix, joined as token ids.

Knows the engine's client and nothing else of verl; `rollout.SoupAgentLoopWorker` owns one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from soup_verl.method.history.prefixes import Prefix, cut_prefix, extended, prompt_hash
from soup_verl.method.mixing import PrefixRequest, stable_seed

PRIORITY = 1
"""Of every request made here: after the step's own responses, which have verl's 0 (vLLM takes lower numbers first)."""
LIMITS = ("max_tokens", "max_new_tokens")
"""What verl's server takes for a request's limit in tokens. Given both, it hands vLLM the second, which is an error."""


def with_limit(params: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Sampling parameters with this limit and no other."""
    return {name: value for name, value in params.items() if name not in LIMITS} | {"max_tokens": tokens}


@dataclass(frozen=True)
class PrefixSampler:
    """Samples the historical tokens of some prompts, and the heads before them.

    Args:
        client: verl's LLM client, `generate(request_id, prompt_ids=, sampling_params=, priority=)`, and whatever else
            the row's agent loop gives it.
        opening_of: step and row of the data set -> what the row's agent loop asks first, `prompt_ids` and the sampling
            parameters `params`, log-probs included; `media`, such as its images, goes with every request.
        response_length: budget of a response in tokens.
        eos_token_ids: tokens that end a response.
        seed: seed of every request; None leaves sampling to the engine.
    """

    client: Any
    opening_of: Callable[[int, dict[str, Any]], Awaitable[Any]]
    response_length: int
    eos_token_ids: frozenset[int]
    seed: int | None

    async def heads(
        self, step: int, place: int, prompt: dict[str, Any], requests: Sequence[PrefixRequest]
    ) -> dict[int, Prefix]:
        """What the current policy says before the historical tokens; complete if the response ends there.

        Args:
            step, place: the batch the prompt belongs to, and its place in it.
            prompt: row of the data set.
            requests: the planned prefixes.

        Returns:
            session -> head.
        """
        if not requests:
            return {}
        opening = await self.opening_of(step, prompt)
        heads = await asyncio.gather(*(self._head(step, place, opening, r) for r in requests))
        return {r.session: head for r, head in zip(requests, heads, strict=True)}

    async def prefixes(
        self,
        step: int,
        place: int,
        prompt: dict[str, Any],
        requests: Sequence[PrefixRequest],
        heads: dict[int, Prefix],
    ) -> dict[int, Prefix]:
        """The historical tokens, after their heads where there are any.

        Args:
            step, place, prompt, requests: as for `heads`.
            heads: session -> head.

        Returns:
            session -> prefix, without those that came out empty.
        """
        if not requests:
            return {}
        opening = await self.opening_of(step, prompt)
        found = await asyncio.gather(*(self._prefix(step, place, opening, r, heads.get(r.session)) for r in requests))
        return {r.session: prefix for r, prefix in zip(requests, found, strict=True) if prefix is not None}

    async def _head(self, step: int, place: int, opening: Any, request: PrefixRequest) -> Prefix:
        budget = self._budget(opening)
        output = await self._generate(opening, (), min(request.head, budget), "head", step, place, request.session)
        ids = tuple(output.token_ids)
        ended = len(ids) < request.head or ids[-1] in self.eos_token_ids or len(ids) == budget
        return Prefix(
            ids, tuple(output.log_probs), -1, len(ids), complete=ended, prompt_hash=prompt_hash(opening.prompt_ids)
        )

    async def _prefix(
        self, step: int, place: int, opening: Any, request: PrefixRequest, head: Prefix | None
    ) -> Prefix | None:
        if head is not None and head.complete:
            return head
        given = head.token_ids if head else ()
        left = self._budget(opening) - len(given)
        wanted = left if request.to_the_end else min(request.length, left)
        output = await self._generate(opening, given, wanted, "prefix", step, place, request.session)
        version = output.extra_fields["global_steps"]
        if request.to_the_end:
            stretch: Prefix | None = Prefix(tuple(output.token_ids), tuple(output.log_probs), version, complete=True)
        else:
            stretch = cut_prefix(
                output.token_ids,
                output.log_probs,
                wanted=wanted,
                eos_token_ids=self.eos_token_ids | frozenset(opening.params.get("stop_token_ids") or ()),
                policy_version=version,
            )
        if head is not None:
            return extended(head, stretch)
        return stretch and replace(stretch, prompt_hash=prompt_hash(opening.prompt_ids))

    def _budget(self, opening: Any) -> int:
        """Most tokens of the first turn: the response's, or fewer where the loop itself asks for fewer."""
        own = (opening.params.get(name) for name in LIMITS)
        return min([self.response_length, *(limit for limit in own if limit is not None)])

    async def _generate(
        self,
        opening: Any,
        given: Sequence[int],
        max_tokens: int,
        purpose: str,
        step: int,
        place: int,
        session: int,
    ) -> Any:
        params = with_limit(opening.params, max_tokens)
        if self.seed is not None:
            params["seed"] = stable_seed(purpose, self.seed, step, place, session)
        output = await self.client.generate(
            uuid4().hex,
            prompt_ids=[*opening.prompt_ids, *given],
            sampling_params=params,
            priority=PRIORITY,
            **opening.media,
        )
        assert output.log_probs is not None, "the rollout engine returned no log-probs"
        return output
