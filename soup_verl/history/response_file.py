"""A stored response, what makes it sound, and many of them in one parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_KEY = 128  # characters of a prompt key


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class StoredResponse:
    """One response an earlier policy gave.

    Args:
        token_ids: (length,) int32, without the end-of-sequence token.
        log_probs: (length,) float32, behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the policy that sampled it (verl's `global_steps` of its weights).
        reward: of the whole response.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    policy_version: int
    reward: float


def checked(prompt_key: str, response: StoredResponse) -> StoredResponse:
    """The response with contiguous arrays of the right type, copied only if they were not.

    Raises:
        ValueError: the key is not ASCII or longer than `MAX_KEY`; there are no tokens, or not as many log-probs; ids
            are no int32 from 0 on; a log-prob or the reward is NaN or infinite.
    """
    if len(prompt_key) > MAX_KEY or not prompt_key.isascii():
        raise ValueError(f"prompt {prompt_key!r}: the key must be ASCII, at most {MAX_KEY} characters")
    ids, log_probs = np.asarray(response.token_ids), np.asarray(response.log_probs)
    if not ids.shape == log_probs.shape == (ids.size,) or ids.size == 0:
        raise ValueError(
            f"prompt {prompt_key!r}: token_ids {ids.shape} and log_probs {log_probs.shape} must both be (length,), "
            "with at least one token"
        )
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError(f"prompt {prompt_key!r}: token_ids must be integers from 0 to 2**31 - 1, got {ids}")
    with np.errstate(over="ignore"):
        log_probs = np.ascontiguousarray(log_probs, np.float32)
    if not np.isfinite(log_probs).all():
        raise ValueError(f"prompt {prompt_key!r}: log_probs must be finite, got {log_probs}")
    if not np.isfinite(response.reward):
        raise ValueError(f"prompt {prompt_key!r}: the reward must be finite, got {response.reward}")
    ids = np.ascontiguousarray(ids, np.int32)
    return StoredResponse(ids, log_probs, int(response.policy_version), float(response.reward))


FORMAT = 1
STATE = b"soup.response_store"  # the file's metadata: what is not of any one response
COMPRESSION = "lz4"
SCHEMA = pa.schema(
    [
        ("prompt_key", pa.string()),
        ("serial", pa.int64()),  # place in the order of insertion; the rows are in the order of use
        ("policy_version", pa.int64()),
        ("reward", pa.float64()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
    ]
)
_CHUNK_TOKENS = 1 << 20
_CHUNK_RESPONSES = 1 << 12

Row = tuple[str, int, StoredResponse]
"""Prompt key, serial, response."""


def write_responses(path: Path, rows: Iterable[Row], state: dict[str, Any]) -> None:
    """Write the rows, in their order, and plain values beside them; keeps no more than a row group in memory."""
    schema = SCHEMA.with_metadata({STATE: json.dumps({"format": FORMAT} | state)})
    with pq.ParquetWriter(path, schema, compression=COMPRESSION, use_dictionary=["prompt_key"]) as writer:
        for chunk in _in_chunks(rows):
            writer.write_batch(_to_batch(chunk))


def read_responses(file: pq.ParquetFile) -> Iterator[Row]:
    """The rows that `write_responses` wrote, checked; the arrays are views of a row group that is in memory.

    Raises:
        ValueError: the file does not hold stored responses, or one of them is not sound.
    """
    for group in range(file.num_row_groups):
        for batch in file.read_row_group(group).to_batches():
            yield from _rows(batch)


def read_state(file: pq.ParquetFile) -> dict[str, Any]:
    """The plain values beside the rows.

    Raises:
        ValueError: the file does not hold stored responses.
    """
    if not file.schema_arrow.equals(SCHEMA):
        raise ValueError(f"its columns are {file.schema_arrow.names}, expected {SCHEMA.names} with our types")
    state = json.loads((file.schema_arrow.metadata or {}).get(STATE, b"null"))
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return state


def _in_chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Row groups: as many rows as `_CHUNK_TOKENS` and `_CHUNK_RESPONSES` allow, at least one."""
    chunk: list[Row] = []
    tokens = 0
    for row in rows:
        length = len(row[2].token_ids)
        if chunk and (tokens + length > _CHUNK_TOKENS or len(chunk) == _CHUNK_RESPONSES):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(row)
        tokens += length
    if chunk:
        yield chunk


def _to_batch(rows: list[Row]) -> pa.RecordBatch:
    keys, serials, responses = zip(*rows, strict=True)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(r.token_ids) for r in responses], out=offsets[1:])
    columns = [
        pa.array(keys),
        pa.array(serials),
        pa.array([r.policy_version for r in responses]),
        pa.array([r.reward for r in responses]),
        pa.ListArray.from_arrays(offsets, np.concatenate([r.token_ids for r in responses])),
        pa.ListArray.from_arrays(offsets, np.concatenate([r.log_probs for r in responses])),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    ids, log_probs = batch["token_ids"], batch["log_probs"]
    if any(column.null_count for column in [*batch.columns, ids.values, log_probs.values]):
        raise ValueError("it has empty cells")
    id_ends, log_prob_ends = ids.offsets.to_numpy(), log_probs.offsets.to_numpy()
    all_ids, all_log_probs = ids.values.to_numpy(), log_probs.values.to_numpy()
    columns = (batch[name].to_pylist() for name in ("prompt_key", "serial", "policy_version", "reward"))
    for i, (prompt_key, serial, version, reward) in enumerate(zip(*columns, strict=True)):
        token_ids = all_ids[id_ends[i] : id_ends[i + 1]]
        behavior = all_log_probs[log_prob_ends[i] : log_prob_ends[i + 1]]
        yield prompt_key, serial, checked(prompt_key, StoredResponse(token_ids, behavior, version, reward))
