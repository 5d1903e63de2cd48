r"""Names before a value: `x = 5`, `AB = 5`, `f(2) = 3`, `(x, y) = (3, 2)`, `V_1:V_2 = 11:21`, `p \approx 3`."""

from __future__ import annotations

import re

from soup_verl.tasks.grading.brackets import cut_top
from soup_verl.tasks.grading.notation import CONSTANTS, FUNCTIONS, GREEK, spaced

_SIGNS = r"\\(?:le|ge|ne|in|approx|equiv|sim|to)(?![A-Za-z]) ?|[<>=]"
_TURNED = {">": "<", r"\ge": r"\le"}
_NAMING = ("=", r"\in", r"\approx")
# Where numbers may stand in a name: indices, arguments, limits, f^{-1}, and the orders of a derivative.
_INDEX = re.compile(r"_\{(?:[^{}]|\{[^{}]*\})*\}(?:\^\{[^{}]*\}(?=[^=]*d))?")
_ARGUMENTS = re.compile(r"(?<=[A-Za-z}'])(?:\^\{(?:-1|\([a-z0-9]+\))\})?\((?:[^()]|\([^()]*\))*\)")
_D = r"(?:d|\\partial ?)"
DERIVATIVE = re.compile(rf"\\frac\{{{_D}(?:\^\{{[0-9n]\}})?([^{{}}]*)\}}\{{{_D}([^{{}}]*?)(?:\^\{{[0-9n]\}})?\}}")
_NAME_COMMANDS = FUNCTIONS | frozenset(
    spaced(
        f"{GREEK} frac cdot angle triangle overline vec hat dot ddot tilde text mathcal mathbb cup cap sum int lim "
        "partial nabla"
    )
)
_NO_NAMES = ("", "e", "i")


def split_relation(text: str) -> tuple[list[str], list[str]] | None:
    """Relation signs, all pointing the same way (`a>b` is `b<a`), and sides; None for a text without a relation."""
    sides, ops = cut_top(text, _SIGNS)
    ops = [op.strip() for op in ops]
    if not ops:
        return None
    if all(op in _TURNED for op in ops):
        return [_TURNED[op] for op in reversed(ops)], sides[::-1]
    return ops, sides


def split_name(text: str) -> tuple[str, str]:
    r"""(`x`, `5`) for `x=5`, `5=x` and `x\in 5`, and (`x`, `a=b`) for `x=a=b`; ("", text) where no name stands so."""
    sides, ops = cut_top(text, _SIGNS)
    ops = [op.strip() for op in ops]
    if not ops or ops[0] not in _NAMING or not all(op in ("=", r"\approx") for op in ops[1:]):
        return "", text
    if is_name(sides[0]):
        return sides[0], text[len(sides[0]) :].removeprefix(ops[0]).strip()
    if ops == ["="] and is_name(sides[1]) and not letters(sides[0]):
        return sides[1], sides[0]
    return "", text


def letters(text: str) -> frozenset[str]:
    """The variables of an expression. The constants e, i and pi are none."""
    commands = set(re.findall(r"\\([A-Za-z]+)", text)) - set(CONSTANTS.split())
    return frozenset(commands | set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))) - {"e", "i"}


def is_name(text: str) -> bool:
    """Whether a text can be what a value is a value of: no number stands in it outside of indices and arguments."""
    if len(text) > 80 or text in _NO_NAMES or text.startswith("-"):
        return False
    bare = DERIVATIVE.sub(r"d\1d\2", re.sub(r"\\angle ?[0-9]", "a", text))
    bare = _ARGUMENTS.sub("", _INDEX.sub(" ", bare))
    if not set(re.findall(r"\\([A-Za-z]+)", bare)) <= _NAME_COMMANDS:
        return False
    bare = re.sub(r"\\[A-Za-z]+", "x", bare)
    return re.fullmatch(r"[A-Za-z{}()\[\]|,;:+\-*/' #]+", bare) is not None and re.search("[A-Za-z]", bare) is not None


def same_name(gold: str, pred: str) -> bool:
    r"""Whether two names may name the same: `AB` and `|AB|`; a name in words (`\text{Area}`) fits any letter."""
    if not gold or not pred:
        return True
    gold_is_label, pred_is_label = _is_label(gold), _is_label(pred)
    return gold_is_label != pred_is_label or _plain(gold) == _plain(pred)


def _is_label(name: str) -> bool:
    return re.search(r"\\text\{[^{}]{3,}\}|(?<![A-Za-z\\])[A-Za-z][a-z]{3,}", name) is not None


def _plain(name: str) -> str:
    name = re.sub(r"\\(?:text|overline|vec|triangle|hat) ?|m(?=\\angle)", "", name)
    return re.sub(r"[{}| ]", "", name)


def is_variable(name: str) -> bool:
    """Whether a name is one letter, perhaps with an index."""
    return re.fullmatch(rf"(?:[A-Za-z]|\\(?:{GREEK.replace(' ', '|')}) ?)'*(?:_\{{[^{{}}]*\}})?", name) is not None


def is_sum(name: str) -> bool:
    """Whether a name is an expression of several: `a+b`."""
    return re.search(r"[-+*/]|\\(?:cdot|frac)", _ARGUMENTS.sub("", DERIVATIVE.sub("", name))) is not None


def tuple_of_names(name: str) -> list[str]:
    """`(x,y)` as its names, [] for any other name."""
    match = re.fullmatch(r"\(([^()]*)\)", name)
    return re.split("[,;]", match[1]) if match and re.search("[,;]", match[1]) else []
