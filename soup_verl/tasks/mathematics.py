r"""The domain of mathematics: 1 for a response whose last `\boxed{}` holds the expected answer, else 0.

No response is run as code: `answers.py` takes structure, words and numbers apart in plain Python, and what is left, one
expression made of whitelisted LaTeX, is compared by math-verify in a process that is killed when its time is over
(`killable.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from soup_verl.tasks.data.cleaning import MATHEMATICS as ROWS
from soup_verl.tasks.data.datasets import to_problems as problems
from soup_verl.tasks.data.prompt_templates import BOXED as INSTRUCTION
from soup_verl.tasks.grading.comparison import RULES, Rules
from soup_verl.tasks.grading.judge import expected_answer, judge, read_row
from soup_verl.tasks.grading.killable import Budget
from soup_verl.tasks.grading.latex_text import clean
from soup_verl.tasks.grading.quantities import parse_quantity

__all__ = ["INSTRUCTION", "KEYWORDS", "ROWS", "check_keywords", "check_row", "problems", "right_answers", "score"]

TIME_LIMIT_S = 3.0
_TIME_LIMIT = "time_limit_s"
KEYWORDS = (*RULES, _TIME_LIMIT)


def score(
    data_source: str,
    response: str,
    gold: str,
    extra: Mapping[str, Any] | None = None,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    relation_as_interval: bool = True,
    unit_required: bool = False,
    boxes: str = "last",
    approximation: str = "exact",
    decimal_comma: bool = False,
    thoughts: str = "ignore",
) -> dict[str, float | str]:
    r"""Score a response.

    Args:
        data_source: name of the data set, for messages.
        response: as text, without the prompt.
        gold: the expected answer; where it has a box, what is in there.
        extra: of the row's extra fields, these are read (None, NaN or no key: the default):
            `alt_answers`, a list of str: other answers that are right too;
            `tolerance`, a float: absolute error that a number may have (0); a text such as "0.1,0.2" has one for each
            part of the expected answer;
            `is_multiple_answer`, a bool: the answer is a list, in any order (told from its commas);
            `unit`, a str: the unit asked for, which the response may add or leave out.
        time_limit_s: seconds for the expressions of this response, by the wall clock. This and the following are set
            with `+reward.custom_reward_function.reward_kwargs.NAME`; docs/grading.md says more.
        relation_as_interval: x > 2 and (2, oo) are the same answer.
        unit_required: 5 is not 5 cm, where the expected answer has the unit.
        boxes: "last": the last box is the answer; "row": boxes with nothing else between them are one list.
        approximation: of `1/3 \approx 0.333`, "exact": the first is the answer; "either": one of them is enough.
        decimal_comma: 1.000,99 and 1000,99 are 1000.99.
        thoughts: a box within `<think>...</think>`: "ignore", or "count" it as any other.

    Returns:
        `score`, the reward, and `acc`, which verl's validation averages: both 1.0 or 0.0;
        `format`: 1.0 if the response has a last box that is closed, not empty and not too long;
        `timeout`: 1.0 if time ran out;
        `error`: "" or why there was no comparison: `no_box`, `unclosed_box`, `empty_box`, `too_long`, `not_allowed`
        (characters or commands that are not handed on), `unparsed`, `timeout`, `memory`;
        `pred`: the answer in one spelling, numbers as fractions, "" for none.

    Raises:
        ValueError: the row itself is broken: an empty `ground_truth`, an extra field of another type; or a keyword has
            a value that it cannot have.
    """
    rules = Rules(relation_as_interval, unit_required, boxes, approximation, decimal_comma, thoughts)
    row = read_row(data_source, gold, extra)
    verdict = judge(response, row, rules, Budget(time_limit_s))
    return {
        "score": float(verdict.correct),
        "acc": float(verdict.correct),
        "format": float(verdict.answer is not None),
        "timeout": float(verdict.error == "timeout"),
        "error": verdict.error,
        "pred": "" if verdict.answer is None else _one_spelling(verdict.answer),
    }


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """See `Domain`."""
    read_row(data_source, gold, extra)


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """See `Domain`."""
    yield rf"The answer is $\boxed{{{expected_answer(gold)}}}$."


def check_keywords(given: Mapping[str, Any]) -> None:
    """See `Domain`."""
    limit = given.get(_TIME_LIMIT, TIME_LIMIT_S)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
        raise ValueError(f"reward_kwargs.{_TIME_LIMIT}={limit!r}: expected a number of seconds above 0")
    Rules(**{name: value for name, value in given.items() if name in RULES})


def _one_spelling(answer: str) -> str:
    text = clean(answer)
    number = parse_quantity(text)
    if number is not None and number.value.numerator.bit_length() + number.value.denominator.bit_length() < 200:
        text = f"{number.value}{'%' if number.percent else ''}"
    return text.encode("utf-8", "replace").decode()
