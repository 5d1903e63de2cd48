"""Numbers in words, and words that multiply: `twenty-one`, `two thirds`, `3 million`, `7 tenths`, `2 dozen`."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from soup_verl.tasks.grading.notation import spaced

_SMALL = spaced(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = spaced("twenty thirty forty fifty sixty seventy eighty ninety")
_VALUES = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_POWERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = spaced(
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth "
    "seventeenth eighteenth nineteenth"
)
_SCALES: dict[str, Fraction] = {
    **{word: Fraction(power) for word, power in _POWERS.items()},
    **{f"{word}th": Fraction(1, power) for word, power in _POWERS.items()},
    **{word: Fraction(1, n) for n, word in enumerate(_PARTS, 3)},
    **{f"{word[:-1]}ieth": Fraction(1, n) for word, n in _VALUES.items() if word in _TENS},
    "half": Fraction(1, 2), "halve": Fraction(1, 2), "quarter": Fraction(1, 4), "dozen": Fraction(12),
    "ten": Fraction(10), "score": Fraction(20), "gross": Fraction(144), "lakh": Fraction(10**5), "lac": Fraction(10**5),
    "crore": Fraction(10**7), "myriad": Fraction(10**4), "bn": Fraction(10**9), "quadrillion": Fraction(10**15),
}  # fmt: skip
_CHINESE = frozenset("零一二三四五六七八九十百千万亿两半")
_MAX_WORDS = 12


def scale_of(word: str) -> Fraction | None:
    """What a word multiplies the number before it by: 10^6 for `million`, 1/10 for `tenths`; None for a noun."""
    lower = word.lower()
    return _SCALES.get(lower) or _SCALES.get(lower.removesuffix("s"))


def is_number_word(word: str) -> bool:
    return word.lower() in _VALUES or scale_of(word) is not None or not _CHINESE.isdisjoint(word)


@functools.lru_cache(maxsize=256)
def read_words(text: str) -> Fraction | None:
    """The number that `text` says in words, None if it says none or more: `one hundred and five`, `two thirds`."""
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word != "and"]
    if not 0 < len(words) <= _MAX_WORDS:
        return None
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = words[sign == -1 :]
    if words[:1] in (["a"], ["an"]) and len(words) > 1:
        words[0] = "one"
    if not words or not all(word in _VALUES or scale_of(word) for word in words):
        return None
    if words[0] not in _VALUES:
        words = ["one", *words] if words[0] in ("half", "dozen", "hundred", "thousand", "million", "billion") else []
    return sign * value if words and (value := _sum(words)) is not None else None


def _sum(words: list[str]) -> Fraction | None:
    """`two hundred five thousand three` by its thousands, `three fourths` by its last word."""
    part = scale_of(words[-1])
    if part is not None and part < 1:
        above = _sum(words[:-1]) if len(words) > 1 else None
        return None if above is None else above * part
    total, block, last = Fraction(0), Fraction(0), 1000
    for word in words:
        if word in _VALUES:
            value = _VALUES[word]
            if value >= last or (last < 20) or (last < 100 and value > 9):
                return None  # `two three`: two numbers
            block, last = block + value, max(value, 1)
            continue
        scale = scale_of(word)
        if scale is None or scale < 1 or not block:
            return None
        if scale < 1000:
            block *= scale
        else:
            total, block = total + block * scale, Fraction(0)
        last = 1000 if scale >= 1000 else int(scale)
    return total + block
