"""What every kind of answer works with: the rules of the row and of the user, the question to math-verify, the record.

`answers.py` has the list of kinds; a kind is a function of a `Comparison` and two texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from soup_verl.tasks.grading.brackets import join_indian, join_thousands
from soup_verl.tasks.grading.latex_text import clean
from soup_verl.tasks.grading.quantities import Quantity, parse_quantity

MAX_PARTS = 64  # of a list, tuple or matrix
MAX_NESTING = 12  # brackets within brackets: the LaTeX parser's time doubles with each


class Undecided(Exception):
    """The comparison has no verdict. `reason`: `not_allowed` (nothing that may be handed on), or one of `decide`'s."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Question:
    """What is left to decide: whether `gold` and `pred` are equal expressions.

    `within`: an absolute distance that is allowed. `last_digit`: `pred` is a decimal whose last digit counts so much,
    and may be `gold` cut or rounded there. `relation`: both are the difference of a relation's sides, equal up to a
    factor (`=`), or one that is positive (`<`); "" for expressions.
    """

    gold: str
    pred: str
    within: float | None = None
    last_digit: float | None = None
    relation: Literal["", "=", "<"] = ""


@dataclass(frozen=True)
class Rules:
    """What users decide differently: keywords of the reward. docs/grading.md gives the reasons of the defaults."""

    relation_as_interval: bool = True  # x > 2 is (2, oo)
    unit_required: bool = False  # 5 is not 5 cm
    boxes: str = "last"  # or "row": boxes side by side are one list
    approximation: str = "exact"  # or "either": in 1/3 \approx 0.333 the second counts too
    decimal_comma: bool = False  # 1.000,99 is 1000.99
    thoughts: str = "ignore"  # or "count": a box within <think> is an answer

    def __post_init__(self) -> None:
        for name, allowed in RULES.items():
            value = getattr(self, name)
            if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
                expected = " or ".join(map(repr, allowed))
                raise ValueError(f"reward_kwargs.{name}={value!r}: expected {expected}")


RULES: dict[str, tuple] = {
    "relation_as_interval": (True, False),
    "unit_required": (True, False),
    "boxes": ("last", "row"),
    "approximation": ("exact", "either"),
    "decimal_comma": (True, False),
    "thoughts": ("ignore", "count"),
}


@dataclass
class Step:
    """A line of the record: two texts, the kind that decided about them, and how deep within the answer they stood."""

    depth: int
    gold: str
    pred: str
    kind: str = ""
    same: bool | None = None  # None: no verdict


class BaseComparison:
    """Compares answers to one problem; `answers.py` adds the kinds.

    Args:
        decide: the verdict on two expressions; may raise `Undecided`.
        tolerance: absolute error that is allowed in a number; several: one for each part of the expected answer.
        multiple: the expected answer is a list, so its commas separate answers.
        unit: the unit that the answer is asked in.
        rules: what the user decides.

    Attributes:
        steps: the record, in the order in which things were begun.
    """

    kinds: ClassVar[Mapping[str, Kind]]

    def __init__(
        self,
        decide: Callable[[Question], bool],
        tolerance: float | Sequence[float] | None = None,
        multiple: bool = False,
        unit: str = "",
        rules: Rules | None = None,
    ):
        self.decide = decide
        self.tolerances = tolerance if isinstance(tolerance, Sequence) else ()
        self.tolerance: float | None = self.tolerances[0] if isinstance(tolerance, Sequence) else tolerance
        self.multiple = multiple
        self.rules = rules or Rules()
        self.unit = clean(unit)
        self.steps: list[Step] = []
        self._depth = 0

    def same(self, gold: str, pred: str) -> bool:
        """Whether `pred` is the answer `gold`. Raises Undecided."""
        gold, pred = self.normal_form(gold), self.normal_form(pred)
        return bool(pred) and self.same_text(gold, pred)

    def normal_form(self, text: str) -> str:
        if self.rules.decimal_comma:
            text = _with_decimal_points(text)
        text = clean(text)
        return text if self.multiple else join_indian(join_thousands(text))

    def same_text(self, gold: str, pred: str) -> bool:
        """The verdict on two texts in normal form: that of the first kind that has one. Raises Undecided."""
        if self._depth > MAX_NESTING:
            raise Undecided("not_allowed")
        step = Step(self._depth, gold, pred)
        self.steps.append(step)
        self._depth += 1
        try:
            for step.kind, kind in self.kinds.items():
                step.same = kind(self, gold, pred)
                if step.same is not None:
                    return step.same
            raise AssertionError("the last kind decides")
        finally:
            self._depth -= 1

    def quantity(self, text: str) -> Quantity | None:
        """The plain number that `text` is; None for anything else."""
        return None if "," in text else parse_quantity(text, self.unit)

    def in_order(self, gold: Sequence[str], pred: Sequence[str]) -> bool:
        if len(gold) != len(pred) or len(gold) > MAX_PARTS:
            return False
        return all(self.same_text(g, p) for g, p in zip(gold, pred, strict=True))

    def any_order(self, gold: Sequence[str], pred: Sequence[str]) -> bool:
        """Whether every expected part has its own given part. Raises Undecided if only such parts are missing."""
        if len(gold) != len(pred) or len(gold) > MAX_PARTS:
            return False
        left, tolerance = list(pred), self.tolerance
        for i, part in enumerate(gold):
            self.tolerance = self.tolerances[i] if len(self.tolerances) == len(gold) else tolerance
            try:
                index = self._first(left, part)
            finally:
                self.tolerance = tolerance
            if index is None:
                return False
            del left[index]
        return True

    def _first(self, parts: Sequence[str], wanted: str) -> int | None:
        """The index of the first part that is the wanted one. Raises Undecided if none is, but one had no verdict."""
        if wanted in parts:
            return list(parts).index(wanted)
        undecided = None
        for i, part in enumerate(parts):
            try:
                if self.same_text(wanted, part):
                    return i
            except Undecided as error:
                undecided = error
        if undecided is not None:
            raise undecided
        return None


Kind = Callable[[BaseComparison, str, str], "bool | None"]
"""Whether the texts, expected and given, are the same answer; None: they are not of this kind."""

_DECIMAL_COMMA = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:\.[0-9]{3})+|[0-9]+),([0-9]+)(?![0-9.,])")
_POINTS_OF_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9.,])")


def _with_decimal_points(text: str) -> str:
    text = _POINTS_OF_THOUSANDS.sub(lambda m: m[0].replace(".", ""), text)
    return _DECIMAL_COMMA.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}", text)
