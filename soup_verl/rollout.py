"""The mixed-policy rollout: the only file that knows verl's agent loops.

SoupTrainer                          puts GroupPrefixes beside each prompt of a batch
  -> SoupAgentLoopManager            one a run: dispatches prompts, and prefix requests for batches to come
       -> SoupAgentLoopWorker        a Ray actor: runs sessions, samples prefixes, stores results in TransferQueue
            -> SoupAgentLoop         one session: a response on-policy, or prefix + continuation
                 -> ContinuingClient joins a prefix and the engine's continuation, token ids and log-probs
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from soup_verl.config import SoupConfig
from soup_verl.history.base import GroupPrefixes, Prefix, PromptPlan
from soup_verl.mixing import PrefixRequest, stable_seed
from soup_verl.prefix_sampler import PrefixSampler
from soup_verl.prompt_builder import fitting_model_type, with_eos

GROUP_PREFIXES = "group_prefixes"
"""Batch field, one GroupPrefixes a prompt, on its way from the trainer to the agent loop."""
SOUP_CONFIG = "soup_config"
"""Keyword of a session: our worker's `SoupConfig`. Parsing it anew took a fifth of a short session's time."""

# verl exports the Ray actor class; its methods are on the class underneath. Inheriting from that class breaks: Ray
# pickles the inherited __init__ by value and its zero-argument super() then names another class.
_WorkerTQ = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__


class MixedOutput(AgentLoopOutput):
    """verl's output of one session, plus which of its tokens came from which policy."""

    prefix_start: int = 0
    """Response token at which the historical ones begin."""
    prefix_length: int = 0
    """Response tokens that a historical policy sampled."""
    policy_version: int = -1
    """Version of that policy; -1 for an on-policy response."""

    def as_dict(self) -> dict[str, Any]:
        """verl's fields, plus `prefix_mask` (response_length,) int8 and `policy_version` (scalar) int64."""
        fields = super().as_dict()
        start, length = fields.pop("prefix_start", 0), fields.pop("prefix_length", 0)
        place = torch.arange(len(self.response_ids))
        fields["prefix_mask"] = ((place >= start) & (place < start + length)).to(torch.int8)
        fields["policy_version"] = torch.tensor(fields.pop("policy_version", -1), dtype=torch.int64)
        return fields


class ContinuingClient:
    """Stands in for verl's LLM client in one session: the engine continues the prefix, the caller sees one response.

    Args:
        client: verl's client.
        prefix: the given head of the response; if it is complete the engine is not asked at all.
        response_length: budget of the whole response in tokens.
        version: version of the policy the engine holds.
    """

    def __init__(self, client: LLMServerClient, prefix: Prefix, response_length: int, version: int):
        self._client = client
        self._prefix = prefix
        self._response_length = response_length
        self._version = version

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """As `LLMServerClient.generate`; the token ids and log-probs returned begin with the prefix."""
        if self._prefix.complete:
            names = ("global_steps", "min_global_steps", "max_global_steps")
            return TokenOutput(
                token_ids=list(self._prefix.token_ids),
                log_probs=list(self._prefix.log_probs),
                stop_reason="completed",
                extra_fields=dict.fromkeys(names, self._version),
            )
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
        soup = kwargs.get(SOUP_CONFIG) or SoupConfig.parse(self.config.soup)
        if soup.sampling_seed is not None:
            place = (kwargs.get("global_steps"), kwargs.get("index"), kwargs.get("session_id"))
            sampling_params = {**sampling_params, "seed": stable_seed("response", soup.sampling_seed, *place)}
        if not soup.mixing:
            return await super().run(sampling_params, **kwargs)
        group: GroupPrefixes | None = kwargs.get(GROUP_PREFIXES)
        prefix = group.by_session.get(kwargs["session_id"]) if group else None
        if prefix is not None:
            version = int(kwargs["global_steps"]) - 1
            self.server_manager = ContinuingClient(self.server_manager, prefix, self.response_length, version)
        output = await super().run(sampling_params, **kwargs)
        if prefix is not None:
            assert output.response_ids[: len(prefix)] == list(prefix.token_ids), "the response lost its prefix"
        fields = {name: getattr(output, name) for name in output.model_fields_set}
        if prefix is None or not prefix.historical:
            return MixedOutput(**fields)
        return MixedOutput(
            **fields,
            prefix_start=prefix.head,
            prefix_length=prefix.historical,
            policy_version=prefix.policy_version,
        )


