r"""Which options of a multiple-choice question an answer names: by letter, by text, or by letter and text.

    answer ─► plain() ─┬─► the whole of it is an option's text ──┐
                       └─► a letter, alone or before a text ─────┴─► the set of options it can be read as

An answer is right if it names right options and no other, so whatever can be read in two ways has to be right in both.
Pure functions of strings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from string import ascii_uppercase

MAX_OPTIONS = len(ascii_uppercase)
SameValue = Callable[[str, str], bool]
"""(an option's text, an answer) -> whether they are the same mathematics."""

_SIGNS = str.maketrans("‘’“”‐‑‒–—−", "''\"\"------")
_DOLLAR = "\0"  # a price's sign, until the signs around formulas are gone
_FONTS = "text|textbf|textit|textrm|textsf|texttt|emph|mbox|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|ce"
_FONT = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_LAYOUT = re.compile(r"\\[()\[\]]|\*\*|\\(?:left|right|displaystyle)(?![A-Za-z])")
_SPACE = re.compile(r"(?:\s|~|\\[,;:! ]|\\q?quad(?![A-Za-z]))+")
_WORDS_BEFORE = re.compile(
    r"(?:(?:the |my )?(?:(?:final|correct|right|best) )?(?:answer|option|choice|letter)\b(?: is\b| ?[:=])* ?)+", re.I
)
_LETTER = re.compile(
    r"(?:\((?P<round>[A-Z])\)|\[(?P<square>[A-Z])\]|(?P<bare>[A-Z])(?![A-Za-z0-9]))(?P<mark> ?[.:)-])? ?(?P<rest>.*)",
    re.I | re.S,
)
# Phrases, and formulas that are no products: CO2, GeV, AaBb.
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{4,}|[A-Z][A-Za-z]|[a-z][A-Z]|[A-DF-Za-df-z][0-9]|(?<![0-9])[Ee][0-9]")


def plain(text: str) -> str:
    r"""Without what only sets the text: fonts (`\text{...}`), `$` around formulas, spaces, dashes, a last full stop."""
    text = unicodedata.normalize("NFC", text).translate(_SIGNS).replace(r"\$", _DOLLAR)
    text = re.sub(r"\$([^$]*)\$", r"\1", text)
    text = _LAYOUT.sub("", text)
    while (inner := _FONT.sub(r"\1", text)) != text:
        text = inner
    text = re.sub(r"\\([%&#_])", r"\1", text.replace(_DOLLAR, "$"))
    text = _SPACE.sub(" ", text).strip().removesuffix(".").rstrip()
    return re.sub(r"^\{([^{}]*)\}$", r"\1", text)


def _closed(text: str) -> str:
    """Of a plain text: spaces and braces aside."""
    return re.sub(r"[\s{}]", "", text)


def is_mathematical(text: str) -> bool:
    """Whether a plain text is a number or a formula, rather than a phrase or a molecule that holds one."""
    return re.search(r"[0-9\\=^]", text) is not None and not _WORD.search(_COMMAND.sub(" ", text))


def named(answer: str, options: Sequence[str], same_value: SameValue) -> frozenset[int]:
    """The places, from 0, of the options that an answer can be read as; none if it names no option.

    A capital letter alone is the letter of an option, which is what was asked for, and never an option's text.

    Args:
        answer: what the box holds.
        options: texts in the order of their letters.
        same_value: asked of two texts that both are mathematical, and not spelled alike.
    """
    said = plain(answer)
    after = _WORDS_BEFORE.match(said)
    head = said[after.end() :] if after else said
    letter = _LETTER.fullmatch(head)
    by_letter = _by_letter(letter, options, same_value) if letter else frozenset()
    if by_letter and letter and not letter["rest"] and _letter(letter).isupper():
        return by_letter
    return by_letter | (_by_text(said, options, same_value) or _by_text(head, options, same_value))


def _by_letter(match: re.Match, options: Sequence[str], same_value: SameValue) -> frozenset[int]:
    """The option of a letter; where a text follows that is another option's, both; if it is none's, no option."""
    place = ascii_uppercase.index(_letter(match).upper())
    if place >= len(options):
        return frozenset()
    rest = match["rest"]
    if not rest:
        return frozenset({place})
    if match["bare"] and not match["mark"] and match["bare"].islower():
        return frozenset()  # "a dog": the article
    in_brackets = rest[1:-1] if rest.startswith("(") and rest.endswith(")") else ""
    texts = _by_text(rest, options, same_value) or _by_text(in_brackets, options, same_value)
    if not texts:
        return frozenset()
    return frozenset({place}) if place in texts else texts | {place}


def _letter(match: re.Match) -> str:
    return match["round"] or match["square"] or match["bare"]


def _by_text(said: str, options: Sequence[str], same_value: SameValue) -> frozenset[int]:
    """The options with this text; of these ways to be the same, the strictest by which there is one."""
    if not said:
        return frozenset()
    texts = [plain(option) for option in options]
    ways: tuple[Callable[[str], bool], ...] = (
        lambda text: text == said,
        lambda text: _closed(text) == _closed(said),
        lambda text: _closed(text).casefold() == _closed(said).casefold(),
        lambda text: is_mathematical(said) and is_mathematical(text) and same_value(text, said),
    )
    for same in ways:
        if found := frozenset(i for i, text in enumerate(texts) if same(text)):
            return found
    return frozenset()
