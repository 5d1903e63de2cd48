"""SOUP's view of a batch in TransferQueue: read what it needs, write what the loss and the metrics read.

Rows are verl's, in the order of `batch.keys`, padding rows included unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import NonTensorData, TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_to_nested

from soup_verl import core_algos, sample_log
from soup_verl.history import PolicyResponse
from soup_verl.metrics import StepBatch
from soup_verl.rollout import token_key
from soup_verl.validation import is_solved

FIELDS = ("uid", "response_mask", "rollout_log_probs", "old_log_probs", "entropy", "rm_scores", "extra_fields")
MIXING_FIELDS = ("prefix_mask", "policy_version")


@dataclass(frozen=True)
class BatchData:
    """The fields of one batch. Tensors are (batch, response_length), padded at the end, unless said otherwise.

    Args:
        uids: prompt of each row.
        tags: verl's notes on each row.
        prefix_mask: 0/1.
        policy_version: (batch,), -1 for an on-policy response.
        rewards: (batch,).
        extra_fields: what the reward function returned, and verl's own, a dict a row.
        nested_response_mask: verl's jagged mask, which knows each row's length.
    """

    uids: list[Any]
    tags: list[dict]
    response_mask: Tensor
    prefix_mask: Tensor
    policy_version: Tensor
    behavior_log_probs: Tensor | None
    old_log_probs: Tensor
    entropy: Tensor | None
    rewards: Tensor
    extra_fields: list[Any]
    nested_response_mask: Tensor

    @property
    def real_rows(self) -> list[int]:
        """Rows that are no padding."""
        return [i for i, tag in enumerate(self.tags) if not tag.get("is_padding", False)]

    @property
    def is_mixed(self) -> Tensor:
        """(batch,) boolean."""
        return self.prefix_mask.bool().any(dim=-1)


def read(batch: KVBatchMeta, *, mixing: bool) -> BatchData:
    """The batch's fields; without `mixing` no row has a prefix."""
    names = [*FIELDS, *(MIXING_FIELDS if mixing else ())]
    stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    uids, extra = items(stored.pop("uid")), items(stored.pop("extra_fields"))
    nested = stored["response_mask"]
    data = dict(stored.to_padded_tensor().items())
    return BatchData(
        uids=uids,
        tags=list(batch.tags),
        response_mask=data["response_mask"],
        prefix_mask=data["prefix_mask"] if mixing else torch.zeros_like(data["response_mask"]),
        policy_version=data["policy_version"] if mixing else torch.full((len(uids),), -1),
        behavior_log_probs=data.get("rollout_log_probs"),
        old_log_probs=data["old_log_probs"],
        entropy=data.get("entropy"),
        rewards=data["rm_scores"].sum(dim=-1),
        extra_fields=extra,
        nested_response_mask=nested,
    )


def write_prefix_fields(
    batch: KVBatchMeta, data: BatchData, objective: core_algos.PrefixObjective, *, untrained: Tensor | None
) -> None:
    """What the loss reads: old_log_probs of prefix tokens, and masks without the tokens that are not trained.

    Args:
        batch, data: the batch and what `read` gave for it.
        objective: how prefix tokens enter the loss.
        untrained: (batch, response_length) boolean, tokens to leave out besides those the objective leaves out.
    """
    assert data.behavior_log_probs is not None, "mixing needs the rollout engine's log-probs"
    prefix = data.prefix_mask.bool()
    fields = {}
    if objective.anchor_is_behavior:
        fields["old_log_probs"] = core_algos.join_log_probs(
            prefix_mask=prefix, prefix_log_probs=data.behavior_log_probs, other_log_probs=data.old_log_probs
        )
    left_out = prefix if not objective.trained else untrained
    if left_out is not None:
        mask = torch.where(left_out, 0, data.response_mask)
        fields["response_mask"] = fields["loss_mask"] = mask
    nested = {name: response_to_nested(value, data.nested_response_mask) for name, value in fields.items()}
    if nested:
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(nested, batch_size=len(batch))
        )


def sort_rows(batch: KVBatchMeta, place_of_uid: Mapping[str, int]) -> None:
    """Rows by prompt and session: verl's own order is that of arrival, on which the rounding of sums depends.

    Args:
        batch: verl's keys are UID_SESSION_OUTPUT.
        place_of_uid: where each prompt was in the batch that was submitted.
    """

    def place(row: int) -> tuple[int, ...]:
        uid, *numbers = batch.keys[row].split("_")
        return place_of_uid[uid], *map(int, numbers)

    batch.reorder(sorted(range(len(batch.keys)), key=place))


def mark_padding_unmixed(batch: KVBatchMeta) -> None:
    """verl's padding rows copy a real row's fields; ours must have the padding row's length and no prefix."""
    padding = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding", False)]
    if padding:
        mask = torch.zeros(len(padding), 1, dtype=torch.int8)
        version = torch.full((len(padding),), -1)
        fields = TensorDict({"prefix_mask": mask, "policy_version": version}, batch_size=len(padding))
        tq.kv_batch_put(keys=padding, partition_id=batch.partition_id, fields=fields)


