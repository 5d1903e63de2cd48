"""The domain of puzzles: any task of reasoning-gym, scored by the task's own `score_answer`.

    reasoning-gym's puzzle ──► gold, JSON text: {"family", "config", "answer", "metadata"}
    response ──► what stands between its last <answer> and </answer> ──► scorer, in a process that is killed when its
                 time or memory is over (`grading/killable.py`, `grading/puzzle_worker.py`)

Families whose scorers give the answer to Python's `eval` are refused (`data/puzzles.py`). Four give it to sympy, whose
parser evaluates too: their answers have to be formulas of numbers, signs, single letters and a few functions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from soup_verl.tasks.data import puzzles as data
from soup_verl.tasks.data.cleaning import RowRules
from soup_verl.tasks.data.datasets import DatasetSpec, Problem, to_problems
from soup_verl.tasks.data.prompt_templates import Instruction
from soup_verl.tasks.grading.boxes import answer_part
from soup_verl.tasks.grading.killable import PUZZLES, Budget, CheckFailed, shared_pool

_BETWEEN = "between <answer> and </answer>."
INSTRUCTION = Instruction(
    f"Please reason step by step, and put your final answer, and nothing else, {_BETWEEN}", f"Put the answer {_BETWEEN}"
)
KEYWORDS = ("partial_credit", "time_limit_s")
TIME_LIMIT_S = 3.0
MAX_ANSWER = 10_000
"""Characters; twice the gold's length where that is more."""

_FUNCTIONS = "sqrt|exp|log|ln|a?(?:sin|cos|tan)h?|erf|pi"
_FORMULA = re.compile(
    rf"(?a)(?>\d++(?:\.\d*+)?(?![a-zA-Z])|(?:{_FUNCTIONS}|[a-zA-Z])(?![a-zA-Z\d])|[-+*/(), ]){{1,500}}+"
)
GRAMMARS = {
    # Sympy's parser evaluates: no names but these, so no attributes, strings or calls of anything else.
    "countdown": _FORMULA,
    "intermediate_integration": _FORMULA,
    "polynomial_multiplication": _FORMULA,
    "simple_integration": _FORMULA,
    # Their scorers take NaN for right.
    "complex_arithmetic": re.compile(r"[-+0-9.eij*() ]*"),
    "number_sorting": re.compile(r"[-+0-9.eE,'\"\[\]\s]*"),
}
"""What an answer has to be before these scorers see it."""


def score(
    data_source: str,
    response: str,
    gold: str,
    extra: Mapping[str, Any] | None = None,
    *,
    partial_credit: bool = True,
    time_limit_s: float = TIME_LIMIT_S,
) -> dict[str, float | str]:
    """Score a response.

    Args:
        partial_credit: the reward is what the scorer says, from 0 to 1; False: 1 for a solved puzzle, else 0.
        time_limit_s: seconds for the scorer, by the wall clock.

    Returns:
        `score`, the reward; `acc`: 1.0 for a solved puzzle, which its scorer gives 1; `format`: 1.0 if the response has
        an answer; `timeout`; `pred`: the answer; `error`: "" or why there was no verdict: `no_answer`, `too_long`,
        `not_allowed` (see `GRAMMARS`), `unparsed` (the scorer failed on it), `timeout`, `memory`,
        `out_of_range` (the scorer said what is not from 0 to 1).

    Raises:
        ValueError: the row is broken.
    """
    row = _read(data_source, gold)
    answer = last_answer(answer_part(response))
    value, error = 0.0, _refusal(answer, row["family"], limit=max(MAX_ANSWER, 2 * len(row["answer"] or "")))
    if not error:
        value, error = _ask(row, answer, Budget(time_limit_s))
    solved = float(value == 1.0)
    return {
        "score": value if partial_credit else solved,
        "acc": solved,
        "format": float(answer is not None),
        "timeout": float(error == "timeout"),
        "error": error,
        "pred": (answer or "")[:MAX_ANSWER].encode("utf-8", "replace").decode(),
    }


