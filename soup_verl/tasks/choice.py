r"""The domain of multiple choice: 1 for a response whose last `\boxed{}` names the right option and no other.

A row has the letter of the right option as its `ground_truth`, and in `extra_info` the `options`, the texts in the
order of their letters. A response names an option by its letter, its text or both (`grading/options.py`); options with
one text are one answer.

The options keep the order in which they are published. Where the right one has a column of its own (GPQA) they are
shuffled, by a seed from the data set's name and the row's id: whoever prepares the row gets the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from soup_verl.method.mixing import stable_seed
from soup_verl.tasks.data.cleaning import Fault, RowRules, Tally, repair
from soup_verl.tasks.data.datasets import PLAIN_CHOICE, DatasetSpec, Problem, read_fields
from soup_verl.tasks.data.prompt_templates import Instruction
from soup_verl.tasks.grading.boxes import answer_part, last_box
from soup_verl.tasks.grading.comparison import Rules
from soup_verl.tasks.grading.judge import MAX_ANSWER, Row, judge
from soup_verl.tasks.grading.killable import Budget
from soup_verl.tasks.grading.options import MAX_OPTIONS, named, plain
from soup_verl.tasks.mathematics import TIME_LIMIT_S, check_keywords

__all__ = ["INSTRUCTION", "KEYWORDS", "ROWS", "check_keywords", "check_row", "problems", "right_answers", "score"]

KEYWORDS = ("thoughts", "time_limit_s")  # a part of those of mathematics, with its meanings and checks
INSTRUCTION = Instruction(
    r"Please reason step by step, and put the letter of the right option within \boxed{}.",
    r"Put the letter of the right option in \boxed{}.",
)


def score(
    data_source: str,
    response: str,
    gold: Any,
    extra: Mapping[str, Any] | None,
    *,
    thoughts: str = "ignore",
    time_limit_s: float = TIME_LIMIT_S,
) -> dict[str, float | str]:
    r"""Score a response; the keywords are those of `mathematics.score`.

    Returns:
        `score` and `acc`: 1.0 or 0.0; `format`: 1.0 if there is a box with something in it;
        `timeout`: 1.0 if time ran out over options that are formulas;
        `error`: "" or `no_box`, `unclosed_box`, `empty_box`, `too_long`, `no_option` (the box names none),
        `several_options` (it names more than one, or the letter of one and the text of another), `timeout`;
        `pred`: the letters named, of options with one text the first; what the box holds where it names no option.

    Raises:
        ValueError: the row is broken, see `check_row`, or a keyword has a value that it cannot have.
    """
    rules = Rules(thoughts=thoughts, unit_required=True)  # an option's unit is part of its text
    options, right = read_options(data_source, gold, extra)
    text = answer_part(response) if rules.thoughts == "ignore" else response
    answer, error = last_box(text, max_chars=max(MAX_ANSWER, 2 * max(map(len, options))))
    if answer is None or not plain(answer):
        return _result(False, "", error or "empty_box", has_answer=False)
    try:
        found = named(answer, options, _Mathematics(rules, time_limit_s))
    except TimeoutError:
        return _result(False, plain(answer), "timeout")
    if not found:
        return _result(False, plain(answer), "no_option")
    texts = [plain(option) for option in options]
    firsts = sorted({texts.index(texts[place]) for place in found})  # of one text
    letters = ",".join(ascii_uppercase[place] for place in firsts)
    return _result(found <= right, letters, "several_options" if len(firsts) > 1 else "")


def _result(right: bool, pred: str, error: str, *, has_answer: bool = True) -> dict[str, float | str]:
    return {
        "score": float(right),
        "acc": float(right),
        "format": float(has_answer),
        "timeout": float(error == "timeout"),
        "error": error,
        "pred": pred.encode("utf-8", "replace").decode(),
    }


class _Mathematics:
    """Whether an option and an answer are the same to the reward for mathematics, within one limit of time."""

    def __init__(self, rules: Rules, time_limit_s: float):
        self._rules, self._budget = rules, Budget(time_limit_s)

    def __call__(self, option: str, answer: str) -> bool:
        row = Row([option], tolerance=None, multiple=False, unit="")
        verdict = judge(rf"\boxed{{{answer}}}", row, self._rules, self._budget)
        if verdict.error == "timeout":
            raise TimeoutError
        return verdict.correct


def read_options(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> tuple[Sequence[str], frozenset[int]]:
    """The texts of a row's options, and the places of those that are right: with the text that the gold's letter has.

    Raises:
        ValueError: see `check_row`.
    """
    where = f"of a row of data_source={data_source!r}"
    given = (extra or {}).get("options")
    if given is None or isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"extra_info.options={given!r:.80} {where}: expected a list of texts")
    options = [str(option) for option in given]
    if not 2 <= len(options) <= MAX_OPTIONS or not all(map(plain, options)):
        raise ValueError(f"extra_info.options={options!r:.80} {where}: expected 2 to {MAX_OPTIONS} texts, none empty")
    letters = ascii_uppercase[: len(options)]
    if not isinstance(gold, str) or len(gold) != 1 or gold not in letters:
        raise ValueError(
            f"ground_truth={gold!r:.80} {where}: expected the letter of an option, {letters[0]} to {letters[-1]}"
        )
    right = plain(options[letters.index(gold)])
    return options, frozenset(i for i, option in enumerate(options) if plain(option) == right)


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """
    Raises:
        ValueError: the options are no list of 2 to 26 texts, or the gold is not the letter of one; names the field.
    """
    read_options(data_source, gold, extra)


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """The letter in a box."""
    yield rf"The answer is \boxed{{{gold}}}."


def problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """See `Domain`. The options are in `extra`; `ROWS.mend` puts them below the question."""
    for fields in read_fields(spec, rows, PLAIN_CHOICE):
        options, gold = _shuffled(spec.name, fields) if "right" in fields else _as_published(fields)
        yield Problem(
            row=fields["row"],
            id=fields["id"],
            question=fields["question"],
            gold=gold,
            subject=fields.get("subject"),
            domain="choice",
            extra={"options": options},
        )


def _shuffled(dataset: str, fields: Mapping[str, Any]) -> tuple[list[str], str]:
    """Options in an order that the row's id decides, and the letter of the right one."""
    options = [fields["right"], *(text for name, text in sorted(fields.items()) if name.startswith("wrong_"))]
    order = list(range(len(options)))
    random.Random(stable_seed("options", dataset, fields["id"])).shuffle(order)
    return [options[place] for place in order], ascii_uppercase[order.index(0)]


