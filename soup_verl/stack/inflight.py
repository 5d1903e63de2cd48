"""Responses that weight updates interrupt (`soup.source=inflight`): which policy sampled which token.

verl's `colocate_async` aborts what is being sampled when a batch is complete, and its client asks for the rest once the
rollout engine has the new weights. It hands on the log-prob of every token, but only the first and the last version of
a response. A client below verl's sees every attempt:

    agent loop -> FullyAsyncLLMServerClient   repeats an aborted request with the tokens so far
                    -> AttemptRecorder         one attempt: notes how many tokens it gave, and whose
                         -> LLMServerClient    one request to the engine
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.mixing import stable_seed

_versions: ContextVar[list[int] | None] = ContextVar("versions", default=None)


@contextmanager
def recorded_versions(wanted: bool) -> Iterator[None]:
    """If `wanted`, the policy version of every token that this task samples inside the block is recorded."""
    token = _versions.set([] if wanted else None)
    try:
        yield
    finally:
        _versions.reset(token)


class AttemptRecorder(LLMServerClient):
    """One attempt at a request. Where versions are recorded, a seed of the request is another for each attempt: the
    engine would begin the same random stream anew."""

    async def generate(self, request_id: str, *, sampling_params: dict[str, Any], **kwargs: Any) -> TokenOutput:
        """As verl's."""
        versions = _versions.get()
        if versions and sampling_params.get("seed") is not None:
            seed = stable_seed("rest", sampling_params["seed"], len(versions))
            sampling_params = {**sampling_params, "seed": seed}
        output = await super().generate(request_id, sampling_params=sampling_params, **kwargs)
        if versions is not None:
            versions += [output.extra_fields["global_steps"]] * len(output.token_ids)
        return output


class RecordingClient(FullyAsyncLLMServerClient, AttemptRecorder):
    """verl's client that repeats aborted requests; its single attempts are recorded."""


class VersionedOutput(AgentLoopOutput):
    """verl's output of one session, and which policy sampled which of its tokens."""

    token_versions: list[int] = []
    """Of each response token; -1 where no policy sampled it."""

    def as_dict(self) -> dict[str, Any]:
        """verl's fields, and `token_versions` (response_length,) int32."""
        fields = super().as_dict()
        fields["token_versions"] = torch.tensor(fields.pop("token_versions"), dtype=torch.int32)
        return fields


def with_versions(output: AgentLoopOutput) -> AgentLoopOutput:
    """The output with the versions of its tokens, which were sampled in this order; as it is if none are recorded."""
    versions = _versions.get()
    if versions is None:
        return output
    rest = iter(versions)
    of_tokens = [next(rest) if sampled else -1 for sampled in output.response_mask]
    return VersionedOutput(
        **{name: getattr(output, name) for name in output.model_fields_set}, token_versions=of_tokens
    )
