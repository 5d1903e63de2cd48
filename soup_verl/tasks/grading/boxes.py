r"""Where the answer of a response stands: its boxes. The one box finder of this package, for responses and for golds.

Linear in the length of the text.
"""

from __future__ import annotations

import re
from collections import deque

# `\boxed{`, `\boxed {`; without braces one character, as in TeX (`\boxed 5`), or a number up to the end of the formula
# (`$\boxed 12$`). In `\boxed 12` TeX boxes the 1 alone and the writer meant 12: that is no box.
_BOX = re.compile(
    r"\\boxed\s{0,4}(?:\{|(?P<bare>(?:(?<=\s)[A-Za-z]|[0-9])(?=\s{0,4}(?:[.,;]?(?:\s|$)|\$|\\[)\]]))"
    r"|-?[0-9.,]{1,20}(?=\s{0,4}(?:\$|\\[)\]]))))"
)
_BETWEEN = re.compile(r"(?:[\s$,;.&]|\\(?:quad|qquad|[\\,;: ()\[\]])|(?:\\text\s?\{)?\s*\b(?:and|or)\b\s*\}?)*")
_MAX_BETWEEN = 40  # characters between two boxes that stand in a row


def answer_part(text: str) -> str:
    """What follows the thoughts of a response (`<think>...</think>`); "" where they never end."""
    _, closed, after = text.rpartition("</think>")
    if closed:
        return after
    return "" if "<think>" in text else text


def last_box(text: str, *, max_chars: int) -> tuple[str | None, str]:
    r"""The content of the last `\boxed{...}` of `text`, and "" or why there is none.

    The last box that was opened counts, and no other: if it is not closed, or its content is longer than `max_chars`
    characters, there is no answer. Reads at most `max_chars` characters of it.

    Returns:
        (content, ""), or (None, reason) with the reason `no_box`, `unclosed_box` or `too_long`.
    """
    last = deque(_BOX.finditer(text), maxlen=1)
    if not last:
        return None, "no_box"
    content, _, reason = _read(text, last[0], max_chars)
    return content, reason


def row_of_boxes(text: str, *, max_chars: int) -> tuple[str | None, str]:
    r"""As `last_box`, but boxes in a row are one list: `\boxed{k=45}` and `\boxed{n=2}` with nothing else between."""
    row: list[str] = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue  # a box within the one before
        content, after, reason = _read(text, match, max_chars)
        between = text[end : match.start()]
        if not (row and len(between) <= _MAX_BETWEEN and _BETWEEN.fullmatch(between)):
            row = []
        if content is None:
            return None, reason
        row.append(content)
        end = after
    joined = ", ".join(row)
    if not row:
        return None, "no_box"
    return (joined, "") if len(joined) <= max_chars else (None, "too_long")


def _read(text: str, match: re.Match, max_chars: int) -> tuple[str | None, int, str]:
    """The content of the box that `match` opened, where it ends, and "" or why there is none."""
    if match["bare"] is not None:
        return match["bare"], match.end(), ""
    start = match.end()
    depth, i, end = 1, start, min(len(text), start + max_chars + 1)
    while i < end:
        if text[i] == "\\":
            i += 1  # \{ and \} are characters, not braces
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if not depth:
                return text[start:i], i + 1, ""
        i += 1
    return None, len(text), "too_long" if len(text) > end else "unclosed_box"
