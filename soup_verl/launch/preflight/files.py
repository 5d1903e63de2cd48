"""The data files, read by verl's own loader into its own cache: what it reads is accepted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.method.checks import ConfigError
from soup_verl.tasks.data.files import read_rows
from soup_verl.tasks.data.layouts import DataError

SAMPLED_ROWS = {"train": 1000, "val": 250}
"""Rows of which the prompts are tokenized, spread evenly over the files."""
AGENT_COLUMN = "agent_name"
"""verl: a row's own agent loop, where the files have this column."""


_AT_ONCE = 10_000


@dataclass(frozen=True)
class Split:
    """Rows of the training or validation files, put together as verl does: a column that one file lacks, or one line of
    it, is null there.

    Args:
        table: a `datasets.Dataset`.
        prompts: row number -> prompt, of the rows that are looked at.
    """

    table: Any
    prompts: Mapping[int, Any]

    @property
    def rows(self) -> int:
        """How many there are, before any are dropped."""
        return len(self.table)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(self.table.column_names)

    def agents(self) -> frozenset[str]:
        """What the rows have for an agent loop, as Python writes it; empty where no file has that column."""
        return frozenset(map(repr, self.table.unique(AGENT_COLUMN)) if AGENT_COLUMN in self.columns else ())

    def rewarded(self, numbers: Sequence[int], source: str) -> Iterator[tuple[Any, Any, Any]]:
        """`data_source`, `reward_model` and `extra_info` of these rows, None where there is no such column."""
        wanted = (source, "reward_model", "extra_info")
        table = self.table.select_columns([c for c in dict.fromkeys(wanted) if c in self.columns])
        for start in range(0, len(numbers), _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            found = table.select(part)[:] if table.column_names else {}  # at once: row by row is slow
            yield from zip(*(found.get(column) or [None] * len(part) for column in wanted), strict=True)


def read_split(run: RunSettings, split: str) -> Split | None:
    """The files of `data.train_files` or `data.val_files`; None if they are remote, or not read by verl's own class.

    Raises:
        ConfigError: verl cannot read them; names the file, and the row where it is known.
    """
    import datasets

    key = f"data.{split}_files"
    files = files_of(run.get(key, []))
    if not files or run.get("data.custom_cls.path") or any("://" in file for file in files):
        return None
    tables = [_load(key, file) for file in files]
    try:
        table = datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise ConfigError(key, files, f"files whose columns are of the same types ({error})") from error
    limit = run.get(f"data.{split}_max_samples", -1)
    if 0 < limit < len(table) and not run.get("data.shuffle", False):
        table = table.select(range(limit))  # otherwise verl draws so many of them
    return Split(table, _prompts(table, run.get("data.prompt_key", "prompt"), SAMPLED_ROWS[split]))


def _prompts(table: Any, column: str, count: int) -> dict[int, Any]:
    numbers = range(0, len(table), -(-len(table) // count))
    if column not in table.column_names:
        return dict.fromkeys(numbers)
    return dict(zip(numbers, table.select_columns([column]).select(numbers)[column], strict=True))


def files_of(value: Any) -> list[str]:
    """verl takes one file or a list of them."""
    return [str(file) for file in value] if isinstance(value, (list, tuple)) else [str(value)]


def _load(key: str, file: str) -> Any:
    import datasets

    kind = "parquet" if file.endswith(".parquet") else "json"
    try:
        with _quiet():
            table = datasets.load_dataset(kind, data_files=file)["train"]
            table.data.table.validate(full=True)  # bytes that are no text would be found by whoever draws the row
    except Exception as error:  # it raises what its readers of files raise
        raise ConfigError(key, file, f"a file that verl's loader can read; {_fault(Path(file), error)}") from error
    if not len(table):
        raise ConfigError(key, file, f"a file that verl's loader can read; {_EMPTY}")
    return table


_EMPTY = "it holds no rows"


def _fault(path: Path, error: BaseException) -> str:
    """What our own reader finds, which knows the row; else what the loader said first."""
    try:
        if path.is_file() and not sum(1 for _ in read_rows(path)):
            return _EMPTY
    except DataError as ours:
        return f"{str(ours).removeprefix(f'{path}: ')} (rows from 1)"
    while error.__cause__ is not None:
        error = error.__cause__
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {said[:200]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without the log of what is said in one line below."""
    import datasets

    shown, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()
