"""What a prefix source may ask of a run, on top of verl's workers: `history.base.PolicyEngine`.

plan, token_keys       -> the data loader, read ahead (prompt_stream.py)
sample_*               -> SoupAgentLoopManager (rollout.py)
keep, hold, save, load -> the actor worker (keeping_worker.py) and verl's checkpoint manager
unlearned              -> SoupActorWorker, through TransferQueue
rescored               -> the actor's forward pass, through TransferQueue
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested

from soup_verl.method.history import GroupPrefixes, PendingPrefixes, Prefix, PromptPlan
from soup_verl.method.mixing import MixingPlanner, SolvedRates
from soup_verl.method.sections import ForgetConfig
from soup_verl.stack.actor_worker import FORGET
from soup_verl.stack.images import ActorPrompt, images_key, prompt_key, to_send
from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.rollout import token_key

CURRENT = "soup_current"
"""Name under which the actor keeps its own weights while it unlearns."""
SCORES = "soup_scores"
"""TransferQueue partition of the prefixes that the actor is to score, and of the responses that it is to unlearn."""
IMAGES_AT_ONCE = 64
"""Prompts with images whose responses are handed to the actor at once, to be scored or unlearned: what it reads of an
image is larger than its pixels (8 times for Qwen2-VL), and is in TransferQueue for every response."""


@dataclass(frozen=True)
class Rescoring:
    """How the actor scores prefixes.

    Args:
        temperature: the sampling temperature.
        rows_a_rank: verl's micro-batch size, whose multiple each rank must get.
    """

    temperature: float
    rows_a_rank: int


@dataclass(frozen=True)
class Unlearning:
    """What `forget` needs to know of the run.

    Args:
        response_length: budget of a response in tokens.
        temperature: the sampling temperature.
        rows_a_rank: verl's micro-batch size of an update, whose multiple each rank must get.
    """

    response_length: int
    temperature: float
    rows_a_rank: int


@dataclass
class TrainerPolicyEngine:
    """`PolicyEngine` of a trainer, which hands over the last three as verl makes them, before anybody asks for them.

    Args:
        loader: verl's data loader, read ahead.
        fetches: batches of the loader that make up one of a step (`data.gen_batch_size` may be smaller).
        planner: plans each step's prefixes.
        solved: decides which prompts may be mixed.
        rescoring: how the actor scores prefixes; None leaves the rollout engine's log-probs.
        unlearning: how the actor trains on the responses that `forget` unlearns; None with other sources.
        fetched_step: the last step whose prompts were taken from the loader.
        workers: verl's actor workers.
        checkpoint_manager: verl's, which gives the rollout engine its weights.
        manager: samples, in the rollout engine's workers.
        loads: how often the rollout engine took weights for a source.
    """

    loader: ReadAheadLoader
    fetches: int
    planner: MixingPlanner
    solved: SolvedRates
    rescoring: Rescoring | None = None
    unlearning: Unlearning | None = None
    fetched_step: int = 0
    workers: Any = None
    checkpoint_manager: Any = None
    manager: Any = None
    loads: int = 0

    # ---- prompts and their plan ----

    def wants_prefixes(self, step: int) -> bool:
        return self.planner.mixes(step)

    def plan(self, step: int) -> list[PromptPlan]:
        keys = [prompt_key(raw) for raw in self._upcoming(step, "raw_prompt")]
        batch, first = self._place(step)
        plan = self.planner.plan_step(step=step, num_prompts=len(keys), batch=batch, first=first)
        return [
            PromptPlan(key, requests if self.solved.admits(key) else ())
            for key, requests in zip(keys, plan, strict=True)
        ]

    def token_keys(self, step: int) -> list[str]:
        rows = self._rows(step)
        prompt_ids = self.manager.prompt_ids(step, list(map(to_send, rows)))
        return [
            token_key(row["index"], ids, images_key(row["raw_prompt"]))
            for row, ids in zip(rows, prompt_ids, strict=True)
        ]

    def _place(self, step: int) -> tuple[int, int]:
        """The batch by which plan and seeds know the prompts of a step to come, and the first one's place in it."""
        return step, 0

    def _request(self, step: int, plan: list[PromptPlan], **kwargs: Any) -> PendingPrefixes:
        batch, first = self._place(step)
        rows = list(map(to_send, self._rows(step)))
        return self.manager.request_prefixes(batch, rows, plan, first=first, **kwargs)

    def _upcoming(self, step: int, column: str) -> list[Any]:
        """A column of the batch of a step to come, in batch order."""
        return [row[column] for row in self._rows(step)]

    def _rows(self, step: int) -> list[dict[str, Any]]:
        """The prompts of a step to come, each with every column, in batch order."""
        batches = self._batches(step)
        return [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]

    def _batches(self, step: int) -> list[dict[str, Any]]:
        """The loader's batches that make up one of a step to come."""
        ahead = step - self.fetched_step - 1
        return self.loader.peek(ahead * self.fetches, (ahead + 1) * self.fetches)

    # ---- sampling ----

    def sample_heads(self, step: int) -> PendingPrefixes:
        return self._request(step, self.plan(step), only_heads=True)

    def sample_rest(self, step: int) -> PendingPrefixes:
        assert self.unlearning is not None
        rest = partial(self.planner.rest, response_length=self.unlearning.response_length)
        plan = [replace(p, requests=rest(p.requests)) for p in self.plan(step)]
        return self._request(step, plan, only_heads=True)

    def sample_prefixes(
        self, step: int, *, ages: Collection[int] | None = None, heads: list[GroupPrefixes] | None = None
    ) -> PendingPrefixes:
        plan = self.plan(step)
        if ages is not None:
            plan = [replace(p, requests=tuple(r for r in p.requests if r.age in ages)) for p in plan]
        return self._request(step, plan, heads=heads)

    def rescored(self, step: int, groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        if self.rescoring is None or not _historical(groups):
            return groups
        rows = self._rows(step)
        return [group for part in _parts(rows) for group in self._rescored(step, rows[part], groups[part])]

    def _rescored(self, step: int, rows: list[dict[str, Any]], groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        assert self.rescoring is not None
        if not (places := _historical(groups)):
            return groups
        prompts = self.manager.actor_prompts(step, list(map(to_send, rows)))
        prefixes = [(prompts[i], groups[i].by_session[s]) for i, s in places]
        scores = log_probs_of_actor(
            self.workers,
            [(prompt, prefix.token_ids) for prompt, prefix in prefixes],
            temperature=self.rescoring.temperature,
            rows_a_rank=self.rescoring.rows_a_rank,
        )
        rescored = [GroupPrefixes(group.prompt_key, dict(group.by_session)) for group in groups]
        for (i, session), (_, prefix), score in zip(places, prefixes, scores, strict=True):
            rescored[i].by_session[session] = _with_scores(prefix, score)
        return rescored

    # ---- weights ----

    def keep_policy(self, version: int) -> None:
        self.workers.keep_policy(version)

    def drop_policy(self, version: int) -> None:
        self.workers.drop_policy(version)

    def kept_bytes(self) -> int:
        return sum(self.workers.kept_bytes())

    @contextmanager
    def actor_holding(self, version: int) -> Iterator[None]:
        self.workers.hold_policy(version)
        yield
        self.workers.hold_policy(None)

    @contextmanager
    def actor_unlearned(self, step: int, groups: list[GroupPrefixes], settings: ForgetConfig) -> Iterator[list[float]]:
        assert self.unlearning is not None
        rows = self._rows(step)
        responses = (self._with_prompts(step, rows[part], groups[part]) for part in _parts(rows))
        self.workers.save_model_to_cpu(CURRENT)
        yield unlearn_on_actor(self.workers, responses, settings=settings, how=self.unlearning)
        self.workers.restore_model_from_cpu(CURRENT)
        self.workers.clear_cpu_model(CURRENT)

    def _with_prompts(
        self, step: int, rows: list[dict[str, Any]], groups: list[GroupPrefixes]
    ) -> list[tuple[ActorPrompt, Prefix]]:
        """The responses of these groups, each with its prompt."""
        prompts = self.manager.actor_prompts(step, list(map(to_send, rows)))
        return [(prompt, p) for prompt, g in zip(prompts, groups, strict=True) for p in g.by_session.values()]

    @contextmanager
    def rollout_awake(self, version: int) -> Iterator[None]:
        self.checkpoint_manager.update_weights(version)
        self.loads += 1
        yield
        self.checkpoint_manager.sleep_replicas()

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self.workers.write_kept_policies(str(folder), list(versions))

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self.workers.read_kept_policies(str(folder), list(versions))


def _parts(rows: Sequence[dict[str, Any]]) -> list[slice]:
    """Of a batch's prompts: all together, or `IMAGES_AT_ONCE` where any has an image."""
    size = IMAGES_AT_ONCE if any(images_key(row["raw_prompt"]) for row in rows) else len(rows)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _historical(groups: Sequence[GroupPrefixes]) -> list[tuple[int, int]]:
    """Place of the group and session of each prefix that has historical tokens."""
    return [(i, s) for i, group in enumerate(groups) for s, p in group.by_session.items() if p.historical]


def _with_scores(prefix: Prefix, scores: Sequence[float]) -> Prefix:
    """`prefix` with other log-probs on its historical tokens."""
    return replace(prefix, log_probs=prefix.log_probs[: prefix.head] + tuple(scores[prefix.head :]))


def log_probs_of_actor(
    worker_group: Any,
    sequences: Sequence[tuple[ActorPrompt, Sequence[int]]],
    *,
    temperature: float,
    rows_a_rank: int,
) -> list[list[float]]:
    """Log-prob of each response token under the weights that the actor holds, in nats at `temperature`.

    Args:
        worker_group: verl's actor workers.
        sequences: (prompt, response token ids), at least one.
        temperature: the sampling temperature.
        rows_a_rank: verl's micro-batch size, whose multiple each rank must get; short of it, the first row is repeated.
    """
    rows = [_actor_fields(prompt, response) for prompt, response in sequences]
    with _queued(worker_group, [rows], rows_a_rank=rows_a_rank, temperature=temperature) as batch:
        batch.extra_info["compute_loss"] = False
        worker_group.compute_log_prob(batch)
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=SCORES, select_fields=["log_probs", "response_mask"])
        scores = response_from_nested(stored["log_probs"], stored["response_mask"])
    return [row.tolist() for row in scores.unbind()[: len(sequences)]]


def unlearn_on_actor(
    worker_group: Any,
    responses: Iterable[Sequence[tuple[ActorPrompt, Prefix]]],
    *,
    settings: ForgetConfig,
    how: Unlearning,
) -> list[float]:
    """The actor takes `settings.steps` unlearning steps on all responses together; their gradients' norms.

    Args:
        worker_group: verl's actor workers.
        responses: (prompt, response), at least one, in parts that are handed over one after the other.
    """
    parts = (
        [_actor_fields(prompt, r.token_ids) | {"old_log_probs": torch.tensor(r.log_probs)} for prompt, r in part]
        for part in responses
    )
    with _queued(worker_group, parts, rows_a_rank=how.rows_a_rank, temperature=how.temperature) as batch:
        batch.extra_info[FORGET] = settings
        return worker_group.unlearn(batch)["metrics"]["grad_norms"]


@contextmanager
def _queued(
    worker_group: Any, parts: Iterable[list[dict[str, Any]]], *, rows_a_rank: int, temperature: float
) -> Iterator[KVBatchMeta]:
    """A batch for the actor in TransferQueue, gone after the block: rows, put there part by part, then the first again
    without any loss, up to a multiple of `rows_a_rank` a rank."""
    if "actor" not in worker_group._dispatch_info:
        worker_group._dispatch_info["actor"] = worker_group._query_dispatch_info("actor")
    ranks = max(worker_group._dispatch_info["actor"]) + 1
    run, tags, first = uuid4().hex, list[dict[str, Any]](), dict[str, Any]()

    def put(rows: list[dict[str, Any]]) -> None:
        own = [{"seq_len": len(row["input_ids"])} for row in rows]
        keys = [f"{run}_{i}" for i in range(len(tags), len(tags) + len(rows))]
        tq.kv_batch_put(keys=keys, partition_id=SCORES, fields=list_of_dict_to_tensordict(rows), tags=own)
        tags.extend(own)

    for part in filter(None, parts):
        first = first or part[0]
        put(part)
    if lacking := -len(tags) % (ranks * rows_a_rank):
        nothing = torch.zeros_like(first["loss_mask"])
        put([first | {"response_mask": nothing, "loss_mask": nothing}] * lacking)
    batch = KVBatchMeta(partition_id=SCORES, keys=[f"{run}_{i}" for i in range(len(tags))], tags=tags)
    batch.extra_info.update({"calculate_entropy": False, "temperature": temperature})
    yield batch
    tq.kv_clear(keys=batch.keys, partition_id=SCORES)


def _actor_fields(prompt: ActorPrompt, response: Sequence[int]) -> dict[str, Any]:
    """The fields verl's agent loop stores for a sequence, as far as a forward pass reads them."""
    mask = torch.ones(len(response), dtype=torch.int64)
    ids = torch.tensor([*prompt.token_ids, *response], dtype=torch.int64)
    return {
        "prompts": ids[: len(prompt.token_ids)],
        "responses": ids[len(prompt.token_ids) :],
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": ids,
        "position_ids": prompt.positions_with(len(response)),
        "multi_modal_inputs": prompt.multi_modal_inputs,
    }
