r"""Answers that are several values in one bracket: matrices, cases, tuples, intervals, sets, unions."""

from __future__ import annotations

import re

from soup_verl.tasks.grading.brackets import entries, split_top, unwrap
from soup_verl.tasks.grading.comparison import BaseComparison
from soup_verl.tasks.grading.names import split_relation

_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array|cases)\}((?:(?!\\begin).)*)\\end\{\1\}", re.DOTALL)


_POINT = re.compile(r"^[A-Z]'?(?=\([^()]*,[^()]*\)$)")  # the name of a point before its coordinates


def union(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Unions and intersections, in any order."""
    if split_relation(gold) or split_relation(pred):
        return None
    for sign in (r"\\cup ?", r"\\cap ?"):
        sides = split_top(gold, sign), split_top(pred, sign)
        if len(sides[0]) > 1 or len(sides[1]) > 1:
            return c.any_order(_points_apart(sides[0]), _points_apart(sides[1]))
    return None


def _points_apart(sides: list[str]) -> list[str]:
    r"""`\{1,2\}` as `\{1\}` and `\{2\}`."""
    found = [(side, bracketed(side)) for side in sides]
    return sum(
        ([rf"\{{{point}\}}" for point in entries(f[1])] if f and f[0] == r"\{\}" else [side] for side, f in found), []
    )


def matrix(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Matrices entry by entry, whatever their brackets; a determinant is none. Cases line by line."""
    found = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(pred)
    if found[0] is None or found[1] is None:
        return None
    if _is_other(found[0][1], found[1][1]):
        return False
    rows = [[row.split("&") for row in m[2].strip().removesuffix(r"\\").split(r"\\")] for m in found if m]
    if found[0][1] == "cases":
        return _same_cases(c, rows[0], rows[1])
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    return c.in_order(sum(rows[0], []), sum(rows[1], []))


def _is_other(gold: str, pred: str) -> bool:
    special = ("cases", "vmatrix", "Vmatrix")
    return gold != pred and (gold in special or pred in special)


def _same_cases(c: BaseComparison, gold: list[list[str]], pred: list[list[str]]) -> bool:
    """Each line is a value and its condition; lines in any order."""
    if len(gold) != len(pred):
        return False
    left = [list(map(_without_if, row)) for row in pred]
    for row in ([_without_if(cell) for cell in line] for line in gold):
        match = next((other for other in left if c.in_order(row, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _without_if(text: str) -> str:
    return re.sub(r"\\text\{(?:if|for|when|where)\}|^(?:if|for)(?=[a-z])|[,;.]$", "", text.strip())


def bracketed(text: str) -> tuple[str, str] | None:
    r"""Kind and content of a tuple, interval or set (`(2,3]` -> `(]`, `2,3`); None for anything else."""
    bracket = unwrap(text)
    if bracket is None:
        return None
    kind = bracket[0] + bracket[2]
    return (kind, bracket[1]) if kind == r"\{\}" or len(split_top(bracket[1], "[,;]")) > 1 else None


def tuple_or_set(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """The same brackets and entries: sets in any order, the others in theirs."""
    found = bracketed(_POINT.sub("", gold)), bracketed(_POINT.sub("", pred))
    if found[0] is None and found[1] is None:
        return None
    if found[0] is None or found[1] is None or found[0][0] != found[1][0]:
        return False
    gold_entries, pred_entries = same_number(found[0][1], found[1][1])
    if found[0][0] == r"\{\}":
        return c.any_order(gold_entries, pred_entries)
    return c.in_order(gold_entries, pred_entries)


def in_parentheses(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`(x+1)` is `x+1`."""
    inner = without_parentheses(gold), without_parentheses(pred)
    return None if inner == (gold, pred) else c.same_text(*inner)


def without_parentheses(text: str) -> str:
    bracket = unwrap(text)
    is_one = bracket is not None and bracket[0] + bracket[2] == "()" and len(split_top(bracket[1], "[,;]")) == 1
    return bracket[1] if bracket and is_one else text


def same_number(gold: str, pred: str) -> tuple[list[str], list[str]]:
    """The entries of both; where one may be read with commas of thousands, as many as the other has."""
    gold_entries, pred_entries = entries(gold), entries(pred)
    if len(gold_entries) > len(pred_entries) > 1:
        gold_entries = entries(gold, len(pred_entries))
    elif len(pred_entries) > len(gold_entries):
        pred_entries = entries(pred, len(gold_entries))
    return gold_entries, pred_entries
