"""The mixed-policy rollout: the only file that knows verl's agent loops.

SoupTrainer                          puts GroupPrefixes beside each prompt of a batch
  -> SoupAgentLoopManager            one a run: dispatches prompts, and prefix requests for batches to come
       -> SoupAgentLoopWorker        a Ray actor: runs sessions, samples prefixes, stores results in TransferQueue
            -> SoupAgentLoop         one session: a response on-policy, or prefix + continuation
                 -> ContinuingClient joins a prefix and the engine's continuation, token ids and log-probs
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import ray
import torch
import transfer_queue as tq
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from soup_verl.config import SoupConfig
from soup_verl.history.base import GroupPrefixes, Prefix
from soup_verl.mixing import PrefixRequest, stable_seed

GROUP_PREFIXES = "group_prefixes"
"""Batch field, one GroupPrefixes a prompt, on its way from the trainer to the agent loop."""

# verl exports the Ray actor class; its methods are on the class underneath. Inheriting from that class breaks: Ray
# pickles the inherited __init__ by value and its zero-argument super() then names another class.
_WorkerTQ = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__


class MixedOutput(AgentLoopOutput):
    """verl's output of one session, plus which of its tokens came from which policy."""

    prefix_length: int = 0
    """Leading response tokens that a historical policy sampled."""
    policy_version: int = -1
    """Version of that policy; -1 for an on-policy response."""

    def as_dict(self) -> dict[str, Any]:
        """verl's fields, plus `prefix_mask` (response_length,) int8 and `policy_version` (scalar) int64."""
        fields = super().as_dict()
        length = fields.pop("prefix_length", 0)
        fields["prefix_mask"] = (torch.arange(len(self.response_ids)) < length).to(torch.int8)
        fields["policy_version"] = torch.tensor(fields.pop("policy_version", -1), dtype=torch.int64)
        return fields


class ContinuingClient:
    """Stands in for verl's LLM client in one session: the engine continues the prefix, the caller sees one response.

    Args:
        client: verl's client.
        prefix: the head of the response.
        response_length: budget of the whole response in tokens.
    """

    def __init__(self, client: LLMServerClient, prefix: Prefix, response_length: int):
        self._client = client
        self._prefix = prefix
        self._response_length = response_length

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """As `LLMServerClient.generate`; the token ids and log-probs returned begin with the prefix."""
        output = await self._client.generate(
            request_id,
            prompt_ids=[*prompt_ids, *self._prefix.token_ids],
            sampling_params={**sampling_params, "max_tokens": self._response_length - len(self._prefix)},
            **kwargs,
        )
        output.token_ids = [*self._prefix.token_ids, *output.token_ids]
        output.log_probs = [*self._prefix.log_probs, *(output.log_probs or [])]
        return output


