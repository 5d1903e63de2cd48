"""Many stored responses in one parquet file: plain columns, no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soup_verl.method.history.prefixes import PolicyResponse, check_response
from soup_verl.method.history.response_tokens import TOKEN_FIELDS

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
        ("end_token_id", pa.int32()),  # null: not kept
        ("end_log_prob", pa.float32()),  # null: not kept
        ("loss_mask", pa.list_(pa.int8())),  # null: the policy generated every token
        ("turn_starts", pa.list_(pa.int32())),
        ("solved", pa.bool_()),  # null: not noted
    ]
)
MAY_BE_NULL = {"end_token_id", "end_log_prob", "loss_mask", "solved"}
_FIRST = pa.schema([("prompt_key", pa.string()), *list(SCHEMA)[1:6]])
SCHEMAS = {1: _FIRST, 2: pa.schema(list(SCHEMA)[:7]), 3: pa.schema(list(SCHEMA)[:11]), 4: SCHEMA}
"""By format. The first called the `token_key` a prompt_key, which it never was, and did not note whether a response
ended; the second knew no end tokens, masks and turns, the third not what was solved."""

Row = tuple[int, PolicyResponse]  # with its serial


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
            columns = dict(zip(["token_key", *batch.schema.names[1:]], batch.columns, strict=True))
            filled = [column for name, column in columns.items() if name not in MAY_BE_NULL]
            if any(column.null_count for column in [*filled, *(columns[name].values for name in TOKEN_FIELDS)]):
                raise ValueError("it has empty cells")
            for i in range(len(batch)):
                facts = {"ended": False, "turn_starts": ()} | {name: _value(c[i]) for name, c in columns.items()}
                serial, facts["turn_starts"] = facts.pop("serial"), tuple(map(int, facts["turn_starts"]))
                check_response(response := PolicyResponse(**facts))
                yield serial, response


def _value(cell: pa.Scalar) -> Any:
    """A list as an array, anything else as Python has it."""
    return cell.values.to_numpy() if isinstance(cell, pa.ListScalar) and cell.is_valid else cell.as_py()
