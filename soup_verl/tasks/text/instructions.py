"""The domain of instructions that can be checked: the share of a row's instructions that a response follows.

    row (columns of IFEval or IF-RLVR) ──► gold, JSON text: {"instruction_id_list": [...], "kwargs": [...]}
    response ──► what follows its thoughts ──► one check of `checks.py` for each instruction

What is checked is form. Whether the text is any good, or true, is not.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soup_verl.tasks.data.cleaning import RowRules
from soup_verl.tasks.data.datasets import DatasetSpec, Problem
from soup_verl.tasks.data.layouts import DataError, as_text, last_user_turn
from soup_verl.tasks.data.prompt_templates import Instruction
from soup_verl.tasks.grading.boxes import answer_part
from soup_verl.tasks.text.checks import CHECKS, read_arguments

DOMAIN = "instructions"
INSTRUCTION = Instruction("", "")  # the question says it all
KEYWORDS = ("partial_credit",)


def score(
    data_source: str, response: str, gold: str, extra: Mapping[str, Any] | None = None, *, partial_credit: bool = True
) -> dict[str, float | str]:
    """Score a response.

    Args:
        partial_credit: the reward is the share of the instructions that are followed; False: 1 for all of them, else 0.

    Returns:
        `score`, the reward; `acc`: 1.0 if all instructions are followed, IFEval's strict accuracy of a prompt;
        `format`: 1.0 if there is a text beside thoughts; `pred`: the instructions that are not followed;
        `timeout`: 0.0; `error`: "" or `empty`.

    Raises:
        ValueError: the row is broken.
    """
    asked, text = _read(data_source, gold), answer_part(response)
    unmet = [name for name, arguments in asked if not (text.strip() and CHECKS[name].met(text, **arguments))]
    solved = float(not unmet)
    return {
        "score": 1.0 - len(unmet) / len(asked) if partial_credit else solved,
        "acc": solved,
        "format": float(bool(text.strip())),
        "timeout": 0.0,
        "error": "" if text.strip() else "empty",
        "pred": ", ".join(unmet),
    }


def _read(data_source: str, gold: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the instructions. Raises ValueError where the row is broken."""
    where = f"of a row of data_source={data_source!r}"
    try:
        row = json.loads(gold)
        names, kwargs = row["instruction_id_list"], row["kwargs"]
        fine = len(names) == len(kwargs) > 0
    except (TypeError, ValueError, KeyError):
        fine = False
    if not fine:
        raise ValueError(
            f"ground_truth={str(gold)[:60]!r} {where}: expected JSON with instruction_id_list and as many kwargs, at "
            "least one, as `soup_verl.prepare_data --dataset ifeval` writes it"
        )
    try:
        return [(name, read_arguments(name, given)) for name, given in zip(names, kwargs, strict=True)]
    except ValueError as error:
        raise ValueError(f"ground_truth: {error} {where}") from None


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """See `Domain`."""
    _read(data_source, gold)


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """See `Domain`: a text that follows any instructions cannot be made up."""
    return iter(())


def check_keywords(given: Mapping[str, Any]) -> None:
    """See `Domain`. The keyword is checked for all domains by puzzles."""


def fault(problem: Problem) -> tuple[str, str] | None:
    """An instruction that there is no check for, which the reason names, or arguments that it cannot have."""
    names = json.loads(problem.gold)["instruction_id_list"]
    for name in names:
        if name not in CHECKS:
            return f"no check: {name}", ""
    try:
        check_row("", problem.gold, None)
    except ValueError as error:
        return "broken_instruction", str(error).split(" of a row of ")[0]
    return None


ROWS = RowRules(fault=fault, drops={"broken_instruction": "arguments that its instructions cannot have"})


def problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """See `Domain`: rows in IFEval's columns, or in those of IF-RLVR."""
    for number, row in rows:
        try:
            names, kwargs = _instructions(row)
            question = as_text(row["prompt"]) if "prompt" in row else last_user_turn(row["messages"])
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        given = [{key: value for key, value in (each or {}).items() if value is not None} for each in kwargs]
        gold = json.dumps({"instruction_id_list": names, "kwargs": given}, ensure_ascii=False)
        name = as_text(row.get("key")) or f"{spec.name}/{number}"
        yield Problem(number, name, question, gold, domain=DOMAIN)


def _instructions(row: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Any] | None]]:
    """Names and `kwargs` of a row's instructions."""
    if {"prompt", "instruction_id_list", "kwargs"} <= row.keys():
        return list(row["instruction_id_list"]), list(row["kwargs"])
    if not {"messages", "ground_truth"} <= row.keys():
        raise DataError(
            f"the columns are {', '.join(row)}: expected prompt, instruction_id_list, kwargs (as on the hub in "
            "google/IFEval) or messages, ground_truth (as in allenai/IF_multi_constraints_upto5)"
        )
    try:
        found = ast.literal_eval(row["ground_truth"])[0]  # a list of one mapping, as Python writes it
        return list(found["instruction_id"]), list(found["kwargs"])
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError):
        told = f"column 'ground_truth' is {str(row['ground_truth'])[:60]!r}"
        raise DataError(f"{told}, expected a list of one mapping with instruction_id and kwargs") from None
