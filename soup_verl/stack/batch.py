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

from soup_verl.method.history import PolicyResponse
from soup_verl.method.step import TrainedTokens
from soup_verl.method.step_batch import StepBatch
from soup_verl.method.validation import is_solved
from soup_verl.records import sample_log
from soup_verl.stack.rollout import token_key
from soup_verl.stack.session import FACTS
from soup_verl.tasks.data.row_index import index_to_show

FIELDS = ("uid", "response_mask", "rollout_log_probs", "old_log_probs", "entropy", "rm_scores", "extra_fields")
PLANNED_FIELDS = ("prefix_mask", "policy_version")
INTERRUPTED_FIELDS = ("token_versions",)


@dataclass(frozen=True)
class StoredBatch:
    """What was read of a batch.

    Args:
        responses: every row, in the order of `batch.keys`, padding rows included.
        real_rows: those that are no padding.
        nested_response_mask: verl's jagged mask, which knows each row's length.
        turn_starts: for each row, where the turns after the first begin.
        images: for each row, `images.images_key` of its prompt.
    """

    responses: StepBatch
    real_rows: list[int]
    nested_response_mask: Tensor
    turn_starts: list[list[int]]
    images: list[str]


def read(
    batch: KVBatchMeta, *, planned: bool, current_version: int, recomputed: bool, interrupted: bool = False
) -> StoredBatch:
    """The batch's fields. Before `old_log_probs` are computed they are NaN.

    Args:
        planned: rows may have a prefix.
        interrupted: rows have the policy version of every token; those below `current_version` are historical.
        current_version: version of the policy that sampled everything but prefixes.
        recomputed: `old_log_probs` are the trainer's own, not the rollout engine's.
    """
    names = [*FIELDS, *(PLANNED_FIELDS if planned else ()), *(INTERRUPTED_FIELDS if interrupted else ())]
    stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    uids = items(stored.pop("uid"))
    real_rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    extras = items(stored.pop("extra_fields"))
    info, facts = ([_part(extra, part) for extra in extras] for part in ("reward_extra_info", FACTS))
    nested = stored["response_mask"]
    data = dict(stored.to_padded_tensor().items())
    response_mask, rewards = data["response_mask"], data["rm_scores"].sum(dim=-1)
    none = torch.full_like(response_mask, -1, dtype=torch.int32)  # int32: at 8k tokens a response the size tells
    prefix_mask, version = torch.zeros_like(response_mask), none
    if planned:
        prefix_mask, version = data["prefix_mask"], data["policy_version"].unsqueeze(-1).int()  # one a response
    if interrupted:
        version = data["token_versions"]
        prefix_mask = (response_mask.bool() & (version < current_version)).to(torch.int8)
    unknown = torch.full(response_mask.shape, torch.nan)
    solved = [is_solved(i.get("acc"), reward) for i, reward in zip(info, rewards.tolist(), strict=True)]
    responses = StepBatch(
        uids=uids,
        response_mask=response_mask,
        prefix_mask=prefix_mask,
        policy_version=torch.where(prefix_mask.bool(), version, none),
        current_version=current_version,
        behavior_log_probs=data.get("rollout_log_probs"),
        old_log_probs=data.get("old_log_probs", unknown),
        recomputed=recomputed,
        entropy=data.get("entropy"),
        rewards=rewards,
        solved=torch.tensor(solved, dtype=torch.bool),
        stale_apart=interrupted,
        answers=[str(i.get("pred")) for i in info] if all("pred" in info[row] for row in real_rows) else None,
        cut_short=torch.tensor([f.get("cut_short", False) for f in facts]) if planned else None,
    )
    turn_starts, images = ([f.get(name, none) for f in facts] for name, none in (("turn_starts", []), ("images", "")))
    return StoredBatch(responses, real_rows, nested, turn_starts, images)


def write_trained_tokens(batch: KVBatchMeta, stored: StoredBatch, tokens: TrainedTokens) -> None:
    """Put where the loss reads it what differs from the batch as it was read, or is not there."""
    fields = {"prefix_mask": stored.responses.prefix_mask} if stored.responses.stale_apart else {}
    if tokens.old_log_probs is not stored.responses.old_log_probs:
        fields["old_log_probs"] = tokens.old_log_probs
    if tokens.response_mask is not stored.responses.response_mask:
        fields["response_mask"] = fields["loss_mask"] = tokens.response_mask
    if fields:
        nested = {name: response_to_nested(value, stored.nested_response_mask) for name, value in fields.items()}
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


def split_by_session(batch: KVBatchMeta, rows: Sequence[int]) -> tuple[KVBatchMeta, KVBatchMeta]:
    """The batch with the sessions of these rows, and that of the other sessions; the rows' order stays."""
    chosen = {_session(batch.keys[row]) for row in rows}
    parts = ([k for k in batch.keys if (_session(k) in chosen) is wanted] for wanted in (True, False))
    trained, dropped = map(batch.select_keys, parts)
    return trained, dropped


def leave_untrained(dropped: KVBatchMeta) -> None:
    """What verl's metrics of a step read of each row that is not trained on: advantage 0, and no token of the loss."""
    if dropped.keys:
        masks = tq.kv_batch_get(keys=dropped.keys, partition_id=dropped.partition_id, select_fields=["response_mask"])
        mask = masks["response_mask"]
        zeros = mask.to(torch.float32) * 0
        fields = {"response_mask": mask * 0, "advantages": zeros, "returns": zeros}
        tq.kv_batch_put(
            keys=dropped.keys, partition_id=dropped.partition_id, fields=TensorDict(fields, batch_size=len(dropped))
        )


