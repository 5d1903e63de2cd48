"""Whether an answer is the expected one: its structure in plain Python, only what is left of it to math-verify.

    answer ─► parts (lists, sets, ±) ─► relation ─► tuple, interval, matrix ─► word, number ─► expression ─► `decide`

Each level is split in the same way in both answers and compared piece by piece, so that what reaches `decide` is one
expression without relation, list or text, made of the characters and commands below. An answer cannot win by being a
different kind of thing than the expected one: `12=7`, `5 \\bmod 7`, `\\{0,1,...,9\\}` and `[0,9]` are not 7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from soup_verl.grading.latex_text import clean, is_upright, split_top, unwrap, words
from soup_verl.grading.quantities import Quantity, agree, as_latex, parse_quantity, split_unit

MAX_PARTS = 64  # of a list, tuple or matrix
MAX_EXPRESSION = 400  # characters
MAX_NESTING = 12  # brackets within brackets: the LaTeX parser's time doubles with each

_CONSTANTS = (  # and functions: commands that are no variables
    "frac sqrt cdot times div pi infty binom ln log exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh"
)
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell"
)
_COMMANDS = frozenset(f"{_CONSTANTS} {_GREEK}".split())
_IF_EXPECTED = frozenset(["lfloor", "rfloor", "lceil", "rceil"])  # allowed where the expected answer has them
_VARIABLE = rf"(?:[A-Za-z]|\\(?:{_GREEK.replace(' ', '|')}))"
_LONG_VARIABLE = re.compile(rf"{_VARIABLE}_\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\\[A-Za-z]+|[A-Z]")
_NAME = re.compile(
    rf"{_VARIABLE}'*(?:_\{{[^{{}}]*\}})?(?:\({_VARIABLE}(?:,{_VARIABLE})*\))?"
    r"|\\angle ?[A-Z_0-9{}]+|\\text\{[A-Za-z ]+\}"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv|sim)(?![A-Za-z]) ?|[<>=]")
_TURNED = {">": "<", r"\ge": r"\le"}
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)


class Undecided(Exception):
    """The comparison has no verdict. `reason`: `not_allowed` (nothing that may be handed on), or one of `decide`'s."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Question:
    """What is left to decide: whether `gold` and `pred` are equal expressions.

    `within`: an absolute distance that is allowed, None for equality. `equation`: both are the difference of an
    equation's sides, equal up to a factor.
    """

    gold: str
    pred: str
    within: float | None = None
    equation: bool = False


