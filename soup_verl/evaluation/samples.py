"""What an evaluation keeps: settings.json, and JSON lines of which a kill can tear only the last.

A line is appended, flushed and synced before it counts. Opening the file again drops a torn last line and keeps every
other, so the missing samples are exactly those without a line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from soup_verl.evaluation import EvaluationError
from soup_verl.records.files import read_json_lines, write_json

Key = tuple[str, int, int]
"""(data file, row in it from 0, session)."""
SCORED, UNSCORED = "samples.jsonl", "unscored.jsonl"
"""All samples with their scores; until every one has its score, also what the engine gave."""
RESPONSES = ("response", "response_ids", "token_ids")
"""The long fields of these files."""


def key_of(row: Mapping[str, Any]) -> Key:
    """The sample that a line is about."""
    return row["file"], row["index"], row["session"]


class SampleFile:
    """JSON lines, one a sample, each sample at most once.

    Args:
        path: the file; made if there is none.
        on_disk: fields that are written but not kept in `rows`: token ids of long responses take gigabytes.

    Raises:
        EvaluationError: a line other than a torn last one cannot be read, or a sample stands there twice.
    """

    def __init__(self, path: Path, on_disk: Collection[str] = ()):
        self.path = path
        self.rows: dict[Key, dict[str, Any]] = {}
        self._on_disk = on_disk
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a kill
            self._remember(_parse(line, f"{path}: line {number}"), f"{path}: line {number}")
            whole += len(line)
        self._file.truncate(whole)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows; they are on disk when this returns."""
        rows = list(rows)
        for row in rows:
            self._remember(row, f"{self.path}: sample")
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """Every row whole, from disk, in the order in which they were appended."""
        return (row for _, row in read_json_lines(self.path))

    def missing(self, wanted: Iterable[Key]) -> list[Key]:
        """The samples of `wanted` that have no line, in that order."""
        return [key for key in wanted if key not in self.rows]

    def close(self) -> None:
        self._file.close()

    def _remember(self, row: dict[str, Any], where: str) -> None:
        key = key_of(row)
        if key in self.rows:
            raise EvaluationError(f"{where}: {key} is there already, and a sample must count once. Remove one of them.")
        self.rows[key] = {name: value for name, value in row.items() if name not in self._on_disk}


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        key_of(row)
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{where} is not a sample ({type(error).__name__}: {error}). Mend or remove it, or choose another --out."
        ) from None
    return row


def claim(out: Path) -> TextIO:
    """Make the folder and keep every other evaluation out of it until the file returned is closed.

    Raises:
        EvaluationError: one is at work there, or it cannot be a folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise EvaluationError(f"--out={out}: cannot be written to ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise EvaluationError(
            f"--out={out}: another evaluation is writing there. Wait for it or choose another."
        ) from None
    return lock


def bind(out: Path, settings: dict[str, Any]) -> None:
    """Write down what decides about the samples in `out`, or compare it with what stands there.

    A reward function and its keywords may change (be mended) until all is scored: what it said is dropped, what was
    sampled stays.

    Raises:
        EvaluationError: the samples there were made with other settings; names the first that differ.
    """
    path = out / "settings.json"
    if not path.exists():
        write_json(path, settings)
        return
    try:
        stored = json.loads(path.read_text())
        differing = [k for k in [*settings, *(stored.keys() - settings.keys())] if stored.get(k) != settings.get(k)]
    except (ValueError, AttributeError):
        raise EvaluationError(f"{path}: not readable. Choose another --out.") from None
    if set(differing) <= {"reward", "reward_kwargs"} and differing and _drop_scores(out):
        write_json(path, settings)
    elif differing:
        shown = "; ".join(f"{k}={stored.get(k)!r}, now {settings.get(k)!r}" for k in differing[:3])
        raise EvaluationError(f"--out={out}: holds samples made with {shown}. Choose another --out, or those settings.")


def _drop_scores(out: Path) -> bool:
    """Whether every response is still there to be scored again; if so, the scores are gone."""
    if not (out / UNSCORED).exists():
        return not (out / SCORED).exists()
    scored, unscored = (SampleFile(out / name, on_disk=RESPONSES) for name in (SCORED, UNSCORED))
    for file in (scored, unscored):
        file.close()
    if scored.rows.keys() - unscored.rows.keys():
        return False
    scored.path.unlink()
    return True
