r"""From a response and a row of data to a verdict: which text is the answer, what the row expects, one comparison."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from soup_verl.tasks.grading.answers import Comparison
from soup_verl.tasks.grading.boxes import answer_part, last_box, row_of_boxes
from soup_verl.tasks.grading.comparison import Question, Rules, Step, Undecided
from soup_verl.tasks.grading.killable import Budget, CheckFailed, shared_pool
from soup_verl.tasks.grading.latex_text import clean

MAX_ANSWER = 1000  # characters; twice the expected answer's length where that is more


@dataclass(frozen=True)
class Row:
    """The expected answers, without doubles, and what the row says about them."""

    golds: list[str]
    tolerance: float | tuple[float, ...] | None
    multiple: bool
    unit: str


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    answer: what the response gives as its answer, None for nothing.
    error: "" or why there was no comparison.
    gold: the expected answer that `steps` are about.
    steps: how the comparison went.
    """

    correct: bool
    answer: str | None
    error: str = ""
    gold: str = ""
    steps: Sequence[Step] = ()


def judge(response: str, row: Row, rules: Rules, budget: Budget) -> Verdict:
    """Whether the answer of a response is any of the expected ones; if not, about the first of them."""
    text = answer_part(response) if rules.thoughts == "ignore" else response
    find_box = last_box if rules.boxes == "last" else row_of_boxes
    answer, error = find_box(text, max_chars=max(MAX_ANSWER, 2 * max(map(len, row.golds))))
    if answer is None or not clean(answer):
        return Verdict(False, None, error or "empty_box")
    verdicts = []
    for gold in sorted(row.golds, key=lambda gold: clean(gold) != clean(answer)):  # the same spelling asks nobody
        verdict = _compare(gold, answer, row, rules, budget)
        if verdict.correct:
            return verdict
        verdicts.append(verdict)
    return next((verdict for verdict in verdicts if verdict.error), verdicts[0])


def _compare(gold: str, answer: str, row: Row, rules: Rules, budget: Budget) -> Verdict:
    def decide(question: Question) -> bool:
        try:
            return shared_pool().check(asdict(question), budget)
        except CheckFailed as error:
            raise Undecided(error.reason) from None

    comparison = Comparison(decide, row.tolerance, row.multiple, row.unit, rules)
    try:
        correct, error = comparison.same(gold, answer), ""
    except Undecided as undecided:
        correct, error = False, undecided.reason
    return Verdict(correct, answer, error, gold, comparison.steps)


def read_row(data_source: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> Row:
    """What a row expects. Raises ValueError where it is broken."""
    extra = extra_info or {}
    where = f"of a row of data_source={data_source!r}"
    golds = [expected_answer(gold) for gold in [ground_truth, *_alternatives(extra.get("alt_answers"), where)]]
    if _is_missing(ground_truth) or not clean(golds[0]):
        raise ValueError(
            f"ground_truth={ground_truth!r} {where}: expected a non-empty answer. Drop such rows from the data "
            "(soup_verl.prepare_data does)"
        )
    return Row(
        golds=list(dict.fromkeys(golds)),
        tolerance=_tolerance(extra.get("tolerance"), where),
        multiple=not _is_missing(extra.get("is_multiple_answer")) and bool(extra.get("is_multiple_answer")),
        unit="" if _is_missing(extra.get("unit")) else str(extra["unit"]),
    )


def expected_answer(ground_truth: Any) -> str:
    """The answer within what data sets have for one: a box, a list of one, a solution that ends in `#### 72`."""
    text = str(ground_truth)
    if match := _LIST_OF_ONE.fullmatch(text):
        text = match[2].replace("\\\\", "\\")
    box, _ = last_box(text, max_chars=len(text))
    return text.rpartition("\n####")[2].strip() if box is None else box


_LIST_OF_ONE = re.compile(r"""\[\s*(['"])([^'",]*)\1\s*\]""")


def _is_missing(value: Any) -> bool:
    """None, or the NaN that a table has for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _alternatives(value: Any, where: str) -> list[str]:
    if _is_missing(value):
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"extra_info.alt_answers={value!r} {where}: expected a list of answers, or None")
    return [str(answer) for answer in value]


def _tolerance(value: Any, where: str) -> float | tuple[float, ...] | None:
    if _is_missing(value):
        return None
    try:
        tolerances = tuple(map(float, str(value).split(",")))
    except ValueError:
        tolerances = (-1.0,)
    if not all(0.0 <= tolerance < math.inf for tolerance in tolerances):
        raise ValueError(f"extra_info.tolerance={value!r} {where}: expected a number, 0 or more, or None")
    return tolerances if len(tolerances) > 1 else tolerances[0]