def mark_padding_unmixed(batch: KVBatchMeta, *, interrupted: bool = False) -> None:
    """verl's padding rows copy a real row's fields; ours must have the padding row's length and no prefix."""
    padding = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding", False)]
    if padding:
        mask = torch.zeros(len(padding), 1, dtype=torch.int8)
        version = torch.full((len(padding),), -1)
        ours = {"token_versions": mask.int()} if interrupted else {"prefix_mask": mask, "policy_version": version}
        fields = TensorDict(ours, batch_size=len(padding))
        tq.kv_batch_put(keys=padding, partition_id=batch.partition_id, fields=fields)


def counted_rows(batch: KVBatchMeta) -> Tensor:
    """(batch,) boolean: the last output of each session, as verl's GRPO counts; keys are uid_session_output."""
    last: dict[str, int] = {}
    for key in batch.keys:
        session, output = key.rsplit("_", 1)
        last[session] = max(last.get(session, 0), int(output))
    return torch.tensor([int(key.rsplit("_", 1)[1]) == last[_session(key)] for key in batch.keys])


def _session(key: str) -> str:
    return key.rsplit("_", 1)[0]


def policy_responses(
    batch: KVBatchMeta, stored: StoredBatch, *, response_length: int, from_actor: bool
) -> list[PolicyResponse]:
    """The on-policy responses of the batch, for the source that stores them.

    A response shorter than the budget whose last token is the policy's ended with an end-of-sequence token, which is
    kept apart. What others said in it, such as tools, is stored with a mask.

    Args:
        batch, stored: the batch and what `read` gave for it.
        response_length: budget of a response in tokens.
        from_actor: log-probs as the trainer recomputed them, not as the rollout engine reported them.
    """
    data = stored.responses
    mixed = data.is_mixed.tolist()
    rows = [i for i in stored.real_rows if not mixed[i]]
    log_probs = data.old_log_probs if from_actor else data.behavior_log_probs
    assert log_probs is not None, "storing responses needs their log-probs"
    responses = []
    for row, prompt, answer, index in _texts(batch, rows):
        ended = len(answer) < response_length and bool(data.response_mask[row, len(answer) - 1])
        length = len(answer) - ended
        own = data.response_mask[row, :length].to(torch.int8)
        if own.any():
            responses.append(
                PolicyResponse(
                    token_key=token_key(index, prompt.tolist(), stored.images[row]),
                    token_ids=answer[:length].numpy().astype(np.int32),
                    log_probs=log_probs[row, :length].float().numpy(),
                    policy_version=data.current_version,
                    reward=float(data.rewards[row]),
                    ended=ended,
                    end_token_id=int(answer[length]) if ended else None,
                    end_log_prob=float(log_probs[row, length]) if ended else None,
                    loss_mask=None if own.all() else own.numpy(),
                    turn_starts=tuple(start for start in stored.turn_starts[row] if start < length),
                    solved=bool(data.solved[row]),
                )
            )
    return responses


def sample_records(
    batch: KVBatchMeta, stored: StoredBatch, rows: Sequence[int], *, first: int = 0, decode: sample_log.Decode
) -> list[dict[str, Any]]:
    """Some rows as `sample_log` writes them; only theirs are fetched.

    Args:
        batch, stored: the batch and what `read` gave for it.
        rows: which.
        first: the number of the first among those recorded of the step.
        decode: token ids -> text.
    """
    data = stored.responses
    behavior, current = data.behavior_log_probs, data.old_log_probs if data.recomputed else None
    return [
        sample_log.record(
            step=data.current_version + 1,
            sample=number,
            index=index_to_show(index),
            session=int(batch.keys[row].split("_")[-2]),
            reward=float(data.rewards[row]),
            policy_version=int(data.response_version[row]),
            prompt_ids=prompt.tolist(),
            response_ids=answer.tolist(),
            response_mask=data.response_mask[row].tolist(),
            prefix_mask=data.prefix_mask[row].tolist(),
            behavior_log_probs=None if behavior is None else behavior[row].tolist(),
            current_log_probs=None if current is None else current[row].tolist(),
            decode=decode,
        )
        for number, (row, prompt, answer, index) in enumerate(_texts(batch, rows), first)
    ]


def _texts(batch: KVBatchMeta, rows: Sequence[int]) -> list[tuple[int, Tensor, Tensor, Any]]:
    """Of some rows: row, token ids of prompt and response, and the data set's index of the prompt."""
    if not rows:
        return []
    names = ["prompts", "responses", "index"]
    stored = tq.kv_batch_get(keys=[batch.keys[i] for i in rows], partition_id=batch.partition_id, select_fields=names)
    prompts, answers, indices = stored["prompts"].unbind(), stored["responses"].unbind(), items(stored["index"])
    return list(zip(rows, prompts, answers, indices, strict=True))


def items(field: Any) -> list[Any]:
    """The values of a non-tensor field, one a row."""
    return [item.data if isinstance(item, NonTensorData) else item for item in field]


def _part(extra_fields: Any, name: str) -> dict[str, Any]:
    return extra_fields.get(name, {}) if isinstance(extra_fields, dict) else {}
