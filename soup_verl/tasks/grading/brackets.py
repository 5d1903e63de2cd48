"""Splitting texts where no bracket is open. Linear in their length."""

from __future__ import annotations

import functools
import re

OPEN, CLOSE = "([{", ")]}"
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_INDIAN = re.compile(r"(?<![0-9.,])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9,])")


@functools.lru_cache(maxsize=64)
def _pattern(separators: str) -> re.Pattern:
    return re.compile(separators)


def split_top(text: str, separators: str) -> list[str]:
    """`text` at every match of the pattern `separators` that is not inside brackets or an environment."""
    return cut_top(text, separators)[0]


def cut_top(text: str, separators: str) -> tuple[list[str], list[str]]:
    """As `split_top`, and the separators."""
    matches = {match.start(): match for match in _pattern(separators).finditer(text) if match.end() > match.start()}
    parts, found, depth, start = [], [], 0, 0
    for i, character in enumerate(text) if matches else ():
        if depth == 0 and i in matches and i >= start:
            parts.append(text[start:i])
            found.append(matches[i].group())
            start = matches[i].end()
        elif character in OPEN or text.startswith(r"\begin", i):
            depth += 1
        elif character in CLOSE or text.startswith(r"\end", i):
            depth = max(0, depth - 1)
    return [*parts, text[start:]], found


def unwrap(text: str) -> tuple[str, str, str] | None:
    r"""(opening, content, closing) of a text that is one bracket from end to end: `(0,1]`, `\{1,2\}`; else None."""
    match = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
    if match is None:
        return None
    depth = 0
    for character in match.group(2):
        depth += (character in OPEN) - (character in CLOSE)
        if depth < 0:
            return None  # `(1)+(2)`: the first bracket is closed before the end
    return (match.group(1), match.group(2), match.group(3)) if depth == 0 else None


def join_thousands(text: str) -> str:
    """`1,234` as `1234` where no bracket is open; braces of a command are none: `\\frac{1,000}{3}`.

    In `(1,200)` the comma may as well separate two numbers: see `entries`.
    """
    if "," not in text:
        return text
    parts, start = [], 0
    stack: list[bool] = []  # of the open brackets: whether a comma within may separate
    for i, character in enumerate(text):
        if character not in "([{)]}":
            continue
        was_open = any(stack)
        if character in OPEN:
            stack.append(character != "{" or text[i - 1 : i] in ("\\", "_"))
        elif stack:
            stack.pop()
        if was_open != any(stack):
            parts.append(text[start:i] if was_open else _join(text[start:i]))
            start = i
    return "".join([*parts, text[start:] if any(stack) else _join(text[start:])])


def _join(text: str) -> str:
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def join_indian(text: str) -> str:
    """`1,00,000` as `100000`."""
    return _INDIAN.sub(lambda match: match.group().replace(",", ""), text)


def entries(text: str, wanted: int | None = None) -> list[str]:
    """`text` at its commas and semicolons; where that is not the `wanted` number of entries, but it is with the commas
    of thousands left out, at the others: `1,200,3` has three entries or two."""
    split = split_top(text, "[,;]")
    if wanted is None or len(split) == wanted or "," not in text:
        return split
    joined = split_top(_join(text), "[,;]")
    return joined if len(joined) == wanted else split