def _as_published(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    """Options in their order, and the letter of the one whose label is the answer; the answer where there is none."""
    options = list(fields["options"])
    labels, gold = list(fields.get("labels") or ascii_uppercase[: len(options)]), fields["gold"].strip()
    if gold not in labels[:MAX_OPTIONS]:
        return options, f"no label {gold!r}" if gold else ""
    return options, ascii_uppercase[labels.index(gold)]


def listed(question: str, options: Sequence[str]) -> str:
    """The question as it is asked: the options below it, a line each."""
    lines = (f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    return "\n".join((f"{question}\n", *lines))


def _mend(problem: Problem, tally: Tally) -> Problem:
    """With its texts repaired, and the options below the question; `extra_info` keeps the question alone, by which
    benchmarks are found in training sets."""
    options = tuple((problem.extra or {})["options"])
    repaired = repair(replace(problem, alt_answers=options), tally)
    extra = {"options": [option.strip() for option in repaired.alt_answers], "question": repaired.question}
    asked = listed(repaired.question, extra["options"]) if repaired.question else ""
    return replace(repaired, question=asked, alt_answers=(), extra=extra)


def _fault(problem: Problem) -> Fault | None:
    if not problem.gold:
        return "empty_gold", ""
    try:
        check_row(problem.id, problem.gold, problem.extra)
    except ValueError as error:
        return "unclear_options", str(error).replace(f" of a row of data_source={problem.id!r}", "")
    return None


ROWS = RowRules(
    fault=_fault,
    drops={"unclear_options": "fewer than two options, an empty one, or an answer that is none of them"},
    mend=_mend,
)
