"""Files written in one step, so that nobody finds half of one, and files of JSON lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Beside its name, then renamed: who reads finds the file before or the file after."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """As `write_text`, indented."""
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name when the block ends; nothing is left of a block that fails."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_json_lines(path: Path, *, skip_broken: bool = False) -> Iterator[tuple[int, Any]]:
    r"""(number from 1, value) of every line that is not blank. `\n` ends a line, and nothing else does: texts may hold
    U+2028 and others at which `str.splitlines` would cut.

    Args:
        skip_broken: leave out lines that are no JSON: it may be being written, or its process was killed.

    Raises:
        ValueError: a line is no JSON, or not UTF-8; names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                if skip_broken:
                    continue
                found = line.strip().decode(errors="replace")[:60]
                raise ValueError(f"{path}, line {number}: expected JSON, found {found!r}") from None
            yield number, value
