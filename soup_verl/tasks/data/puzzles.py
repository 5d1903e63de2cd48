"""The data sets `reasoning-gym:NAME` and `reasoning-gym:NAME-test`: puzzles that reasoning-gym makes up on demand.

Half of all questions are for training, the other half for tests, by their SHA-256: no question is in both, whatever the
seeds and sizes. Within a file none is there twice. The same arguments give the same rows, and a smaller size the first
of them.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from soup_verl.tasks.data.datasets import PLAIN, DatasetSpec
from soup_verl.tasks.data.layouts import DataError

PREFIX = "reasoning-gym:"
TEST = "-test"
DOMAIN = "puzzles"
SIZE = 1000
MAX_SEED = 400
"""Times `puzzle_maker.SEED_STRIDE` it still fits into the 32 bits that numpy's seeds have."""
DRAWS_A_ROW = 20
"""Puzzles drawn at most for each row wanted; a rich family needs 2."""

_EVAL = "its scorer gives answers to Python's eval"
REFUSED = {
    "binary_matrix": _EVAL,
    "n_queens": _EVAL,
    "spiral_matrix": _EVAL,
    "string_insertion": _EVAL,
    "codeio": "its puzzles are made by running some thousand programs that come with it",
    "composite": "it mixes others: prepare each of them",
    "game_of_life_halting": "its scorer takes every answer for right",
    "puzzle24": "its scorer does not look which numbers the puzzle has: 6*4*1*1 solves all of them",
}
"""Families that are not offered, and why."""


def is_puzzles(dataset: str) -> bool:
    return dataset.startswith(PREFIX)


def families() -> list[str]:
    """All that reasoning-gym has, refused ones too. Imports it, which takes seconds."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def check_family(family: str) -> None:
    """Raises ValueError of a family that is refused, or that there is not; names the nearest ones."""
    if family in REFUSED:
        raise ValueError(f"{family!r} is refused: {REFUSED[family]}")
    known = families()
    if family not in known:
        nearest = difflib.get_close_matches(family, [name for name in known if name not in REFUSED], 3, cutoff=0.5)
        remedy = f". Did you mean {' or '.join(nearest)}?" if nearest else f", one of {', '.join(known)}"
        raise ValueError(f"{family!r}: expected a task of reasoning-gym{remedy}")


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; a value that is JSON is what it says, any other one text."""
    given: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DataError(f"--set={text!r}: expected NAME=VALUE, such as max_terms=3")
        given[name] = value
        with contextlib.suppress(ValueError):
            given[name] = json.loads(value)
    return given


def check_settings(family: str, given: Mapping[str, Any]) -> None:
    """Raises DataError of a setting that the family does not have, or whose value it refuses."""
    from dataclasses import fields

    from reasoning_gym.factory import DATASETS

    config = DATASETS[family][1]
    known = [field.name for field in fields(config) if field.name not in ("seed", "size")]
    for name in given.keys() - set(known):
        nearest = difflib.get_close_matches(name, known, 1)
        remedy = f". Did you mean {nearest[0]}?" if nearest else ""
        raise DataError(f"--set={name}: expected a setting of {family}, one of {', '.join(known)}{remedy}")
    try:
        config(**given).validate()
    except Exception as error:  # assertions, mostly; a value of another type raises as it likes
        raise DataError(f"--set: {family} refuses {dict(given)} ({type(error).__name__}: {error})") from None


def puzzle_spec(dataset: str, *, size: int | None, seed: int | None, settings: Sequence[str]) -> DatasetSpec:
    """The data set of this name.

    Args:
        size: puzzles asked for.
        seed: from 0; other seeds give other puzzles.
        settings: `NAME=VALUE`, of the family's configuration.

    Raises:
        DataError: there is no such family, or it is refused; a setting that it does not have or refuses.
    """
    size, seed = SIZE if size is None else size, 0 if seed is None else seed
    if size < 1:
        raise DataError(f"--size={size}: expected a number of at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise DataError(f"--seed={seed}: expected a whole number from 0 to {MAX_SEED}")
    name = dataset.removeprefix(PREFIX)
    family, is_test = name.removesuffix(TEST), name.endswith(TEST)
    try:
        check_family(family)
    except ValueError as error:
        raise DataError(f"--dataset={PREFIX}{error}") from None
    given = read_settings(settings)
    check_settings(family, given)
    made_by = f"reasoning-gym {version('reasoning-gym')}, {family}, seed {seed}" + (f", {given}" if given else "")
    return DatasetSpec(
        f"reasoning-gym-{name}",
        made_by,
        "test" if is_test else "train",
        "Apache-2.0",
        PLAIN,
        is_benchmark=is_test,
        domain=DOMAIN,
        made=make(family, given, size=size, seed=seed, is_test=is_test),
    )


def is_of_test(question: str) -> bool:
    """Whether the question belongs to the half for tests."""
    return hashlib.sha256(question.encode("utf-8", "replace")).digest()[0] % 2 == 1


def gold_text(family: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What a row of this entry is judged by: all that the family's scorer reads, as JSON."""
    gold = {"family": family, "config": settings, "answer": entry["answer"], "metadata": entry["metadata"]}
    return json.dumps(gold, ensure_ascii=False)


def make(
    family: str, settings: Mapping[str, Any], *, size: int, seed: int, is_test: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the draw from 1, row in the plain columns): `size` questions of one half, each of them once.

    Raises:
        DataError: the family has too few of them, or makes none.
    """
    asked: set[str] = set()
    with contextlib.closing(drawn(family, settings, seed)) as draws:
        for number, entry in draws:
            question = entry["question"]
            if is_of_test(question) == is_test and question not in asked:
                asked.add(question)
                gold = gold_text(family, settings, entry)
                yield number, {"id": f"{family}/{seed}/{number}", "question": question, "answer": gold}
            if len(asked) == size:
                return
            if number >= DRAWS_A_ROW * size:
                break
    raise DataError(
        f"--size={size}: {family} gave {len(asked)} different questions in {number} draws for this half; "
        f"expected at most {len(asked)}, or settings that allow for more"
    )


def drawn(family: str, settings: Mapping[str, Any], seed: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """(number from 1, entry) without end, from a process in which Python's hashes are the same in every run: some
    families go through sets of words."""
    command = [sys.executable, "-P", "-m", "soup_verl.tasks.data.puzzle_maker", family, str(seed), json.dumps(settings)]
    env = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as maker:
        assert maker.stdout is not None and maker.stderr is not None
        try:
            for number, line in enumerate(maker.stdout, start=1):
                yield number, json.loads(line)
            told = maker.stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise DataError(f"reasoning-gym could make no more of {family} ({told[-1] if told else 'it ended'})")
        finally:
            maker.kill()
