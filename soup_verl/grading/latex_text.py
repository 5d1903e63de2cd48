"""Answers as text: the last box of a response, one spelling for what LaTeX writes in several ways, splitting.

Pure functions of strings, linear in their length; nothing here evaluates anything.
"""

from __future__ import annotations

import re
from collections import deque

_BOX = re.compile(r"\\boxed\s{0,4}\{")
_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
        "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ",
        "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u2032": "'", "\u00a0": " ", "\u202f": " ",
        "\u2009": " ", "\u20ac": "", "\u00a3": "", "\u00a5": "", "~": " ", "\0": "\ufffd",
    }
)  # fmt: skip
_RENAMED = {
    **dict.fromkeys(("left", "right", "displaystyle", "textstyle", "limits", "$", "(", ")", "[", "]"), ""),
    **dict.fromkeys(("bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl", "Biggr", "big", "Big", "rm"), ""),
    **dict.fromkeys((",", ";", ":", ">", " ", "quad", "qquad", "enspace", "thinspace"), " "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("mathrm", "mathbf", "mathit", "mathsf", "textbf", "textit", "textrm", "mbox", "hbox"), r"\text"),
    **dict.fromkeys(("operatorname", "textnormal"), r"\text"),
    **dict.fromkeys(("leq", "leqslant"), r"\le"),
    **dict.fromkeys(("geq", "geqslant"), r"\ge"),
    **dict.fromkeys(("lt",), "<"),
    **dict.fromkeys(("gt",), ">"),
    **dict.fromkeys(("degree", "degrees"), "°"),
    "neq": r"\ne",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lvert": "|",
    "rvert": "|",
    "dots": r"\ldots",
}
_COMMAND = re.compile(r"\\([A-Za-z]+|.|$)", re.DOTALL)
_KEPT_SPACE = "\0"  # while other spaces are taken out
_OPEN, _CLOSE = "([{", ")]}"


def last_box(text: str, *, max_chars: int) -> tuple[str | None, str]:
    r"""The content of the last `\boxed{...}` of `text`, and "" or why there is none.

    The last box that was opened counts, and no other: if it is not closed, or its content is longer than `max_chars`
    characters, there is no answer. Reads at most `max_chars` characters of it.

    Returns:
        (content, ""), or (None, reason) with the reason `no_box`, `unclosed_box` or `too_long`.
    """
    start = _last_opening(text)
    if start is None:
        return None, "no_box"
    depth, i, end = 1, start, min(len(text), start + max_chars + 1)
    while i < end:
        if text[i] == "\\":
            i += 1  # \{ and \} are characters, not braces
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if not depth:
                return text[start:i], ""
        i += 1
    return None, "too_long" if len(text) > end else "unclosed_box"


def _last_opening(text: str) -> int | None:
    """Where the content of the last box begins."""
    last = deque(_BOX.finditer(text), maxlen=1)
    return last[0].end() if last else None


def clean(text: str) -> str:
    r"""One spelling: `\dfrac12` and `\frac{1}{2}`, `x^2` and `x^{2}`, `10,\!080` and `10,080`, `90^\circ` and `90°`.

    Sizes, spacing, currency and dollar signs go; upright text of any command is `\text{...}`; spaces stay only where
    they mean something: between digits, between words, after a command before a letter. Equal results mean equal
    answers.
    """
    text = re.sub(r"\\!\s*", "", text.translate(_UNICODE))
    text = re.sub(r"(?<=[0-9]),\s+(?=[0-9])", ";", text)  # a list, where `1,234` is one number
    text = _COMMAND.sub(_rename, text).replace("$", "")
    text = re.sub(r"\\text ?\{([^{}]*)\}", _clean_text, text)
    text = re.sub(r"\s(?:and|or)\s", ",", text).replace("{,}", ",")
    text = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])|((?<=[0-9])\s+(?=[0-9.]))|\s+", _space, text)
    text = re.sub(r"\^(?:\{\\circ\}|\\circ(?![A-Za-z]))|\^°|\^\{°\}", "°", text)
    text = re.sub(r"([_^])([A-Za-z0-9])", r"\1{\2}", text)
    text = re.sub(r"\\(frac|sqrt) ?([0-9A-Za-z])", r"\\\1{\2}", text)
    text = re.sub(r"(\\frac\{[^{}]*\}|\\sqrt\[[^\]]*\])([0-9A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"(^|[(\[,;=])\+", r"\1", text)
    text = re.sub(r",(?:,)+", ",", text)
    return text.strip().rstrip(".").replace(_KEPT_SPACE, " ")


def _rename(match: re.Match) -> str:
    name = match.group(1)
    return _RENAMED.get(name, match.group())


def _clean_text(match: re.Match) -> str:
    content = " ".join(match.group(1).split())
    if content.strip(" ,").lower() in ("and", "or"):
        return ","
    return rf"\text{{{content.replace(' ', _KEPT_SPACE)}}}" if re.search("[A-Za-z]", content) else content


def _space(match: re.Match) -> str:
    if match.group(1):
        return match.group(1) + " "
    return " " if match.group(2) else ""


def words(text: str) -> str | None:
    r"""What a text in words says (`\text{(C)}` -> `C`, `\text{East}` -> `east`), None for anything with a symbol in it.

    Case counts in one or two letters only: the choice `C`, the variable `c`, the segment `AB`.
    """
    said = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    match = re.fullmatch(r"\(?([A-Za-z]+(?:[ '-][A-Za-z]{2,})*)\)?[.:]?", said)
    if match is None:
        return None
    found = match.group(1)
    return found if len(found) <= 2 else found.replace(" ", "").lower()


def is_upright(text: str) -> bool:
    r"""Whether all of `text` is in `\text{...}`."""
    return re.fullmatch(r"(?:\\text\{[^{}]*\})+", text) is not None


def split_top(text: str, separators: str) -> list[str]:
    """`text` at every match of the pattern `separators` that is not inside brackets of any kind."""
    parts, depth, start, i = [], 0, 0, 0
    pattern = re.compile(separators)
    while i < len(text):
        match = pattern.match(text, i) if depth == 0 else None
        if match and match.end() > i:
            parts.append(text[start:i])
            start = i = match.end()
            continue
        if text[i] in _OPEN:
            depth += 1
        elif text[i] in _CLOSE:
            depth = max(0, depth - 1)
        i += 1
    return [*parts, text[start:]]


def unwrap(text: str) -> tuple[str, str, str] | None:
    r"""(opening, content, closing) of a text that is one bracket from end to end: `(0,1]`, `\{1,2\}`; else None."""
    match = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
    if match is None:
        return None
    depth = 0
    for character in match.group(2):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return None  # `(1)+(2)`: the first bracket is closed before the end
    return (match.group(1), match.group(2), match.group(3)) if depth == 0 else None
