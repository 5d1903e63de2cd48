"""Rows in: jsonl and parquet files, and data sets of the hub. Files out: written beside their name, then renamed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soup_verl.data.datasets import DatasetSpec
from soup_verl.data.layouts import DataError

Rows = Iterator[tuple[int, dict[str, Any]]]
SUFFIXES = (".jsonl", ".parquet")


def read_rows(path: Path) -> Rows:
    """(row number from 1, row) of a file; in a jsonl file the row number is the line's, empty lines counted.

    Raises:
        DataError: the file is missing, of another kind, or broken; names the row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)


def _read_jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # bytes that are not UTF-8 too
                raise DataError(f"{path}: row {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {number} is a {type(row).__name__}, expected an object with columns")
            yield number, row


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def hub_rows(spec: DatasetSpec) -> Rows:
    """(row number from 1, row) of the hub's data set, only the columns that its layout knows.

    Raises:
        DataError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    import datasets

    # It warns once a retry; what matters is said below, once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        table = datasets.load_dataset(spec.hub, spec.config, split=spec.split)
    except (
        Exception
    ) as error:  # the hub's client, its transport and the readers of five file formats raise as they like
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise DataError(
            f"{spec.name}: {spec.hub} could not be loaded from the hub ({type(error).__name__}: {reason[:200]}). "
            "Without a network, give a file of the same rows: --from FILE.jsonl or FILE.parquet."
        ) from None
    known = [c for c in table.column_names if c in spec.layout.columns.values()]
    # With a required column missing, all of them are kept for the error to name.
    table = table.select_columns(known) if set(spec.layout.required_columns) <= set(known) else table
    return enumerate(table, start=1)


def question_of(row: dict[str, Any]) -> str | None:
    """The question of a row in any layout that benchmarks come in, ours included; None where there is none."""
    extra = row.get("extra_info")
    ours = extra.get("question") if isinstance(extra, dict) else None
    return next((q for q in (ours, row.get("question"), row.get("problem")) if isinstance(q, str)), None)


def read_questions(path: Path) -> list[str]:
    """Every question of a benchmark's file.

    Raises:
        DataError: a row has none; names it and the columns found.
    """
    questions = []
    for number, row in read_rows(path):
        question = question_of(row)
        if question is None:
            raise DataError(f"{path}: row {number} has no question; columns found: {', '.join(row)}")
        questions.append(question)
    return questions


def write_files(writers: dict[Path, Callable[[Path], None]]) -> None:
    """Write every file under a temporary name, then rename them in order: a failure leaves none half written."""
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in writers}
    try:
        for path, write in writers.items():
            write(partial[path])
        for path in writers:
            os.replace(partial[path], path)
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