def last_answer(text: str) -> str | None:
    """What stands between the last `</answer>` and the `<answer>` before it, spaces around it aside; None if nothing
    does. As reasoning-gym's own `extract_answer`, but linear in the length of the text."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return answer.strip() if closed and opened else None


def _refusal(answer: str | None, family: str, *, limit: int) -> str:
    """Why the scorer is not asked, or ""."""
    if not answer:
        return "no_answer"
    if len(answer) > limit:
        return "too_long"
    if family in GRAMMARS and not GRAMMARS[family].fullmatch(answer):
        return "not_allowed"
    return ""


def _ask(row: Mapping[str, Any], answer: str | None, budget: Budget) -> tuple[float, str]:
    """What the scorer says, and ""; or 0 and why it says nothing."""
    entry = {"answer": row["answer"], "metadata": row["metadata"]}
    request = {"family": row["family"], "config": row["config"], "entry": entry, "answer": answer}
    try:
        value = float(shared_pool(PUZZLES).check(request, budget))
    except CheckFailed as error:
        return 0.0, error.reason
    return (value, "") if math.isfinite(value) and 0.0 <= value <= 1.0 else (0.0, "out_of_range")


def _read(data_source: str, gold: Any) -> dict[str, Any]:
    """The gold's parts. Raises ValueError where it is broken, or of a family that is refused."""
    where = f"of a row of data_source={data_source!r}"
    try:
        row = json.loads(gold)
        fine = isinstance(row["family"], str) and isinstance(row["answer"], str | None)
        fine = fine and isinstance(row["config"], dict) and isinstance(row["metadata"], dict)
    except (TypeError, ValueError, KeyError):
        fine = False
    if not fine:
        raise ValueError(
            f"ground_truth={str(gold)[:60]!r} {where}: expected JSON with family, config, answer and metadata, as "
            "`soup_verl.prepare_data --dataset reasoning-gym:NAME` writes it"
        )
    if row["family"] in data.REFUSED:
        raise ValueError(f"ground_truth.family={row['family']!r} {where}: refused, {data.REFUSED[row['family']]}")
    return row


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """See `Domain`."""
    row = _read(data_source, gold)
    try:
        data.check_family(row["family"])
    except ValueError as error:
        raise ValueError(f"ground_truth.family={error}") from None


_SOLUTIONS = {
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
}
"""Where several answers are right and the gold is none of them. For boxnet, propositional_logic and rush_hour there is
no solution to be had."""


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """See `Domain`."""
    row = _read("", gold)
    if row["answer"] is None and row["family"] in _SOLUTIONS:
        yield f"<answer>{_SOLUTIONS[row['family']](row['metadata'])}</answer>"
    elif row["answer"] is not None:
        yield f"<answer>{row['answer']}</answer>"


def check_keywords(given: Mapping[str, Any]) -> None:
    """See `Domain`. The time limit is checked for all domains by mathematics."""
    if not isinstance(given.get("partial_credit", True), bool):
        raise ValueError(f"reward_kwargs.partial_credit={given['partial_credit']!r}: expected true or false")


NO_ANSWER = "<answer>no such answer</answer>"
GOLD_LIMIT_S = 30.0


def fault(problem: Problem) -> tuple[str, str] | None:
    """A puzzle whose scorer does not tell its own answer from another text."""
    solved = [
        score("", response, problem.gold, time_limit_s=GOLD_LIMIT_S)["acc"] == 1.0
        for response in [NO_ANSWER, *right_answers(problem.gold, None)]
    ]
    if solved[0]:
        return "anything_is_right", NO_ANSWER
    return None if all(solved[1:]) else ("gold_is_not_right", json.loads(problem.gold)["answer"][:60])


ROWS = RowRules(
    fault=fault,
    drops={
        "anything_is_right": "its scorer takes a text that is no answer for right",
        "gold_is_not_right": "its scorer does not take its own answer for right",
    },
    question_key=str,
    gold_key=lambda gold: "",  # of one question with two golds, each is right
)


def problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """See `Domain`."""
    for problem in to_problems(spec, rows):
        yield replace(problem, domain=data.DOMAIN)
