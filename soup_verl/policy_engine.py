"""What a prefix source may ask of a run, on top of verl's workers: `history.base.PolicyEngine`.

sample_*, token_keys   -> SoupAgentLoopManager (rollout.py)
keep, hold, save, load -> SoupActorWorker (actor_worker.py) and verl's checkpoint manager
rescored               -> the actor's forward pass, through TransferQueue
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested

from soup_verl.history import GroupPrefixes, PendingPrefixes, Prefix, PromptPlan
from soup_verl.mixing import MixingPlanner, SolvedRates
from soup_verl.rollout import token_key

CURRENT = "current"
"""Name under which the actor keeps its own weights while it holds a past policy."""
SCORES = "soup_scores"
"""TransferQueue partition of the prefixes that the actor is to score."""


def prompt_key(raw_prompt: Any) -> str:
    """A fingerprint of a prompt's chat messages: the same in every process and run."""
    messages = [dict(m) for m in raw_prompt]
    return hashlib.sha256(json.dumps(messages, sort_keys=True, default=str).encode()).hexdigest()[:16]


class TrainerPolicyEngine:
    """`PolicyEngine` of a trainer.

    Args:
        trainer: the trainer; its workers exist by the time anything is asked.
        planner: plans each step's prefixes.
        solved: decides which prompts may be mixed.
    """

    def __init__(self, trainer: Any, planner: MixingPlanner, solved: SolvedRates):
        self._trainer = trainer
        self._planner = planner
        self._solved = solved
        self.fetched_step = 0  # the last step whose prompts were taken from the data loader

    # ---- prompts and their plan ----

    def wants_prefixes(self, step: int) -> bool:
        return self._planner.mixes(step)

    def plan(self, step: int) -> list[PromptPlan]:
        keys = [prompt_key(raw) for raw in self._upcoming(step, "raw_prompt")]
        plan = self._planner.plan_step(step=step, num_prompts=len(keys))
        return [
            PromptPlan(key, requests if self._solved.admits(key) else ())
            for key, requests in zip(keys, plan, strict=True)
        ]

    def token_keys(self, step: int) -> list[str]:
        prompt_ids = self._trainer.agent_loop_manager.prompt_ids(self._upcoming(step, "raw_prompt"))
        indices = self._upcoming(step, "index")
        return [token_key(int(index), ids) for index, ids in zip(indices, prompt_ids, strict=True)]

    def _upcoming(self, step: int, column: str) -> list[Any]:
        """A column of the batch of a step to come, in batch order."""
        data = self._trainer.config.data
        fetches = data.train_batch_size // (data.get("gen_batch_size", None) or data.train_batch_size)
        ahead = step - self.fetched_step - 1
        batches = self._trainer.train_dataloader.peek(ahead * fetches, (ahead + 1) * fetches)
        return [value for batch in batches for value in batch[column]]

    # ---- sampling ----

    def sample_heads(self, step: int) -> PendingPrefixes:
        prompts = self._upcoming(step, "raw_prompt")
        return self._trainer.agent_loop_manager.sample_prefixes(step, prompts, self.plan(step), only_heads=True)

    def sample_prefixes(
        self, step: int, *, ages: Collection[int] | None = None, heads: list[GroupPrefixes] | None = None
    ) -> PendingPrefixes:
        plan = self.plan(step)
        if ages is not None:
            plan = [replace(p, requests=tuple(r for r in p.requests if r.age in ages)) for p in plan]
        prompts = self._upcoming(step, "raw_prompt")
        return self._trainer.agent_loop_manager.sample_prefixes(step, prompts, plan, heads=heads)

    def rescored(self, step: int, groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        config = self._trainer.config
        places = [(i, s) for i, group in enumerate(groups) for s, p in group.by_session.items() if p.historical]
        if config.soup.behavior_log_probs == "rollout" or not places:
            return groups
        rollout = config.actor_rollout_ref.rollout
        prompt_ids = self._trainer.agent_loop_manager.prompt_ids(self._upcoming(step, "raw_prompt"))
        rows = [(prompt_ids[i], groups[i].by_session[s]) for i, s in places]
        scores = log_probs_of_actor(
            self._trainer.actor_rollout_wg,
            [(prompt, prefix.token_ids) for prompt, prefix in rows],
            temperature=rollout.temperature,
            rows_a_rank=1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu,
        )
        rescored = [GroupPrefixes(group.prompt_key, dict(group.by_session)) for group in groups]
        for (i, session), (_, prefix), score in zip(places, rows, scores, strict=True):
            rescored[i].by_session[session] = _with_scores(prefix, score)
        return rescored

    # ---- weights ----

    def keep_policy(self, version: int) -> None:
        self._trainer.actor_rollout_wg.save_model_to_cpu(version)

    def drop_policy(self, version: int) -> None:
        self._trainer.actor_rollout_wg.clear_cpu_model(version)

    @contextmanager
    def actor_holding(self, version: int) -> Iterator[None]:
        actor = self._trainer.actor_rollout_wg
        actor.save_model_to_cpu(CURRENT)
        actor.restore_model_from_cpu(version)
        yield
        actor.restore_model_from_cpu(CURRENT)
        actor.clear_cpu_model(CURRENT)

    @contextmanager
    def rollout_awake(self, version: int) -> Iterator[None]:
        self._trainer.checkpoint_manager.update_weights(version)
        yield
        self._trainer.checkpoint_manager.sleep_replicas()

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self._trainer.actor_rollout_wg.write_kept_policies(str(folder), list(versions))

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self._trainer.actor_rollout_wg.read_kept_policies(str(folder), list(versions))


def _with_scores(prefix: Prefix, scores: Sequence[float]) -> Prefix:
    """`prefix` with other log-probs on its historical tokens."""
    return replace(prefix, log_probs=prefix.log_probs[: prefix.head] + tuple(scores[prefix.head :]))


def log_probs_of_actor(
    worker_group: Any,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    temperature: float,
    rows_a_rank: int,
) -> list[list[float]]:
    """Log-prob of each response token under the weights that the actor holds, in nats at `temperature`.

    Args:
        worker_group: verl's actor workers.
        sequences: (prompt token ids, response token ids), at least one.
        temperature: the sampling temperature.
        rows_a_rank: verl's micro-batch size, whose multiple each rank must get; short of it, the first row is repeated.
    """
    if "actor" not in worker_group._dispatch_info:
        worker_group._dispatch_info["actor"] = worker_group._query_dispatch_info("actor")
    ranks = max(worker_group._dispatch_info["actor"]) + 1
    padded = [*sequences, *[sequences[0]] * (-len(sequences) % (ranks * rows_a_rank))]
    run = uuid4().hex
    keys = [f"{run}_{i}" for i in range(len(padded))]
    tags = [{"seq_len": len(prompt) + len(response)} for prompt, response in padded]
    fields = list_of_dict_to_tensordict([_actor_fields(prompt, response) for prompt, response in padded])
    tq.kv_batch_put(keys=keys, partition_id=SCORES, fields=fields, tags=tags)
    batch = KVBatchMeta(partition_id=SCORES, keys=keys, tags=tags)
    batch.extra_info.update({"calculate_entropy": False, "compute_loss": False, "temperature": temperature})
    worker_group.compute_log_prob(batch)
    stored = tq.kv_batch_get(keys=keys, partition_id=SCORES, select_fields=["log_probs", "response_mask"])
    scores = response_from_nested(stored["log_probs"], stored["response_mask"])
    tq.kv_clear(keys=keys, partition_id=SCORES)
    return [row.tolist() for row in scores.unbind()[: len(sequences)]]


def _actor_fields(prompt: Sequence[int], response: Sequence[int]) -> dict[str, Any]:
    """The fields verl's agent loop stores for a sequence, as far as a forward pass reads them."""
    mask = torch.ones(len(response), dtype=torch.int64)
    ids = torch.tensor([*prompt, *response], dtype=torch.int64)
    return {
        "prompts": ids[: len(prompt)],
        "responses": ids[len(prompt) :],
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "multi_modal_inputs": {},
    }
