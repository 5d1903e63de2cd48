r"""The reward for mathematics: 1 for a response whose last `\boxed{}` holds the expected answer, else 0.

    reward.custom_reward_function.path=pkg://soup_verl.reward reward.custom_reward_function.name=compute_score

verl calls `compute_score` in threads of its reward workers. It never raises on a response and runs none as code:
`answers.py` takes structure, words and numbers apart in plain Python, and what is left, one expression made of
whitelisted LaTeX, is compared by math-verify in a process that is killed when its time is over (`killable.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from soup_verl.grading.answers import Comparison, Question, Undecided
from soup_verl.grading.killable import Budget, CheckFailed, shared_pool
from soup_verl.grading.latex_text import clean, last_box
from soup_verl.grading.quantities import parse_quantity

TIME_LIMIT_S = 3.0
MAX_ANSWER = 1000  # characters; twice the expected answer's length where that is more


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    **kwargs: Any,
) -> dict[str, float | str]:
    r"""Score a response.

    Args:
        data_source: name of the data set, for messages.
        solution_str: the response as text, without the prompt.
        ground_truth: the expected answer, without a box.
        extra_info: of the row's extra fields, these are read (None, NaN or no key: the default):
            `alt_answers`, a list of str: other answers that are right too;
            `tolerance`, a float: absolute error that a number may have (0);
            `is_multiple_answer`, a bool: the answer is a list, in any order (told from its commas);
            `unit`, a str: the unit asked for, which the response may add or leave out.
        time_limit_s: seconds for the expressions of this response, by the wall clock
            (`+reward.custom_reward_function.reward_kwargs.time_limit_s`).
        **kwargs: whatever else verl passes; not used.

    Returns:
        `score`, the reward, and `acc`, which verl's validation averages: both 1.0 or 0.0;
        `format`: 1.0 if the response has a last box that is closed, not empty and not too long;
        `timeout`: 1.0 if time ran out;
        `error`: "" or why there was no comparison: `no_box`, `unclosed_box`, `empty_box`, `too_long`, `not_allowed`
        (characters or commands that are not handed on), `unparsed`, `timeout`, `memory`;
        `pred`: the answer in one spelling, numbers as fractions, "" for none.

    Raises:
        ValueError: the row itself is broken: an empty `ground_truth`, an extra field of another type.
    """
    golds, comparison = _read_row(data_source, ground_truth, extra_info, Budget(time_limit_s))
    box, error = last_box(str(solution_str), max_chars=max(MAX_ANSWER, 2 * max(map(len, golds))))
    if box is None or not clean(box):
        return _result(error=error or "empty_box")
    correct, error = _compare(comparison, golds, box)
    return _result(correct=correct, has_format=True, error=error, pred=_one_spelling(box))


def _result(
    *, correct: bool = False, has_format: bool = False, error: str = "", pred: str = ""
) -> dict[str, float | str]:
    return {
        "score": float(correct),
        "acc": float(correct),
        "format": float(has_format),
        "timeout": float(error == "timeout"),
        "error": error,
        "pred": pred,
    }


def _compare(comparison: Comparison, golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """Whether `answer` is any of `golds`; if not, why the first one that had no verdict had none."""
    if clean(answer) in map(clean, golds):  # before anything is asked about the others
        return True, ""
    reasons = []
    for gold in golds:
        try:
            if comparison.same(gold, answer):
                return True, ""
        except Undecided as error:
            reasons.append(error.reason)
    return False, reasons[0] if reasons else ""


def _one_spelling(answer: str) -> str:
    text = clean(answer)
    number = parse_quantity(text)
    if number is not None and number.value.numerator.bit_length() + number.value.denominator.bit_length() < 200:
        text = f"{number.value}{'%' if number.percent else ''}"
    return text.encode("utf-8", "replace").decode()


def _read_row(
    data_source: str, ground_truth: Any, extra_info: Mapping[str, Any] | None, budget: Budget
) -> tuple[list[str], Comparison]:
    """The expected answers, without doubles, and the comparison that the row asks for."""
    extra = extra_info or {}
    where = f"of a row of data_source={data_source!r}"
    golds = [str(gold) for gold in [ground_truth, *_alternatives(extra.get("alt_answers"), where)]]
    if ground_truth is None or not clean(golds[0]):
        raise ValueError(
            f"ground_truth={ground_truth!r} {where}: expected a non-empty answer. Drop such rows from the data "
            "(soup_verl.prepare_data does)"
        )

    def decide(question: Question) -> bool:
        try:
            return shared_pool().check(asdict(question), budget)
        except CheckFailed as error:
            raise Undecided(error.reason) from None

    return list(dict.fromkeys(golds)), Comparison(
        decide=decide,
        tolerance=_tolerance(extra.get("tolerance"), where),
        multiple=not _is_missing(extra.get("is_multiple_answer")) and bool(extra.get("is_multiple_answer")),
        unit="" if _is_missing(extra.get("unit")) else str(extra["unit"]),
    )


def _is_missing(value: Any) -> bool:
    """None, or the NaN that a table has for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _alternatives(value: Any, where: str) -> list[str]:
    if _is_missing(value):
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"extra_info.alt_answers={value!r} {where}: expected a list of answers, or None")
    return [str(answer) for answer in value]


def _tolerance(value: Any, where: str) -> float | None:
    if _is_missing(value):
        return None
    try:
        tolerance = float(value)
    except (TypeError, ValueError):
        tolerance = -1.0
    if not (0.0 <= tolerance < math.inf):
        raise ValueError(f"extra_info.tolerance={value!r} {where}: expected a number, 0 or more, or None")
    return tolerance