@dataclass(frozen=True)
class Comparison:
    """Compares answers to one problem.

    Args:
        decide: the verdict on two expressions; may raise `Undecided`.
        tolerance: absolute error that is allowed in a number.
        multiple: the expected answer is a list, so its commas separate answers.
        unit: the unit that the answer is asked in.
    """

    decide: Callable[[Question], bool]
    tolerance: float | None = None
    multiple: bool = False
    unit: str = ""
    _clean_unit: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "_clean_unit", clean(self.unit))

    def same(self, gold: str, pred: str) -> bool:
        """Whether `pred` is the answer `gold`. Raises Undecided."""
        gold, pred = clean(gold), clean(pred)
        if not pred or gold == pred:
            return bool(pred)
        gold_parts = [gold] if self._is_one_number(gold) else parts_of(gold)
        pred_parts = [pred] if self._is_one_number(pred) else parts_of(pred)
        if len(gold_parts) == 1 and self._quantity(pred) is not None:
            pred_parts = [pred]
        return self._match_any_order(gold_parts, pred_parts, self._same_part)

    def _is_one_number(self, text: str) -> bool:
        return not self.multiple and self._quantity(text) is not None

    def _quantity(self, text: str):
        return parse_quantity(text, self._clean_unit)

    def _match_any_order(self, gold: Sequence[str], pred: Sequence[str], same: Callable[[str, str], bool]) -> bool:
        """Whether every expected part has its own given part. Raises Undecided if only such parts are missing."""
        if len(gold) != len(pred) or len(gold) > MAX_PARTS:
            return False
        left = list(pred)
        for part in gold:
            index = _first(left, part, same)
            if index is None:
                return False
            del left[index]
        return True

    def _match_in_order(self, gold: Sequence[str], pred: Sequence[str]) -> bool:
        if len(gold) != len(pred) or len(gold) > MAX_PARTS:
            return False
        return all(self._same_piece(g, p) for g, p in zip(gold, pred, strict=True))

    def _same_part(self, gold: str, pred: str) -> bool:
        """One answer of possibly several: `x=5` is `5`, other relations are compared as such."""
        if gold == pred:
            return True
        gold_name, gold = split_name(gold)
        pred_name, pred = split_name(pred)
        if gold_name and pred_name and gold_name != pred_name:
            return False
        gold_relation, pred_relation = split_relation(gold), split_relation(pred)
        if gold_relation is None and pred_relation is None:
            return self._same_piece(gold, pred)
        if gold_relation is None or pred_relation is None:
            return False
        return self._same_relation(*gold_relation, *pred_relation)

    def _same_relation(self, ops: list[str], sides: list[str], pred_ops: list[str], pred_sides: list[str]) -> bool:
        if ops != pred_ops:
            return False
        if ops != ["="]:
            return self._match_in_order(sides, pred_sides)
        if "," in "".join(sides + pred_sides):
            return False
        return self._ask(Question(_difference(sides), _difference(pred_sides), equation=True))

    def _same_piece(self, gold: str, pred: str) -> bool:
        """Unions, matrices, tuples and intervals: the same kind, piece by piece."""
        if gold == pred:
            return True
        unions = split_top(gold, r"\\cup ?"), split_top(pred, r"\\cup ?")
        if len(unions[0]) > 1 or len(unions[1]) > 1:
            return self._match_any_order(*unions, self._same_piece)
        matrices = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(pred)
        if matrices[0] and matrices[1]:
            return self._same_matrix(matrices[0].group(2), matrices[1].group(2))
        gold_bracket, pred_bracket = bracketed(gold), bracketed(pred)
        if gold_bracket is None and pred_bracket is None:
            return self._same_scalar(_without_parentheses(gold), _without_parentheses(pred))
        if gold_bracket is None or pred_bracket is None or gold_bracket[0] != pred_bracket[0]:
            return False
        if gold_bracket[0] == r"\{\}":
            return self._match_any_order(gold_bracket[1], pred_bracket[1], self._same_piece)
        return self._match_in_order(gold_bracket[1], pred_bracket[1])

    def _same_matrix(self, gold: str, pred: str) -> bool:
        gold_rows, pred_rows = ([row.split("&") for row in m.removesuffix(r"\\").split(r"\\")] for m in (gold, pred))
        if [len(row) for row in gold_rows] != [len(row) for row in pred_rows]:
            return False
        return self._match_in_order(sum(gold_rows, []), sum(pred_rows, []))

    def _same_scalar(self, gold: str, pred: str) -> bool:
        """Words and numbers are decided here, expressions asked about."""
        gold_number, pred_number = self._quantity(gold), self._quantity(pred)
        if gold_number is not None and pred_number is not None:
            return agree(gold_number, pred_number, self.tolerance)
        if gold_number is None and words(gold) is not None and words(gold) == words(pred):
            return True
        if is_upright(pred) or (gold_number is None and is_upright(gold)):
            return False
        gold_unit, pred_unit = split_unit(gold, self._clean_unit), split_unit(pred, self._clean_unit)
        if gold_unit.scale != pred_unit.scale or (gold_unit.unit and pred_unit.unit not in ("", gold_unit.unit)):
            return False
        gold, pred = (as_latex(side.body.replace("°", "")) for side in (gold_unit, pred_unit))
        within = self.tolerance
        if within is None and gold_number is None and pred_number is not None:
            within = _slack(pred_number)
        return self._ask(Question(gold, pred, within=within))

    def _ask(self, question: Question) -> bool:
        """The verdict on two expressions that may be handed on."""
        gold, pred = short_variables(question.gold, question.pred)
        commands = frozenset(re.findall(r"\\([A-Za-z]+)", gold))
        if not is_allowed(gold, commands):
            return False  # only its own spelling is right, and that was compared
        # The parser drops primes: x' would be x.
        if not is_allowed(pred, commands) or gold.count("'") != pred.count("'"):
            raise Undecided("not_allowed")
        if _letters(question.gold) != _letters(question.pred):
            return False
        return self.decide(replace(question, gold=gold, pred=pred))


def _slack(number: Quantity) -> float | None:
    """The number's slack for a `Question`. Raises Undecided where no float holds it: 1.234567e9999."""
    try:
        return None if number.slack is None else float(number.slack)
    except OverflowError:
        raise Undecided("not_allowed") from None


def _first(parts: Sequence[str], wanted: str, same: Callable[[str, str], bool]) -> int | None:
    """The index of the first part that is the wanted one. Raises Undecided if none is, but one had no verdict."""
    if wanted in parts:
        return list(parts).index(wanted)
    undecided = None
    for i, part in enumerate(parts):
        try:
            if same(wanted, part):
                return i
        except Undecided as error:
            undecided = error
    if undecided is not None:
        raise undecided
    return None