class SoupAgentLoopWorker(AgentLoopWorker):
    """verl's TransferQueue worker that also samples prefixes and remembers why a session failed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:  # a model of text; verl gives every session's agent loop a builder of this type
            self.hf_model_type: str | None = fitting_model_type(self.model_config.hf_config.model_type, self.tokenizer)
            # It says for every response that no builder is registered for the model type.
            logging.getLogger(create_continuous_token_builder.__module__).setLevel(logging.ERROR)
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
            if agent_name == "soup_agent":
                kwargs[SOUP_CONFIG] = self._soup
            elif self._soup.mixing and not trajectory["validate"]:  # whether or not there is a prefix yet
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
        for ours in (GROUP_PREFIXES, SOUP_CONFIG):
            kwargs.pop(ours, None)  # verl stores every other keyword with the sample
        await self._store_output(output, validate, **kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        await super()._compute_score(outputs, kwargs=kwargs)
        for output in outputs:
            if output.reward_score is not None and not math.isfinite(output.reward_score):
                raise ValueError(
                    f"the reward function returned {output.reward_score} for a response to prompt index="
                    f"{kwargs.get('index')} (data_source={kwargs.get('data_source')!r}): expected a finite number"
                )

    def take_up(self, config: DictConfig) -> None:
        """Serve another run from now on; its model and tools must be as they were."""
        self.config = config
        self.rollout_config = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
        self._soup = SoupConfig.parse(config.soup)
        self._prompt_builder = None

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call, a line each."""
        errors, self._errors = self._errors, []
        return errors

    async def sample_prefixes(
        self,
        step: int,
        raw_prompts: Sequence[list[dict]],
        requests: Sequence[Sequence[PrefixRequest]],
        start: int,
        heads: Sequence[dict[int, Prefix]],
        only_heads: bool,
    ) -> list[dict[int, Prefix]]:
        """Sample the prefixes of some prompts from the policy that the rollout engine holds now.

        Args:
            step: the step whose batch the prompts belong to.
            raw_prompts: chat messages, one list a prompt.
            requests: the planned prefixes, one sequence a prompt.
            start: position of the first prompt in its batch.
            heads: for each prompt, session -> what the prefix is to continue.
            only_heads: sample those heads instead.

        Returns:
            For each prompt: session -> prefix, without those that came out empty.
        """
        sampler = self._prefix_sampler()
        groups = enumerate(zip(raw_prompts, requests, heads, strict=True), start)
        if only_heads:
            return await asyncio.gather(*(sampler.heads(step, i, p, r) for i, (p, r, _) in groups))
        return await asyncio.gather(*(sampler.prefixes(step, i, p, r, h) for i, (p, r, h) in groups))

    async def prompt_ids(self, raw_prompts: Sequence[list[dict]]) -> list[list[int]]:
        """For each prompt the token ids it is answered from."""
        return await asyncio.gather(*(self._prompt_ids(prompt) for prompt in raw_prompts))

    async def _prompt_ids(self, raw_prompt: list[dict]) -> list[int]:
        if any(not isinstance(message["content"], str) for message in raw_prompt):
            raise ValueError("a prompt holds more than text: expected text only. Set soup.mixed_fraction=0 for others.")
        return await self._builder().ct_build_initial_tokens(list(raw_prompt))

    def _prefix_sampler(self) -> PrefixSampler:
        rollout = self.config.actor_rollout_ref.rollout
        return PrefixSampler(
            client=self.llm_client,
            prompt_ids_of=self._prompt_ids,
            params={
                "temperature": rollout.temperature,
                "top_p": rollout.top_p,
                "top_k": rollout.top_k,
                "repetition_penalty": 1.0,
                "logprobs": True,
            },
            response_length=rollout.response_length,
            eos_token_ids=self._eos_token_ids(),
            seed=self._soup.sampling_seed,
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
        return with_eos(getattr(self.model_config.generation_config, "eos_token_id", None), self.tokenizer)


def token_key(index: int, token_ids: Sequence[int]) -> str:
    """A prompt's data set index and a hash of its token ids: stable as long as both are."""
    return f"{index}:{hashlib.sha256(np.asarray(token_ids, dtype=np.int64).tobytes()).hexdigest()[:16]}"


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

    def take_up(self, config: DictConfig) -> None:
        """Serve another run from now on, with the same workers."""
        self.config = config
        self.rollout_config = config.actor_rollout_ref.rollout
        ray.get([worker.take_up.remote(config) for worker in self.agent_loop_workers])

    def sample_prefixes(
        self,
        step: int,
        raw_prompts: list[list[dict]],
        plan: list[PromptPlan],
        *,
        heads: list[GroupPrefixes] | None = None,
        only_heads: bool = False,
    ) -> PendingGroups:
        """Ask for the planned prefixes of a batch without waiting; the rollout engine must be awake until they end.

        Args:
            step: the step whose batch it is.
            raw_prompts, plan: chat messages and planned prefixes of each prompt.
            heads: what the prefixes are to continue, prompt by prompt.
            only_heads: ask for what comes before the historical tokens instead.
        """
        requests = [p.requests for p in plan]
        given = [group.by_session for group in heads] if heads else [{}] * len(plan)
        refs = [
            worker.sample_prefixes.remote(step, raw_prompts[part], requests[part], part.start, given[part], only_heads)
            for worker, part in self._shares(len(plan))
        ]
        return PendingGroups(refs, [p.prompt_key for p in plan])

    def prompt_ids(self, raw_prompts: list[list[dict]]) -> list[list[int]]:
        """For each prompt the token ids it is answered from."""
        refs = [worker.prompt_ids.remote(raw_prompts[part]) for worker, part in self._shares(len(raw_prompts))]
        return [ids for prompts in ray.get(refs) for ids in prompts]

    def _shares(self, prompts: int) -> list[tuple[Any, slice]]:
        """Each worker's part of a batch."""
        size = math.ceil(prompts / len(self.agent_loop_workers))
        parts = [slice(i, min(i + size, prompts)) for i in range(0, prompts, size)]
        return list(zip(self.agent_loop_workers, parts, strict=False))

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call."""
        return [e for errors in ray.get([w.take_errors.remote() for w in self.agent_loop_workers]) for e in errors]


__all__ = ["SoupAgentLoop", "SoupAgentLoopManager", "SoupAgentLoopWorker", "token_key"]
