"""Prefixes on disk: one parquet file, one row a prefix, no pickle."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from soup_verl.method.history.prefixes import GroupPrefixes, Prefix

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("position", pa.int64()),
        ("prompt_key", pa.string()),
        ("session", pa.int64()),  # null: a prompt without a prefix keeps its place
        ("policy_version", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("head", pa.int32()),
        ("complete", pa.bool_()),
        ("prompt_hash", pa.string()),
    ]
)
FIRST = pa.schema(list(SCHEMA)[:-1])
"""Of files from before prompts were checked."""


def write_prefixes(path: Path, by_step: dict[int, list[GroupPrefixes]]) -> None:
    """Write the prefixes of several steps, each of one turn; each list is in batch order."""
    rows = []
    for step, groups in sorted(by_step.items()):
        for place, group in enumerate(groups):
            whose = {"step": step, "position": place, "prompt_key": group.prompt_key}
            prefixes = [
                {
                    "session": session,
                    "policy_version": prefix.policy_version,
                    "token_ids": list(prefix.token_ids),
                    "log_probs": list(prefix.log_probs),
                    "head": prefix.head,
                    "complete": prefix.complete,
                    "prompt_hash": prefix.prompt_hash,
                }
                for session, prefix in group.by_session.items()
            ]
            rows += [whose | p for p in prefixes] or [whose]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_prefixes(path: Path) -> dict[int, list[GroupPrefixes]]:
    """What `write_prefixes` wrote; log-probs come back as float32 values.

    Raises:
        ValueError: the file is not a readable parquet file of prefixes; names it.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a readable file of prefixes ({error})") from error
    if table.schema not in (SCHEMA, FIRST):
        raise ValueError(f"{path}: not a file of prefixes, its columns are {table.schema.names}")
    rows = table.to_pylist()
    steps: dict[int, dict[int, GroupPrefixes]] = {}
    for row in rows:
        groups = steps.setdefault(row["step"], {})
        group = groups.setdefault(row["position"], GroupPrefixes(row["prompt_key"], {}))
        if row["session"] is not None:
            group.by_session[row["session"]] = Prefix(
                tuple(row["token_ids"]),
                tuple(row["log_probs"]),
                row["policy_version"],
                row["head"],
                row["complete"],
                row.get("prompt_hash", ""),
            )
    return {step: [groups[i] for i in range(len(groups))] for step, groups in steps.items()}
