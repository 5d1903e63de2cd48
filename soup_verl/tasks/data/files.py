"""Rows in: JSON and parquet files, folders of them, data sets saved to disk and those of the hub. Files out: written
beside their name, then renamed."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from soup_verl.tasks.data.datasets import DatasetSpec
from soup_verl.tasks.data.layouts import DataError

Rows = Iterator[tuple[int, dict[str, Any]]]
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
KINDS = ".jsonl, .json (both also .gz) or .parquet"
READ_BY_VERL = (".parquet", ".json", ".jsonl")
"""Of the files in `data.train_files` and `data.val_files`: verl goes by the name."""
_BOM = b"\xef\xbb\xbf"
_SHARD = re.compile(r"[-_.]?\d+(?:-of-\d+)?$")
"""What tells the shards of one set apart: train-00000-of-00002, part_3, 0000."""


def holds_rows(path: Path) -> bool:
    """Whether the name is one of a file that `read_rows` reads."""
    return path.name.endswith(SUFFIXES)


def read_rows(path: Path) -> Rows:
    """(row number from 1, row) of a file, of a folder of shards, or of a data set that `save_to_disk` wrote.

    In a file of JSON lines the row number is the line's, empty lines counted; over shards it goes on.

    Raises:
        DataError: there is no such file, it is of another kind, or broken; names the row.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not holds_rows(path):
        raise DataError(f"{path}: expected a file that ends in {KINDS}")
    return _read_parquet(path) if path.suffix == ".parquet" else _read_json(path)


def _read_folder(folder: Path) -> Rows:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        raise DataError(f"{folder}: a data set with the splits {', '.join(splits)}; give one of them: {folder}/SPLIT")
    if (folder / "state.json").is_file():
        return _read_saved(folder)
    shards = _row_files(folder.rglob("*"))
    if not shards:
        raise DataError(f"{folder}: expected a folder with {KINDS} files, or one of `save_to_disk`")
    sets = sorted({_SHARD.sub("", p.name.removesuffix(_suffix(p))) for p in shards})
    if len(sets) > 1:
        raise DataError(f"{folder}: files of several sets ({', '.join(sets)}), expected the shards of one; give a file")
    return _read_shards(shards)


def _row_files(files: Iterable[Path]) -> list[Path]:
    """In order; plain .json only where there is nothing else: reports and descriptions lie beside data."""
    found = [p for p in sorted(files) if p.is_file() and holds_rows(p) and not p.name.startswith(".")]
    return [p for p in found if not p.name.endswith((".json", ".json.gz"))] or found


def benchmark_files(path: Path) -> list[Path]:
    """The files that lie in a folder; the path itself where it is a file, or a data set that `save_to_disk` wrote."""
    is_folder = path.is_dir() and not (path / "state.json").is_file()
    return _row_files(path.iterdir()) if is_folder else [path]


def _suffix(path: Path) -> str:
    return next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))


def _read_shards(shards: list[Path]) -> Rows:
    before = 0
    for shard in shards:
        number = 0
        for number, row in read_rows(shard):
            yield before + number, row
        before += number


def _read_saved(folder: Path) -> Rows:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the reader of somebody else's format raises as it likes
        raise DataError(f"{folder}: not a readable data set ({type(error).__name__}: {error})") from None
    yield from enumerate(saved, start=1)


def _read_json(path: Path) -> Rows:
    """JSON lines, or one array of objects. Lines end with a newline alone: U+2028 and form feeds stand in texts."""
    with _open(path) as file:
        try:
            head = file.peek(64).removeprefix(_BOM).lstrip()[:1]  # type: ignore[attr-defined]
            yield from _read_array(path, file) if head == b"[" else _read_lines(path, file)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: not readable ({error})") from None


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def _read_lines(path: Path, file: BinaryIO) -> Rows:
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:  # bytes that are not UTF-8 too
            raise DataError(f"{path}: row {number} is not JSON ({error})") from None
        yield number, _object(path, number, row)


def _read_array(path: Path, file: BinaryIO) -> Rows:
    try:
        rows = json.loads(file.read().removeprefix(_BOM))
    except ValueError as error:
        raise DataError(f"{path}: an array that is not JSON ({error})") from None
    for number, row in enumerate(rows, start=1):
        yield number, _object(path, number, row)


def _object(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{path}: row {number} is a {type(row).__name__}, expected an object with columns")
    return row


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
        DataError: the hub cannot be reached, or has no such data set, configuration or split, or only a program for it.
    """
    import datasets

    if spec.has_script:
        raise DataError(
            f"{spec.name}: {spec.hub} has a loading script on the hub, which `datasets` no longer runs. Download"
            " its .jsonl files and give their folder: --from FOLDER. A run script takes the parquet by its path."
        )

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
            "Without a network, give a file or folder of the same rows: --from FILE.jsonl or FILE.parquet."
        ) from None
    known = [c for c in table.column_names if c in spec.layout.columns.values()]
    # With a required column missing, all of them are kept for the error to name.
    table = table.select_columns(known) if set(spec.layout.required_columns) <= set(known) else table
    return enumerate(table, start=1)


def question_of(row: dict[str, Any]) -> str | None:
    """The question of a row in any layout that benchmarks come in, ours included; None where there is none."""
    extra = row.get("extra_info")
    ours = extra.get("question") if isinstance(extra, dict) else None
    named = (row.get(name) for name in ("question", "problem", "Question"))
    return next((q for q in (ours, *named) if isinstance(q, str)), None)


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
