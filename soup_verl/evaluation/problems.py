"""The problems of verl's data files, and the token ids a model is asked with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.tasks.chat_template import is_text_message
from soup_verl.tasks.data.files import READ_BY_VERL, read_rows
from soup_verl.tasks.data.layouts import DataError


@dataclass(frozen=True)
class Problem:
    """One row.

    Args:
        file: the data file's name.
        index: row in it, from 0.
        messages: chat messages.
        data_source, ground_truth, extra_info: what the reward function is given.
    """

    file: str
    index: int
    messages: list[dict[str, str]]
    data_source: str
    ground_truth: Any
    extra_info: Mapping[str, Any]


def read_problems(files: Sequence[Path]) -> list[Problem]:
    """Every row of every file, in order.

    Raises:
        EvaluationError: a file is missing, empty or of another kind, a row lacks a column, or two files share a name.
    """
    problems: list[Problem] = []
    for file in files:
        if [other.name for other in files].count(file.name) > 1:
            raise EvaluationError(
                f"--data: two files are called {file.name}, and samples are kept by name. Rename one."
            )
        if file.suffix not in READ_BY_VERL:
            expected = f"a file that ends in {', '.join(READ_BY_VERL)} (soup_verl.prepare_data makes them)"
            raise EvaluationError(f"--data={file}: expected {expected}")
        try:
            found = [_problem(file, number - 1, row) for number, row in read_rows(file)]
        except DataError as error:
            raise EvaluationError(f"--data={error}") from None
        if not found:
            raise EvaluationError(f"--data={file}: holds no rows")
        problems += found
    return problems


def _problem(file: Path, index: int, row: Mapping[str, Any]) -> Problem:
    where = f"--data={file}: row {index}"
    missing = [column for column in ("data_source", "prompt", "reward_model") if not row.get(column)]
    if missing:
        raise EvaluationError(f"{where} has no {missing[0]}: expected verl's columns (soup_verl.prepare_data)")
    messages, reward_model = row["prompt"], row["reward_model"]
    if not isinstance(messages, list) or any(not is_text_message(m) for m in messages):
        raise EvaluationError(f"{where}: prompt={messages!r:.80}: expected chat messages with text alone")
    if not isinstance(reward_model, dict) or reward_model.get("ground_truth") is None:
        raise EvaluationError(f"{where}: reward_model={reward_model!r:.80}: expected a struct with ground_truth")
    truth, extra = reward_model["ground_truth"], row.get("extra_info") or {}
    if not isinstance(extra, dict):
        raise EvaluationError(f"{where}: extra_info={extra!r:.80}: expected a struct, or nothing")
    return Problem(file.name, index, messages, str(row["data_source"]), truth, extra)


def repeated(problems: Sequence[Problem]) -> list[Problem]:
    """Problems with the messages and the ground truth of an earlier one."""
    seen: set[str] = set()
    found = []
    for problem in problems:
        what = json.dumps([problem.messages, problem.ground_truth], sort_keys=True, default=str)
        if what in seen:
            found.append(problem)
        seen.add(what)
    return found


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes, 16 digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def prompt_ids(tokenizer: Any, problem: Problem, template_args: Mapping[str, Any]) -> list[int]:
    """Token ids a response is sampled from: the chat template with the opening of the answer, as in training."""
    return tokenizer.apply_chat_template(
        problem.messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template_args
    )