def step_batch(data: BatchData, *, current_version: int, recomputed: bool) -> StepBatch:
    """The real rows, as the metrics want them.

    Args:
        data: the batch.
        current_version: version of the policy that sampled everything but prefixes.
        recomputed: `old_log_probs` are the trainer's own, not the rollout engine's.
    """
    rows = data.real_rows
    info = [_reward_info(data.extra_fields[i]) for i in rows]
    rewards = data.rewards[rows]
    solved = [is_solved(i.get("acc"), reward) for i, reward in zip(info, rewards.tolist(), strict=True)]
    return StepBatch(
        uids=[data.uids[i] for i in rows],
        response_mask=data.response_mask[rows],
        prefix_mask=data.prefix_mask[rows],
        policy_version=data.policy_version[rows],
        current_version=current_version,
        behavior_log_probs=None if data.behavior_log_probs is None else data.behavior_log_probs[rows],
        old_log_probs=data.old_log_probs[rows] if recomputed else None,
        entropy=None if data.entropy is None else data.entropy[rows],
        rewards=rewards,
        solved=torch.tensor(solved, dtype=torch.bool),
        answers=[str(i["pred"]) for i in info] if all("pred" in i for i in info) else None,
    )


def counted_rows(batch: KVBatchMeta) -> Tensor:
    """(batch,) boolean: the last output of each session, as verl's GRPO counts; keys are uid_session_output."""
    last: dict[str, int] = {}
    for key in batch.keys:
        session, output = key.rsplit("_", 1)
        last[session] = max(last.get(session, 0), int(output))
    return torch.tensor([int(k.rsplit("_", 1)[1]) == last[k.rsplit("_", 1)[0]] for k in batch.keys])


def policy_responses(
    batch: KVBatchMeta, data: BatchData, *, current_version: int, response_length: int, from_actor: bool
) -> list[PolicyResponse]:
    """The on-policy responses of the batch, for the source that stores them.

    A response shorter than the budget ended with an end-of-sequence token, which is left out.

    Args:
        batch, data: the batch and what `read` gave for it.
        current_version: version of the policy that gave them.
        response_length: budget of a response in tokens.
        from_actor: log-probs as the trainer recomputed them, not as the rollout engine reported them.
    """
    rows = [i for i in data.real_rows if not data.is_mixed[i]]
    if not rows:
        return []
    names = ["prompts", "responses", "index"]
    stored = tq.kv_batch_get(keys=[batch.keys[i] for i in rows], partition_id=batch.partition_id, select_fields=names)
    log_probs = data.old_log_probs if from_actor else data.behavior_log_probs
    assert log_probs is not None, "storing responses needs their log-probs"
    prompts, answers, indices = stored["prompts"].unbind(), stored["responses"].unbind(), items(stored["index"])
    responses = []
    for row, prompt, answer, index in zip(rows, prompts, answers, indices, strict=True):
        ended = len(answer) < response_length
        length = len(answer) - ended
        if length > 0:
            responses.append(
                PolicyResponse(
                    token_key=token_key(int(index), prompt.tolist()),
                    token_ids=answer[:length].numpy().astype(np.int32),
                    log_probs=log_probs[row, :length].float().numpy(),
                    policy_version=current_version,
                    reward=float(data.rewards[row]),
                    ended=ended,
                )
            )
    return responses


def sample_records(
    batch: KVBatchMeta, data: BatchData, rows: Sequence[int], *, step: int, recomputed: bool, decode: sample_log.Decode
) -> list[dict[str, Any]]:
    """Some rows as `sample_log` writes them; only theirs are fetched.

    Args:
        batch, data: the batch and what `read` gave for it.
        rows: which.
        step: training step.
        recomputed: `old_log_probs` are the trainer's own, not the rollout engine's.
        decode: token ids -> text.
    """
    names = ["prompts", "responses", "index"]
    stored = tq.kv_batch_get(keys=[batch.keys[i] for i in rows], partition_id=batch.partition_id, select_fields=names)
    prompts, answers, indices = stored["prompts"].unbind(), stored["responses"].unbind(), items(stored["index"])
    behavior, current = data.behavior_log_probs, data.old_log_probs if recomputed else None
    return [
        sample_log.record(
            step=step,
            sample=number,
            index=int(index),
            session=int(batch.keys[row].split("_")[-2]),
            reward=float(data.rewards[row]),
            policy_version=int(data.policy_version[row]),
            prompt_ids=prompt.tolist(),
            response_ids=answer.tolist(),
            response_mask=data.response_mask[row].tolist(),
            prefix_mask=data.prefix_mask[row].tolist(),
            behavior_log_probs=None if behavior is None else behavior[row].tolist(),
            current_log_probs=None if current is None else current[row].tolist(),
            decode=decode,
        )
        for number, (row, prompt, answer, index) in enumerate(zip(rows, prompts, answers, indices, strict=True))
    ]


def solved_rates(batch: StepBatch) -> dict[Any, float]:
    """Prompt uid -> share of its responses that were right."""
    rights: dict[Any, list[bool]] = {}
    for uid, right in zip(batch.uids, batch.solved.tolist(), strict=True):
        rights.setdefault(uid, []).append(right)
    return {uid: sum(values) / len(values) for uid, values in rights.items()}


def items(field: Any) -> list[Any]:
    """The values of a non-tensor field, one a row."""
    return [item.data if isinstance(item, NonTensorData) else item for item in field]


def _reward_info(extra_fields: Any) -> dict[str, Any]:
    return extra_fields.get("reward_extra_info", {}) if isinstance(extra_fields, dict) else {}
