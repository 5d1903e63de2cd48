"""The data of a rehearsal: what the script's own commands make of its files, or of rows that come with this package."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight import Model
from soup_verl.launch.preflight.files import read_split
from soup_verl.launch.preflight.prompts import builder_of, sampled_prompts
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.rehearsal.processes import StageFailed
from soup_verl.tasks.data.datasets import find_dataset
from soup_verl.tasks.data.puzzles import is_puzzles

PREPARE_DATA = "soup_verl.prepare_data"


@dataclass(frozen=True)
class Preparation:
    """One of the script's own commands: `python -m COMMAND...`, which makes `file` if it is not there."""

    file: str
    command: Sequence[str]

    @property
    def is_data(self) -> bool:
        return self.command[0] == PREPARE_DATA


@dataclass(frozen=True)
class Places:
    """Where things are in a rehearsal.

    Args:
        data_dir: the script's own folder of prepared files, which is only read.
        folder: the rehearsal's own.
        model: as the script names it.
        description: folder with its configuration and tokenizer.
    """

    data_dir: str
    folder: Path
    model: str
    description: Path

    def own(self, name: str) -> str:
        """The rehearsal's place for what the script has in its `data_dir`; other names stay."""
        inside = name == self.data_dir or name.startswith(f"{self.data_dir}/")
        return f"{self.folder / 'data'}{name.removeprefix(self.data_dir)}" if inside else name

    def find(self, name: str) -> str:
        """A file or folder that the script names: as made for the rehearsal, else its own."""
        if name == self.model:
            return str(self.description)
        return self.own(name) if Path(self.own(name)).exists() else name


def make(preparation: Preparation, places: Places) -> bool:
    """Run the command in the rehearsal's folder, unless its file is there; returns whether it was run.

    Raises:
        StageFailed: the command failed.
    """
    if Path(preparation.file).exists():
        return False
    out = places.own(preparation.file)
    module, *arguments = preparation.command
    moved = [places.find(a) if a != str(Path(preparation.file).parent) else str(Path(out).parent) for a in arguments]
    if preparation.is_data and not is_puzzles(name := arguments[arguments.index("--dataset") + 1]):
        moved += ["--from", str(own_rows(name))]
    _run_module(module, moved)
    return True


def own_rows(dataset: str) -> Path:
    """The file of this package that stands for a data set: rows of its domain."""
    spec = find_dataset(dataset)
    return Path(__file__).with_name(f"{spec.domain}_{'benchmark' if spec.is_benchmark else 'training'}.jsonl")


def _run_module(module: str, arguments: Sequence[str]) -> None:
    """`python -m MODULE ARGUMENTS` in this process, which has imported what seven of these would import seven times.

    Raises:
        StageFailed: it ended with an exit code other than 0; says what it said last.
    """
    before, said = sys.argv, io.StringIO()
    sys.argv = [module, *arguments]
    try:
        with redirect_stderr(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            cause = ended.code if isinstance(ended.code, str) else said.getvalue().strip().splitlines()[-1]
            raise StageFailed(f"{module} {' '.join(arguments)}: {cause}") from None
    finally:
        sys.argv = before
        sys.stderr.write(said.getvalue())


def few_rows(files: Sequence[str], count: int, folder: Path, *, prompt_key: str = "prompt") -> list[str]:
    """Copies of parquet files with no more than their `count` shortest prompts each; other files as they are."""
    import pyarrow.parquet as pq

    found = []
    for place, file in enumerate(files):
        if not file.endswith(".parquet"):
            found.append(file)
            continue
        table = pq.read_table(file)
        lengths = [len(str(prompt)) for prompt in table.column(prompt_key).to_pylist()]
        shortest = sorted(sorted(range(len(lengths)), key=lengths.__getitem__)[:count])
        name = Path(file).name
        target = folder / (name if not (folder / name).exists() else f"{place}_{name}")
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(shortest), target)
        found.append(str(target))
    return found


def longest_prompt(run: RunSettings, model: Model) -> int:
    """Tokens of the longest prompt of both splits, by verl's own builder of prompts."""
    builder = builder_of(run, model.tokenizer, model.model_type, model.processor)
    splits = {split: found for split in ("train", "val") if (found := read_split(run, split)) is not None}
    if not splits:
        raise StageFailed("rows are remote, or a data.custom_cls reads them: a rehearsal cannot measure their prompts")
    prompts = [sampled_prompts(run, split, found, builder, model.processor) for split, found in splits.items()]
    if not (lengths := [len(prompt.token_ids) for of_split in prompts for prompt in of_split]):
        raise StageFailed("every prompt is made of parts: expected messages of text, which a rehearsal can measure")
    return max(lengths)


def as_list(files: Any) -> list[str]:
    return [files] if isinstance(files, str) else [str(file) for file in files]
