r"""The normal form: one text for what is the same answer written otherwise.

    clean(text)     unicode ─► text rules ─► groups and commands, innermost first ─► text rules

Only notation: nothing is computed but repeating decimals. Pure functions of strings, which evaluate nothing. What is
the same character or command as another stands in the tables of `notation.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from soup_verl.tasks.grading.latex_layout import KEPT_SPACE, SPACE, layout
from soup_verl.tasks.grading.notation import FUNCTION_NAMES, read_unicode

_DIGITS = re.compile("-?[0-9]+")


def clean(text: str) -> str:
    r"""One spelling: `\dfrac12` and `\frac{1}{2}`, `x^2` and `x^{{2}}`, `1{,}200` and `1200`, `90^\circ` and `90°`.

    Sizes, spacing, fonts, colours and dollar signs go, braces stay where they are a command's; upright words are
    `\text{...}`; spaces stay only where they mean something: between digits, between words, after a command before a
    letter. Equal results mean equal answers.
    """
    return text if len(text) < 20 and _DIGITS.fullmatch(text) else _clean(text)


@functools.lru_cache(maxsize=512)
def _clean(text: str) -> str:
    text = read_unicode(text)
    for pattern, replacement in _BEFORE:
        text = pattern.sub(replacement, text)
    text = layout(text)
    for pattern, replacement in _AFTER:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".").replace(KEPT_SPACE, " ")


Rule = tuple[re.Pattern, str | Callable[[re.Match], str]]


def _rules(*rules: tuple[str, str | Callable[[re.Match], str]]) -> list[Rule]:
    return [(re.compile(pattern, re.DOTALL), replacement) for pattern, replacement in rules]


def _without_separators(match: re.Match) -> str:
    return re.sub(r"[^0-9]", "", match.group())


def _space(match: re.Match) -> str:
    if match[1]:
        return match[1] + " "
    return " " if match[2] else ""


def _fraction_of_repeating(match: re.Match) -> str:
    """`0.1\\overline{6}` is (16 - 1) / 90."""
    whole, first, repeated = match[1] or "0", match[2], match[3] or match[4] or match[5]
    value = Fraction(int(whole + first + repeated) - int(whole + first), 10 ** len(first) * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)


_NAMES = "|".join(sorted(FUNCTION_NAMES | {"sqrt"}, key=len, reverse=True))
_BEFORE = _rules(
    (r"\\\\\s*\[[0-9.]+\s*(?:pt|em|ex|mm|cm)\]", r"\\\\"),  # the height of a row
    # thousands by a braced comma or a space, wherever they stand; not in `3 125/216`
    (
        rf"(?<![0-9.,])[0-9]{{1,3}}(?:(?:\{{,\}}|,\\!|\\!|{SPACE})\s*[0-9]{{3}})+(?![0-9/])",
        _without_separators,
    ),
    (r"\\!\s*", ""),
    (rf"(?<=[0-9]),{SPACE}+(?=[0-9])", ";"),  # a list, where `1,234` is one number
    (r"(?i)^\s*(?:the )?(?:final )?answer(?: is|:)+\s*(?=\S)", ""),
    (r"(hundred|thousand|million) and (?=[a-z])", r"\1 "),
    # words: a whole sentence, or what follows a number
    (r"^\s*(?=[^$]*[A-Za-z]{3})(?!.*\\)([A-Za-z'-]+,?(?: [A-Za-z'-]+,?)+)[.!]?\s*$", r"\\text{\1}"),
    (r"(?<=[0-9})]) +((?:[A-Za-z]{4,}|[A-Za-z]+ per|sq|cu)(?: [A-Za-z]{2,})*)\s*$", r"\\text{\1}"),
    (r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|(?<=[0-9)}])(?:and|or)(?=[A-Z]\()", ","),
    # plain text and programs
    (r"<=|=<", r"\\le "),
    (r">=", r"\\ge "),
    (r"(?<![0-9)}])\s*!=|\\not\s*=|=/=", r"\\ne "),
    (r"\.\.\.+", r"\\ldots "),
    (r":=|==", "="),
    (r"\*\*\s*(-?[0-9.]+|[A-Za-z]|\([^()]*\))", r"^{\1}"),
    (r"([_^])\s*(-[0-9]+|-[A-Za-z]|[0-9]{2,})", r"\1{\2}"),  # 10^23: nobody means ten squared times three
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (
        rf"(?<![A-Za-z\\])(?:(?:np|math)\.)?({_NAMES})(?=\s*(?:\\left\s*)?\(|[_^][0-9{{]|\s[0-9A-Za-z\\](?![a-z]))",
        r"\\\1",
    ),
    (r"(?<![A-Za-z\\])(?:(?:np|math)\.)?pi(?![A-Za-z])", r"\\pi "),
    (r"(?<![A-Za-z\\])(?:inf|infinity|infty)(?![A-Za-z({])", r"\\infty "),
    (r"\(\s*(?:\\text\s*\{\s*)?mod\s*\}?\s*([0-9A-Za-z]+)\s*\)", r"\\pmod{\1}"),
    (r"\\begin\{((?:aligned|align|gathered|split|alignat)\*?)\}(.*)\\end\{\1\}", lambda m: m[2].replace("&", "")),
    (
        r"^(?!.*\\begin)(.*\\\\(?:[dt]?frac|sqrt|pi|text|cdot|times|left|infty|mathrm)(?![A-Za-z]).*)$",
        lambda m: m[1].replace("\\\\", "\\"),
    ),
    (r"^(?!.*\\begin)(.*\\\\.*)$", lambda m: m[1].replace("\\\\", ",")),  # lines
)
_AFTER = _rules(
    (r"(\\[A-Za-z]+)\s+(?=[A-Za-z])|((?<=[0-9])\s+(?=[0-9.]))|\s+", _space),
    (r"(^|[(\[,;=<>:]|\\(?:le|ge|in|approx|to) ?)\+", r"\1"),
    (r"[,;]*,[,;]*", lambda m: ";" if ";" in m[0] else ","),
    (
        r"(?<![0-9. ])([0-9]*)\.([0-9]{0,30})"
        r"(?:\\overline\{([0-9]{1,30})\}|\\dot\{([0-9])\}|\(([0-9]{1,30})\))(?![0-9.])",
        _fraction_of_repeating,
    ),
    (
        r"[(\[]\\begin\{(?:array|matrix)\}((?:(?!\\begin).)*?)\\end\{(?:array|matrix)\}[)\]]",
        r"\\begin{pmatrix}\1\\end{pmatrix}",
    ),
    (r"(\^\{[^{}]*\})(_\{[^{}]*\})", r"\2\1"),
    (r"^\(([0-9A-F]+)\)_\{\(?([0-9]+)\)?\}$", r"\1_{\2}"),
    (r"^\\text\{([A-Za-z])\}$", r"\1"),
    (r"\\(sin|cos|tan)\^\{-1\}([A-Za-z]?)", lambda m: rf"\arc{m[1]} {m[2]}" if m[2] else rf"\arc{m[1]}"),
    (r"(?<=[0-9])(?:\^\{(st|nd|rd|th)\}|(st|nd|rd|th)(?![A-Za-z]))", lambda m: rf"\text{{{m[1] or m[2]}}}"),
    (r"\\\{\\\}", r"\\emptyset"),
    (r"\\langle ?((?:(?!\\langle|\\rangle).)*[,;](?:(?!\\langle|\\rangle).)*)\\rangle ?", r"(\1)"),  # a vector
    (r"^\\\{([^:|]+):(.*(?:[=<>]|\\(?:in|le|ge|ne)(?![A-Za-z])).*)\\\}$", r"\\{\1|\2\\}"),
    (r"^\\text\{(?i:(?:so|thus)?\0?(?:the)?\0?(?:final)?\0?answer(?:\0is)?:?)\}[:=]?", ""),
    (r"\(\\pmod\{([^{}]*)\}\)|\(\\bmod ?([0-9A-Za-z]+)\)", lambda m: rf"\pmod{{{m[1] or m[2]}}}"),
    (r"(\\equiv .*)\\bmod ?([0-9a-z]+)$", r"\1\\pmod{\2}"),
    # `]1,2[` and `[1,2[`
    (r"(^|\\(?:cup|cap|in) ?|,)\]([^()\[\],;]+[,;][^()\[\],;]+)(?=[\[\])])", r"\1(\2"),
    (r"((?:^|\\(?:cup|cap|in) ?|,)[(\[][^()\[\],;]+[,;][^()\[\],;]+)\[", r"\1)"),
)
