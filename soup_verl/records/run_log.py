"""The step metrics of a run as verl's `file` logger writes them, kept across resumes.

verl truncates the file when it opens it, so a file that is already there is moved aside first; `read` puts the pieces
together again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from soup_verl.records.files import read_json_lines

FILE = "metrics.jsonl"


def open_in(folder: Path) -> None:
    """Have verl's `file` logger of this process write into `folder` from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    set_aside(folder)
    os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / FILE)


def set_aside(folder: Path) -> None:
    """Rename `metrics.jsonl` to the next free `metrics.NNNN.jsonl`; nothing if there is none."""
    current = folder / FILE
    if current.exists():
        current.rename(folder / f"metrics.{len(_earlier(folder)) + 1:04d}.jsonl")


def read(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, in order. A step that was logged again after a resume counts as logged last.

    Raises:
        FileNotFoundError: the folder holds no metrics.
    """
    files = [f for f in [*_earlier(folder), folder / FILE] if f.exists()]
    if not files:
        raise FileNotFoundError(f"{folder}: no {FILE}; is it the folder of a run with trainer.logger=[file]?")
    steps: dict[int, dict[str, float]] = {}
    for file in files:
        for step, data in read_file(file):
            steps.setdefault(step, {}).update(data)
    return dict(sorted(steps.items()))


def read_file(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and metrics of every line, in the order in which they were logged."""
    for _, entry in read_json_lines(file, skip_broken=True):
        try:
            step, data = entry["step"], dict(entry["data"])
        except (ValueError, TypeError, KeyError):
            continue  # one of somebody else's
        yield step, data


def _earlier(folder: Path) -> list[Path]:
    return sorted(folder.glob("metrics.[0-9][0-9][0-9][0-9].jsonl"))