@register("soup_agent")
class SoupAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn agent loop; with a prefix at hand, its response starts with it."""

    server_manager: Any

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        soup = SoupConfig.parse(self.config.soup)
        if soup.sampling_seed is not None:
            place = (kwargs.get("global_steps"), kwargs.get("index"), kwargs.get("session_id"))
            sampling_params = {**sampling_params, "seed": stable_seed("response", soup.sampling_seed, *place)}
        if not soup.mixing:
            return await super().run(sampling_params, **kwargs)
        group: GroupPrefixes | None = kwargs.get(GROUP_PREFIXES)
        prefix = group.by_session.get(kwargs["session_id"]) if group else None
        if prefix is not None:
            self.server_manager = ContinuingClient(self.server_manager, prefix, self.response_length)
        output = await super().run(sampling_params, **kwargs)
        if prefix is not None:
            assert output.response_ids[: len(prefix)] == list(prefix.token_ids), "the response lost its prefix"
        return MixedOutput(
            **{name: getattr(output, name) for name in output.model_fields_set},
            prefix_length=len(prefix) if prefix else 0,
            policy_version=prefix.policy_version if prefix else -1,
        )


class SoupAgentLoopWorker(AgentLoopWorker):
    """verl's TransferQueue worker that also samples prefixes and remembers why a session failed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        tq.init()
        self.background_tasks: set[asyncio.Task] = set()
        self._soup = SoupConfig.parse(self.config.soup)
        self._errors: list[str] = []
        self._prompt_builder: SingleTurnAgentLoop | None = None

    generate_sequences = _WorkerTQ.generate_sequences
    _run_prompt = _WorkerTQ._run_prompt
    _store_output = _WorkerTQ._agent_loop_postprocess

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, *, agent_name: str, **kwargs: Any) -> None:
        try:
            if agent_name != "soup_agent" and kwargs.get(GROUP_PREFIXES) is not None:
                raise ValueError(
                    f"agent_name={agent_name!r}: expected soup_agent, the agent loop that can continue a prefix. "
                    "Drop the data set's agent_name column or set soup.mixed_fraction=0."
                )
            await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, **kwargs)
        except Exception as error:  # verl logs it here and only counts the failure elsewhere
            cause = getattr(error, "cause", None) or error  # what Ray's wrapper wraps, if the reward worker raised
            self._errors.append(f"{type(cause).__name__}: {cause}")
            raise

    async def _agent_loop_postprocess(self, output: AgentLoopOutput, validate: bool, **kwargs: Any) -> None:
        kwargs.pop(GROUP_PREFIXES, None)  # verl stores every other keyword with the sample
        await self._store_output(output, validate, **kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        await super()._compute_score(outputs, kwargs=kwargs)
        for output in outputs:
            if output.reward_score is not None and not math.isfinite(output.reward_score):
                raise ValueError(
                    f"the reward function returned {output.reward_score} for a response to prompt index="
                    f"{kwargs.get('index')} (data_source={kwargs.get('data_source')!r}): expected a finite number"
                )

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call, a line each."""
        errors, self._errors = self._errors, []
        return errors

    async def sample_prefixes(
        self, step: int, raw_prompts: Sequence[list[dict]], requests: Sequence[Sequence[PrefixRequest]], start: int
    ) -> list[dict[int, Prefix]]:
        """Sample the prefixes of some prompts from the policy that the rollout engine holds now.

        Args:
            step: the step whose batch the prompts belong to.
            raw_prompts: chat messages, one list a prompt.
            requests: the planned prefixes, one sequence a prompt.
            start: position of the first prompt in its batch.

        Returns:
            For each prompt: session -> prefix, without those that came out empty.
        """
        groups = zip(raw_prompts, requests, strict=True)
        return await asyncio.gather(*(self._sample_group(step, start + i, p, r) for i, (p, r) in enumerate(groups)))

    async def _sample_group(
        self, step: int, position: int, raw_prompt: list[dict], requests: Sequence[PrefixRequest]
    ) -> dict[int, Prefix]:
        if any(not isinstance(message["content"], str) for message in raw_prompt):
            raise ValueError("a prompt holds more than text: expected text only. Set soup.mixed_fraction=0 for others.")
        prompt_ids = await self._builder().ct_build_initial_tokens(list(raw_prompt))
        sampled = await asyncio.gather(*(self._sample_one(step, position, prompt_ids, r) for r in requests))
        return {r.session: prefix for r, prefix in zip(requests, sampled, strict=True) if prefix is not None}

    async def _sample_one(
        self, step: int, position: int, prompt_ids: list[int], request: PrefixRequest
    ) -> Prefix | None:
        rollout = self.config.actor_rollout_ref.rollout
        params: dict[str, Any] = {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "repetition_penalty": 1.0,
            "logprobs": True,
            "max_tokens": request.length,
        }
        if self._soup.sampling_seed is not None:
            params["seed"] = stable_seed("prefix", self._soup.sampling_seed, step, position, request.session)
        output = await self.llm_client.generate(uuid4().hex, prompt_ids=prompt_ids, sampling_params=params)
        assert output.log_probs is not None, "the rollout engine returned no log-probs"
        return cut_prefix(
            output.token_ids,
            output.log_probs,
            wanted=request.length,
            eos_token_ids=self._eos_token_ids(),
            policy_version=output.extra_fields["global_steps"],
        )

    def _builder(self) -> SingleTurnAgentLoop:
        """An agent loop that only builds prompts: a prefix must follow the very tokens its continuation will."""
        if self._prompt_builder is None:
            self._prompt_builder = SoupAgentLoop(
                trainer_config=DictConfigWrap(self.config),
                server_manager=self.llm_client,
                tokenizer=self.tokenizer,
                processor=self.processor,
                dataset_cls=self.dataset_cls,
                data_config=DictConfigWrap(self.config.data),
                hf_model_type=self.hf_model_type,
            )
        return self._prompt_builder

    def _eos_token_ids(self) -> frozenset[int]:
        generation = getattr(self.model_config.generation_config, "eos_token_id", None)
        ids = generation if isinstance(generation, list) else [generation]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)


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


class PendingGroups:
    """Prefixes under way in the workers."""

    def __init__(self, refs: list[ray.ObjectRef], prompt_keys: list[str]):
        self._refs = refs
        self._prompt_keys = prompt_keys

    def result(self) -> list[GroupPrefixes]:
        """Wait for every worker; one entry a prompt, in batch order."""
        groups = [group for chunk in ray.get(self._refs) for group in chunk]
        return [GroupPrefixes(key, group) for key, group in zip(self._prompt_keys, groups, strict=True)]


class SoupAgentLoopManager(AgentLoopManagerTQ):
    """verl's TransferQueue manager with our workers, plus prefix requests."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SoupAgentLoopWorker)

    def sample_prefixes(
        self, step: int, raw_prompts: list[list[dict]], prompt_keys: list[str], plan: list[tuple[PrefixRequest, ...]]
    ) -> PendingGroups:
        """Ask for the planned prefixes of a batch without waiting; the rollout engine must be awake until they end.

        Args:
            step: the step whose batch it is.
            raw_prompts, prompt_keys, plan: chat messages, fingerprint and planned prefixes of each prompt.
        """
        size = math.ceil(len(raw_prompts) / len(self.agent_loop_workers))
        starts = range(0, len(raw_prompts), size)
        refs = [
            worker.sample_prefixes.remote(step, raw_prompts[i : i + size], plan[i : i + size], i)
            for worker, i in zip(self.agent_loop_workers, starts, strict=False)
        ]
        return PendingGroups(refs, prompt_keys)

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call."""
        return [e for errors in ray.get([w.take_errors.remote() for w in self.agent_loop_workers]) for e in errors]


__all__ = ["SoupAgentLoop", "SoupAgentLoopManager", "SoupAgentLoopWorker", "cut_prefix"]
