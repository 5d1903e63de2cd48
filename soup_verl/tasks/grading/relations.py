r"""Answers with a relation sign: named values, approximations, equations, inequalities, congruences."""

from __future__ import annotations

import re

from soup_verl.tasks.grading.comparison import BaseComparison, Question
from soup_verl.tasks.grading.names import is_name, is_sum, is_variable, letters, same_name, split_name, split_relation
from soup_verl.tasks.grading.scalars import ask

_CONGRUENCE = re.compile(r"(?:(?P<left>[^=<>]*)\\equiv ?)?(?P<value>[^=<>]+)\\pmod\{(?P<modulus>[^{}]+)\}")


def approximation(c: BaseComparison, gold: str, pred: str) -> bool | None:
    r"""`\frac{1}{3} \approx 0.333`: the exact value is the answer, and the decimal has to be near it."""
    gold_exact = _split_approximation(c, gold)[0]
    exact, near = _split_approximation(c, pred)
    if not gold_exact and not exact:
        return None
    readings = [exact or pred] + ([near] if near and c.rules.approximation == "either" else [])
    return any(c.same_text(gold_exact or gold, reading) for reading in readings)


def _split_approximation(c: BaseComparison, text: str) -> tuple[str, str]:
    r"""Both sides of the last \approx, where the second is a plain number that rounds the first."""
    if r"\approx" not in text:
        return "", ""
    exact, _, near = text.rpartition(r"\approx")
    exact, near = exact.strip(), near.strip()
    value = c.quantity(near)
    if value is None or not exact or is_name(exact):
        return "", ""
    stated = c.quantity(split_name(exact)[1])
    if stated is not None and abs(stated.value - value.value) > (value.last_digit or 1):
        return "", ""
    return exact, near


def named(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`x = 5` is `5`. Names have to agree where both have one; steps (`x = 5+6 = 11`) are all compared."""
    gold_name, gold_value = split_name(gold)
    pred_name, pred_value = split_name(pred)
    if not (gold_name or pred_name) or not same_name(gold_name, pred_name):
        return None
    if is_sum(gold_name) and not pred_name or is_sum(pred_name) and pred_value == "0":
        return None  # `x+y = 3` and `y'-y = 0` are equations
    gold_is_relation, pred_is_relation = split_relation(gold), split_relation(pred)
    if (not gold_name and gold_is_relation) or (not pred_name and pred_is_relation):
        return None
    gold_sides, pred_sides = _steps(gold_value), _steps(pred_value)
    if len(gold_sides) == len(pred_sides) > 1 or (len(gold_sides) > 1 and is_variable(gold_sides[0])):
        return None  # `a = b = c` says more than `a = c`
    return all(c.same_text(gold_sides[-1], side) for side in reversed(pred_sides))


def _steps(value: str) -> list[str]:
    relation = split_relation(value)
    return relation[1] if relation and all(op in ("=", r"\approx") for op in relation[0]) else [value]


def congruence(c: BaseComparison, gold: str, pred: str) -> bool | None:
    r"""`x \equiv 3 \pmod 7`: the same class; what is congruent may be left out."""
    found = _CONGRUENCE.fullmatch(gold), _CONGRUENCE.fullmatch(pred)
    if found[0] is None or found[1] is None:
        return None
    lefts, values, moduli = ([m[group] or "" for m in found if m] for group in ("left", "value", "modulus"))
    if moduli[0] != moduli[1] or not same_name(lefts[0], lefts[1]):
        return False
    numbers = c.quantity(values[0]), c.quantity(values[1]), c.quantity(moduli[0])
    if numbers[0] and numbers[1] and numbers[2] and numbers[2].value:
        return (numbers[0].value - numbers[1].value) % numbers[2].value == 0
    return c.same_text(values[0], values[1])


def relation(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Equations and inequalities, side by side or up to a factor. A relation is not an expression."""
    found = split_relation(gold), split_relation(pred)
    if found[0] is None and found[1] is None:
        return None
    if found[0] is None or found[1] is None:
        return False
    (ops, sides), (pred_ops, pred_sides) = found[0], found[1]
    if ops != pred_ops or "," in "".join(sides + pred_sides):
        return ops == pred_ops and c.in_order(sides, pred_sides)
    if ops in (["="], [r"\ne"]):
        return _same_equation(c, gold, pred, sides, pred_sides)
    if set(ops) == {"="}:
        return c.any_order(sides, pred_sides)
    if ops in (["<"], [r"\le"]):
        return ask(c, Question(_difference(sides), _difference(pred_sides), relation="<"))
    return c.in_order(sides, pred_sides)


def _same_equation(c: BaseComparison, gold: str, pred: str, sides: list[str], pred_sides: list[str]) -> bool:
    name, value = split_name(gold)
    if is_variable(name) and not letters(value) and not split_name(pred)[0]:
        return False  # `2x = 10` is not solved
    return ask(c, Question(_difference(sides), _difference(pred_sides), relation="="))


def _difference(sides: list[str]) -> str:
    return f"({sides[0]})-({sides[1]})"
