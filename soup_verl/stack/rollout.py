"""The mixed-policy rollout: workers that run verl's agent loops, and the manager that asks them.

SoupTrainer                          puts GroupPrefixes beside each prompt of a batch
  -> SoupAgentLoopManager            one a run: dispatches prompts, and prefix requests for batches to come
       -> SoupAgentLoopWorker        a Ray actor: runs sessions, samples prefixes, stores results in TransferQueue
            -> any loop of verl      one session: a response on-policy, or prefix + continuation
                 -> SessionClient    joins a prefix and the engine's continuation (session.py)
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from soup_verl.method.config import SoupConfig
from soup_verl.method.history.prefixes import GroupPrefixes, Prefix, PromptPlan, prompt_hash
from soup_verl.method.mixing import STREAM, PrefixRequest
from soup_verl.method.sections import NEEDS_ONE_TURN, SINGLE_TURN
from soup_verl.stack import inflight
from soup_verl.stack.images import ActorPrompt, check_kinds
from soup_verl.stack.prefix_sampler import PrefixSampler
from soup_verl.stack.prompt_builder import fitting_model_type
from soup_verl.stack.session import FirstRequest, Opening, Session, SessionClient, held, holding, refusal
from soup_verl.tasks.chat_template import with_eos
from soup_verl.tasks.data.row_index import index_text

GROUP_PREFIXES = "group_prefixes"
"""Batch field, one GroupPrefixes a prompt, on its way from the trainer to the agent loop."""
IMAGES = "images_key"
"""Batch field, of prompts with images: `images.images_key`."""
ORDINAL = "ordinal"
"""Batch field of dynamic sampling: how many prompts were handed out before. Its seeds know a prompt by it."""

# verl exports the Ray actor class; its methods are on the class underneath. Inheriting from that class breaks: Ray
# pickles the inherited __init__ by value and its zero-argument super() then names another class.
_WorkerTQ = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__


register("soup_agent")(SingleTurnAgentLoop)


class SoupAgentLoopWorker(AgentLoopWorker):
    """verl's TransferQueue worker that also samples prefixes and remembers why a session failed."""

    llm_client: Any

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
        self.llm_client = SessionClient(self.llm_client)

    generate_sequences = _WorkerTQ.generate_sequences
    _run_prompt = _WorkerTQ._run_prompt
    _store_output = _WorkerTQ._agent_loop_postprocess

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, *, agent_name: str, **kwargs: Any) -> None:
        try:
            group: GroupPrefixes | None = kwargs.pop(GROUP_PREFIXES, None)
            ordinal: int | None = kwargs.pop(ORDINAL, None)
            images: str = kwargs.pop(IMAGES, "")
            if not trajectory["validate"]:
                self._check_agent(agent_name)
            place = (
                (kwargs.get("global_steps"), index_text(kwargs.get("index"))) if ordinal is None else (STREAM, ordinal)
            )
            session = Session(
                agent_name,
                version=int(kwargs.get("global_steps", 0)) - 1,
                prompt_length=self.rollout_config.prompt_length,
                response_length=self.rollout_config.response_length,
                prefix=group.by_session.get(kwargs["session_id"]) if group else None,
                seed=None
                if self._soup.sampling_seed is None
                else (self._soup.sampling_seed, *place, kwargs["session_id"]),
                images=images,
            )
            with holding(session), inflight.recorded_versions(self._soup.interrupted and not trajectory["validate"]):
                await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, **kwargs)
        except Exception as error:  # verl logs it here and only counts the failure elsewhere
            cause = getattr(error, "cause", None) or error  # what Ray's wrapper wraps, if the reward worker raised
            self._errors.append(f"{type(cause).__name__}: {cause}")
            raise

    def _check_agent(self, agent_name: str | None) -> None:
        """Whether or not there is a prefix yet."""
        if agent_name not in SINGLE_TURN and (setting := self._soup.single_turn_setting):
            raise ValueError(
                f"agent_name={agent_name!r}: expected {' or '.join(SINGLE_TURN)} with {setting}. {NEEDS_ONE_TURN}"
            )

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        session = held()
        if isinstance(session, Opening):
            raise refusal(session.agent_name, "it ended without a request")
        if session is not None and not validate:
            if self._soup.planned:
                output = session.output(output)
            elif self._soup.interrupted:
                output = inflight.with_versions(session.single(output))
        await self._store_output(output, validate, **kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        await super()._compute_score(outputs, kwargs=kwargs)
        rewards = [output.reward_score for output in outputs if output.reward_score is not None]
        if self.reward_loop_worker_handles is not None and outputs[-1].reward_score is None:
            rewards.append(None)  # verl scores the last output of a session
        for reward in rewards:
            number = reward.item() if hasattr(reward, "item") else reward  # of numpy or torch
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(
                    f"the reward function returned {reward!r} for a response to prompt index="
                    f"{index_text(kwargs.get('index'))} (data_source={kwargs.get('data_source')!r}): expected a finite "
                    "number"
                )

    def take_up(self, config: DictConfig) -> None:
        """Serve another run from now on; its model and tools must be as they were."""
        self.config = config
        self.rollout_config = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
        self._soup = SoupConfig.parse(config.soup)

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call, a line each."""
        errors, self._errors = self._errors, []
        return errors

    async def sample_share(
        self,
        step: int,
        prompts: Sequence[dict[str, Any]],
        requests: Sequence[Sequence[PrefixRequest]],
        start: int,
        heads: Sequence[dict[int, Prefix]],
        only_heads: bool,
    ) -> list[dict[int, Prefix]]:
        """Sample the prefixes of this worker's share of the prompts from the policy that the rollout engine holds now.

        Args:
            step: the step whose batch the prompts belong to.
            prompts: rows of the data set.
            requests: the planned prefixes, one sequence a prompt.
            start: place of the first prompt in its batch.
            heads: for each prompt, session -> what the prefix is to continue.
            only_heads: sample those heads instead.

        Returns:
            For each prompt: session -> prefix, without those that came out empty.
        """
        sampler = self._prefix_sampler()
        groups = enumerate(zip(prompts, requests, heads, strict=True), start)
        if only_heads:
            return await asyncio.gather(*(sampler.heads(step, i, p, r) for i, (p, r, _) in groups))
        return await asyncio.gather(*(sampler.prefixes(step, i, p, r, h) for i, (p, r, h) in groups))

    async def prompt_ids(self, step: int, prompts: Sequence[dict[str, Any]]) -> list[list[int]]:
        """For each prompt, a row of the data set, the token ids it is answered from at `step`."""
        return [o.prompt_ids for o in await asyncio.gather(*(self._opening(step, prompt) for prompt in prompts))]

    async def actor_prompts(self, step: int, prompts: Sequence[dict[str, Any]]) -> list[ActorPrompt]:
        """The same, with what the actor's forward pass reads beside token ids."""
        openings = await asyncio.gather(*(self._opening(step, prompt) for prompt in prompts))
        return [self._actor_prompt(opening) for opening in openings]

    def _actor_prompt(self, opening: FirstRequest) -> ActorPrompt:
        """As verl makes it of a response, of a response without tokens."""
        images, kwargs = opening.media.get("image_data"), opening.media.get("mm_processor_kwargs")
        output = AgentLoopOutput(
            prompt_ids=opening.prompt_ids,
            response_ids=[],
            response_mask=[],
            multi_modal_data={"images": images} if images else {},
            mm_processor_kwargs=kwargs,
            metrics=AgentLoopMetrics(),
        )
        ids = torch.tensor([opening.prompt_ids], dtype=torch.int64)
        inputs = self._compute_multi_modal_inputs(output, ids)
        return ActorPrompt(
            opening.prompt_ids, self._compute_position_ids(ids, torch.ones_like(ids), inputs).squeeze(0), inputs
        )

    async def _opening(self, step: int, prompt: dict[str, Any]) -> FirstRequest:
        """What the prompt's agent loop asks first: the loop itself is run up to there.

        A prefix must follow the very token ids that its continuation will, with the tools' schemas and whatever else a
        loop puts there.
        """
        check_kinds(prompt["raw_prompt"])
        rollout = self.config.actor_rollout_ref.rollout
        params = {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "repetition_penalty": 1.0,
            "logprobs": True,
        }
        row = {"agent_name": rollout.agent.default_agent_loop, "uid": uuid4().hex} | prompt
        trajectory = {"step": step, "sample_index": 0, "rollout_n": 0, "validate": False}
        try:
            with holding(Opening(row["agent_name"])):
                await super()._run_agent_loop(params, trajectory, trace=False, session_id=0, global_steps=step, **row)
        except FirstRequest as asked:
            return asked
        raise AssertionError("a loop in an Opening ends with its first request, or with an error")

    def _prefix_sampler(self) -> PrefixSampler:
        return PrefixSampler(
            client=self.llm_client.client,
            opening_of=self._opening,
            response_length=self.config.actor_rollout_ref.rollout.response_length,
            eos_token_ids=self._eos_token_ids(),
            seed=self._soup.sampling_seed,
        )

    def _eos_token_ids(self) -> frozenset[int]:
        return with_eos(getattr(self.model_config.generation_config, "eos_token_id", None), self.tokenizer)


def token_key(index: Any, token_ids: Sequence[int], images: str = "") -> str:
    """A prompt's data set index, of any kind, `images_key` where it has images, and a hash of its token ids: stable as
    long as these are. Stored responses are found by it, because their tokens continue these very ones; plans and gates
    know a prompt by `prompt_key`."""
    return ":".join([index_text(index), *([images] if images else []), prompt_hash(token_ids)])


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

    def request_prefixes(
        self,
        step: int,
        prompts: list[dict[str, Any]],
        plan: list[PromptPlan],
        *,
        first: int = 0,
        heads: list[GroupPrefixes] | None = None,
        only_heads: bool = False,
    ) -> PendingGroups:
        """Ask for the planned prefixes of a batch without waiting; the rollout engine must be awake until they end.

        Args:
            step: the step whose batch it is, or `mixing.STREAM`.
            prompts, plan: row of the data set and planned prefixes of each prompt.
            first: place of the first prompt in that batch.
            heads: what the prefixes are to continue, prompt by prompt.
            only_heads: ask for what comes before the historical tokens instead.
        """
        requests = [p.requests for p in plan]
        given = [group.by_session for group in heads] if heads else [{}] * len(plan)
        refs = [
            worker.sample_share.remote(step, prompts[part], requests[part], first + part.start, given[part], only_heads)
            for worker, part in self._shares(len(plan))
        ]
        return PendingGroups(refs, [p.prompt_key for p in plan])

    def prompt_ids(self, step: int, prompts: list[dict[str, Any]]) -> list[list[int]]:
        """For each prompt, a row of the data set, the token ids it is answered from at `step`."""
        refs = [worker.prompt_ids.remote(step, prompts[part]) for worker, part in self._shares(len(prompts))]
        return [ids for share in ray.get(refs) for ids in share]

    def actor_prompts(self, step: int, prompts: list[dict[str, Any]]) -> list[ActorPrompt]:
        """The same, with what the actor's forward pass reads beside token ids."""
        refs = [worker.actor_prompts.remote(step, prompts[part]) for worker, part in self._shares(len(prompts))]
        return [prompt for share in ray.get(refs) for prompt in share]

    def _shares(self, prompts: int) -> list[tuple[Any, slice]]:
        """Each worker's part of a batch."""
        size = math.ceil(prompts / len(self.agent_loop_workers))
        parts = [slice(i, min(i + size, prompts)) for i in range(0, prompts, size)]
        return list(zip(self.agent_loop_workers, parts, strict=False))

    def take_errors(self) -> list[str]:
        """Why sessions failed since the last call."""
        return [e for errors in ray.get([w.take_errors.remote() for w in self.agent_loop_workers]) for e in errors]


__all__ = ["SoupAgentLoopManager", "SoupAgentLoopWorker", "token_key"]