def parts_of(text: str) -> list[str]:
    r"""The answers in `text`: split at commas, the content of a set, both values of a ±."""
    bracket = unwrap(text)
    if bracket is not None and bracket[0] + bracket[2] == r"\{\}":
        text = bracket[1]
    parts = split_top(text, ";")  # `1,234; 5,678`: clean writes a comma before a space so
    if len(parts) == 1 or not all(parse_quantity(part) for part in parts):
        parts = split_top(text, "[,;]")
    return [value for part in parts for value in _both_signs(part)]


def _both_signs(part: str) -> list[str]:
    if len(re.findall(r"\\pm(?![A-Za-z])", part)) != 1 or len(part) > MAX_EXPRESSION:
        return [part]
    before, after = re.split(r"\\pm(?![A-Za-z]) ?", part)
    return [f"{before}+{after}" if before else after, f"{before}-{after}"]


def split_name(text: str) -> tuple[str, str]:
    r"""(`x`, `5`) for `x=5` and `x\in 5`; ("", text) where there is no such relation or its left side is no name."""
    relation = split_relation(text)
    if relation is None or len(relation[0]) != 1 or relation[0][0] not in ("=", r"\in"):
        return "", text
    name, value = relation[1]
    return (name, value) if _NAME.fullmatch(name) else ("", text)


def split_relation(text: str) -> tuple[list[str], list[str]] | None:
    """Relation signs, all pointing the same way (`a>b` is `b<a`), and sides; None for a text without a relation."""
    ops = [op.strip() for op in _RELATION.findall(text)]
    if not ops:
        return None
    sides = _RELATION.split(text)
    if all(op in _TURNED for op in ops):
        return [_TURNED[op] for op in reversed(ops)], sides[::-1]
    return ops, sides


def bracketed(text: str) -> tuple[str, list[str]] | None:
    r"""Kind and entries of a tuple, interval or set (`(2,3]` -> `(]`, [`2`, `3`]); None for anything else."""
    bracket = unwrap(text)
    if bracket is None:
        return None
    entries = split_top(bracket[1], "[,;]")
    kind = bracket[0] + bracket[2]
    return (kind, entries) if len(entries) > 1 or kind == r"\{\}" else None


def _without_parentheses(text: str) -> str:
    bracket = unwrap(text)
    return bracket[1] if bracket and bracket[0] + bracket[2] == "()" else text


def _difference(sides: Sequence[str]) -> str:
    return f"({sides[0]})-({sides[1]})"


def _letters(text: str) -> frozenset[str]:
    """The variables of an expression. The constants e, i and pi are none."""
    commands = set(re.findall(r"\\([A-Za-z]+)", text)) - set(_CONSTANTS.split())
    return frozenset(commands | set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))) - {"e", "i"}


def short_variables(gold: str, pred: str) -> tuple[str, str]:
    """Both with `z_{1}`, `z_{2}`, ... for variables with an index and capital letters.

    The LaTeX parser takes E for the constant e in any case, I for i, and does not tell N from n.
    """
    names: dict[str, str] = {}

    def rename(match: re.Match) -> str:
        found = match.group()
        if "_" not in found and found.startswith("\\"):
            return found
        return names.setdefault(found, f"z_{{{len(names) + 1}}}")

    return _LONG_VARIABLE.sub(rename, gold), _LONG_VARIABLE.sub(rename, pred)


def is_allowed(text: str, expected_commands: frozenset[str]) -> bool:
    """Whether `text` may be handed to a LaTeX parser: short, flat, brackets closed, known commands and characters."""
    if not 0 < len(text) <= MAX_EXPRESSION or not re.fullmatch(r"[-+*/^_()\[\]{}!.|' A-Za-z0-9\\]*", text):
        return False
    if not set(re.findall(r"\\([A-Za-z]+|.|$)", text)) <= _COMMANDS | (_IF_EXPECTED & expected_commands):
        return False
    # Digits side by side are no product, `7_8` is a base, `(7)8` would be read as the mixed number 7 8.
    if re.search(r"[0-9.] [0-9.]|[0-9]_|[(\[][0-9.]+[)\]][0-9]|\|\|", text) or text.count("|") % 2:
        return False
    return _is_balanced(text)


def _is_balanced(text: str) -> bool:
    closing = []
    for character in text:
        if character in "([{":
            closing.append(")]}"["([{".index(character)])
        elif character in ")]}" and (not closing or closing.pop() != character):
            return False
        if len(closing) > MAX_NESTING:
            return False
    return not closing
