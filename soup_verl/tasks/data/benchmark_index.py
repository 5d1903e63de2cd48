"""Whether a prompt contains a benchmark question, whatever the typesetting of either."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_SPELLINGS = [
    (re.compile(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))"), ""),  # thousands separators
    (re.compile(r"\\[dt]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(l|g)e(?:q|qslant)(?![a-z])"), r"\\\1e"),
    (re.compile(r"\\(?:ldots|cdots)(?![a-z])"), r"\\dots"),
    (re.compile("[−–—]"), "-"),
    # Layout only: spaces, sizes, maths delimiters, line breaks.
    (re.compile(r"\\(?:left|right|displaystyle|q?quad|big[lr]?)(?![a-z])|\\[\s,;:!()\[\]\\]|[~$&]"), " "),
    (re.compile(r"\.(?!\d)|[,;:?'\"`’‘“”{}]"), " "),
    (re.compile(r"(?<=\d)\s+(?=\d)"), "|"),  # 1 23 is not 12 3
    (re.compile(r"\s+"), ""),
]


@lru_cache(maxsize=1 << 16)  # DAPO-Math-17k holds each of its questions about a hundred times
def normalise_question(text: str) -> str:
    """The question less what typesetting changes: case, spaces, punctuation, LaTeX layout, spellings of a command."""
    text = unicodedata.normalize("NFKC", text).lower()
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


_ANCHOR = 32  # characters


class BenchmarkIndex:
    """Finds benchmark questions inside prompts, typesetting aside, in one pass over the prompt.

    A question is filed under its first 32 normalised characters; a prompt looks up each of its own runs of 32 and
    compares in full where one is filed. A shorter question must be the whole prompt: "Simplify the square root of 8"
    inside a longer text is no evidence of anything.
    """

    def __init__(self) -> None:
        self._by_anchor: dict[str, list[tuple[str, str]]] = {}
        self._short: dict[str, str] = {}
        self.sizes: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()

    def add(self, benchmark: str, questions: Iterable[str]) -> None:
        """File the questions of `benchmark`, the name by which `find` tells it."""
        for number, question in enumerate(questions, start=1):
            text, label = normalise_question(question), f"question {number} of {benchmark}"
            if len(text) < _ANCHOR:
                self._short.setdefault(text, label)
            else:
                self._by_anchor.setdefault(text[:_ANCHOR], []).append((text, label))
            self.sizes[benchmark] += 1

    def find(self, prompt: str) -> str | None:
        """The first benchmark question that `prompt` contains, as "question 17 of NAME"; None if there is none."""
        text = normalise_question(prompt)
        if text in self._short:
            return self._short[text]
        for start in range(len(text) - _ANCHOR + 1):
            for question, label in self._by_anchor.get(text[start : start + _ANCHOR], ()):
                if text.startswith(question, start) and not _splits_number(text, start, start + len(question)):
                    return label
        return None


def _splits_number(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins or ends inside a number: 16 is not found in 160 or 16.5."""
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    return (text[start].isdecimal() and _in_number(before)) or (text[end - 1].isdecimal() and _in_number(after))


def _in_number(character: str) -> bool:
    return character.isdecimal() or character == "."
