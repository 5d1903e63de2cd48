r"""Sets of real numbers in any notation: `x > 2`, `(2, \infty)`, `\{x | x > 2\}`, `\mathbb{R} \setminus \{2\}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from soup_verl.tasks.grading.brackets import split_top
from soup_verl.tasks.grading.comparison import BaseComparison
from soup_verl.tasks.grading.names import is_name, split_relation
from soup_verl.tasks.grading.shapes import bracketed

_BUILDER = re.compile(r"\\\{(?P<variable>[A-Za-z](?:\\in ?\\mathbb\{R\})?)(?:\||:)(?P<condition>.+)\\\}")
_NOTATIONS = re.compile(r"[<>|:]|\\(?:le|ge|ne|mathbb)(?![A-Za-z])")
_ALL = ("(", r"-\infty", r"\infty", ")")

Piece = tuple[str, str, str, str]
"""Opening bracket, lower and upper end, closing bracket."""


@dataclass(frozen=True)
class RealSet:
    """`variable` is "" for intervals."""

    pieces: list[Piece]
    variable: str = ""


def real_set(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """The same intervals in any order, where one side writes intervals and the other relations, or both relations."""
    if not _NOTATIONS.search(gold) and not _NOTATIONS.search(pred):
        return None  # both as intervals, or no such sets at all
    sets = read_set(c, gold), read_set(c, pred)
    if sets[0] is None or sets[1] is None:
        return None
    variables = {s.variable for s in sets if s} - {""}
    if len(variables) > 1:
        return False
    if not c.rules.relation_as_interval and bool(sets[0].variable) != bool(sets[1].variable):
        return False
    gold_pieces, pred_pieces = sets[0].pieces, list(sets[1].pieces)
    if len(gold_pieces) != len(pred_pieces):
        return False
    for piece in gold_pieces:
        match = next((other for other in pred_pieces if _same_piece(c, piece, other)), None)
        if match is None:
            return False
        pred_pieces.remove(match)
    return True


def _same_piece(c: BaseComparison, gold: Piece, pred: Piece) -> bool:
    return (gold[0], gold[3]) == (pred[0], pred[3]) and c.in_order(gold[1:3], pred[1:3])


def read_set(c: BaseComparison, text: str) -> RealSet | None:
    """The set that `text` describes, None where it is no such description."""
    if match := _BUILDER.fullmatch(text):
        inner = _of_relations(c, match["condition"])
        return inner if inner and inner.variable in ("", match["variable"][0]) else None
    if re.search(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])", text):
        return _of_relations(c, text)
    pieces = _of_intervals(c, re.sub(r"^[A-Za-z]\\in ?(?=[(\[\\])", "", text))
    return RealSet(pieces) if pieces else None


def _of_intervals(c: BaseComparison, text: str) -> list[Piece] | None:
    if match := re.fullmatch(r"(?:\\mathbb\{R\}|\(-\\infty,\\infty\))(?:\\setminus ?|-)\\\{(.+)\\\}", text):
        return _all_but(c, split_top(match[1], "[,;]"))
    pieces = []
    for part in split_top(text, r"\\cup ?"):
        found = bracketed(part)
        if part == r"\mathbb{R}":
            pieces.append(_ALL)
        elif found and found[0] == r"\{\}":
            pieces += [("[", point, point, "]") for point in split_top(found[1], "[,;]")]
        elif found and found[0] in ("()", "(]", "[)", "[]") and len(ends := split_top(found[1], "[,;]")) == 2:
            pieces.append((found[0][0], ends[0], ends[1], found[0][1]))
        else:
            return None
    return pieces


def _all_but(c: BaseComparison, points: list[str]) -> list[Piece] | None:
    """The reals without some points; they can only be put in order where they are plain numbers."""
    if len(points) > 1:
        values = [c.quantity(point) for point in points]
        if None in values:
            return None
        points = [point for _, point in sorted(zip([v.value for v in values if v], points, strict=True))]
    ends = [_ALL[1], *points, _ALL[2]]
    return [("(", low, high, ")") for low, high in zip(ends, ends[1:], strict=False)]


def _of_relations(c: BaseComparison, text: str) -> RealSet | None:
    """Relations of one variable with its bounds: `0 < x \\le 5`; several are alternatives, of `\\ne` all hold."""
    relations = [split_relation(part) for part in split_top(text, "[,;]")]
    if relations and relations[0] and relations[0][0] == [r"\ne"]:
        return _of_unequal(c, text, relations)
    pieces, variables = [], set()
    for found in relations:
        piece = _of_relation(*found) if found else None
        if piece is None:
            return None
        variables.add(piece[0])
        pieces.append(piece[1])
    return RealSet(pieces, variables.pop()) if len(variables) == 1 else None


def _of_relation(ops: list[str], sides: list[str]) -> tuple[str, Piece] | None:
    if not set(ops) <= {"<", r"\le", "="}:
        return None
    brackets = [("(", ")") if op == "<" else ("[", "]") for op in ops]
    if ops == ["="]:
        return (sides[0], ("[", sides[1], sides[1], "]")) if _is_variable(sides[0]) else None
    if "=" in ops:
        return None
    if len(ops) == 1 and _is_variable(sides[0]):
        return sides[0], ("(", _ALL[1], sides[1], brackets[0][1])
    if len(ops) == 1 and _is_variable(sides[1]):
        return sides[1], (brackets[0][0], sides[0], _ALL[2], ")")
    if len(ops) == 2 and _is_variable(sides[1]):
        return sides[1], (brackets[0][0], sides[0], sides[2], brackets[1][1])
    return None


def _of_unequal(c: BaseComparison, text: str, relations: list) -> RealSet | None:
    variable, points = relations[0][1][0], []
    for found, part in zip(relations, split_top(text, "[,;]"), strict=True):
        if found is None:
            points.append(part)  # x \ne 1, 2
        elif found[0] == [r"\ne"] and found[1][0] == variable and _is_variable(variable):
            points.append(found[1][1])
        else:
            return None
    pieces = _all_but(c, points)
    return RealSet(pieces, variable) if pieces and _is_variable(variable) else None


def _is_variable(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z]|\\[a-z]+ ?|[A-Za-z]_\{[^{}]*\}", text) is not None and is_name(text)
