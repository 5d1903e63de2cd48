"""What makes a stored response sound, and many of them in one parquet file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soup_verl.history.base import PolicyResponse

TOKEN_FIELDS = {"token_ids": np.int32, "log_probs": np.float32}
"""What a response has of every token."""
MAX_KEY = 128  # characters of a prompt's key
STATE = b"soup.response_store"  # the file's metadata: what is not of any one response
ROW_GROUP = 64  # responses that are in memory at once
SCHEMA = pa.schema(
    [
        ("token_key", pa.string()),
        ("serial", pa.int64()),  # place in the order of insertion; the rows are in the order of use
        ("policy_version", pa.int64()),
        ("reward", pa.float64()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("ended", pa.bool_()),
    ]
)
SCHEMAS = {1: SCHEMA.remove(6).set(0, pa.field("prompt_key", pa.string())), 2: SCHEMA}
"""By format. The first had another name for the key and did not note whether a response ended."""

Row = tuple[int, PolicyResponse]  # with its serial


def check(response: PolicyResponse) -> None:
    """Raise ValueError unless the response meets the requirements below."""
    key, ids, log_probs = response.token_key, response.token_ids, response.log_probs
    requirements = {
        f"a key in ASCII, at most {MAX_KEY} characters": key.isascii() and len(key) <= MAX_KEY,
        "as many log_probs as token_ids, at least one": ids.shape == log_probs.shape == (ids.size,) and ids.size > 0,
        "token_ids in int32, from 0 on": ids.dtype == np.int32 and ids.min(initial=0) >= 0,
        "log_probs in float32, all finite": log_probs.dtype == np.float32 and bool(np.isfinite(log_probs).all()),
        "a finite reward": math.isfinite(response.reward),
    }
    for expected, met in requirements.items():
        if not met:
            seen = f"token_ids {ids.dtype} {ids.shape}, log_probs {log_probs.dtype} {log_probs.shape}"
            raise ValueError(f"a response to prompt {key!r}: expected {expected}; got {seen}, reward {response.reward}")


def write_responses(path: Path, rows: Iterable[Row], *, current_version: int) -> None:
    """Write the rows, in their order; keeps no more than a row group in memory."""
    schema = SCHEMA.with_metadata({STATE: json.dumps({"format": max(SCHEMAS), "current_version": current_version})})
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=["token_key"]) as writer:
        while group := list(islice(remaining, ROW_GROUP)):
            writer.write_batch(_to_batch(group))


@contextmanager
def read_responses(path: Path) -> Iterator[tuple[int, Iterator[Row]]]:
    """What `write_responses` wrote, checked: the current version, and rows whose arrays are views of a row group.

    Raises:
        ValueError: the file is missing, torn or something else, or what was done with its rows raised one; names it.
    """
    try:
        with pq.ParquetFile(path) as file:
            state = json.loads((file.schema_arrow.metadata or {}).get(STATE, b"{}"))
            if SCHEMAS.get(form := state.get("format")) != file.schema_arrow:
                raise ValueError(f"format {form} with columns {file.schema_arrow.names}, expected {SCHEMA.names}")
            yield state["current_version"], _rows(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not usable as a file of stored responses ({error})") from error


def _to_batch(rows: list[Row]) -> pa.RecordBatch:
    serials, responses = zip(*rows, strict=True)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(r.token_ids) for r in responses], out=offsets[1:])
    lists = {
        name: pa.ListArray.from_arrays(offsets, np.concatenate([getattr(r, name) for r in responses]))
        for name in TOKEN_FIELDS
    }
    plain = {name: [getattr(r, name) for r in responses] for name in SCHEMA.names if name not in {"serial", *lists}}
    return pa.RecordBatch.from_pydict({"serial": serials} | plain | lists, schema=SCHEMA)


def _rows(file: pq.ParquetFile) -> Iterator[Row]:
    for group in range(file.num_row_groups):
        for batch in file.read_row_group(group).to_batches():
            ids, log_probs = batch["token_ids"], batch["log_probs"]
            if any(column.null_count for column in [*batch.columns, ids.values, log_probs.values]):
                raise ValueError("it has empty cells")
            ended = batch["ended"].to_pylist() if "ended" in batch.schema.names else [False] * len(batch)
            plain = zip(*(batch[i].to_pylist() for i in range(4)), ended, strict=True)
            for i, (key, serial, version, reward, end) in enumerate(plain):
                arrays = ids[i].values.to_numpy(), log_probs[i].values.to_numpy()
                check(response := PolicyResponse(key, *arrays, version, reward, end))
                yield serial, response
