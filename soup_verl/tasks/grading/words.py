r"""Answers that are words: choices and text."""

from __future__ import annotations

import re

from soup_verl.tasks.grading.comparison import BaseComparison

_CHOICE = re.compile(
    r"(?:\\text\{)?(?:(?:option|choice|answer) ?)?(?:(?P<letter>[A-Z])|\((?P<in_brackets>[A-Z])\))(?:\})?[.:)]?\}?",
    re.IGNORECASE,
)
_CHOICE_AND_VALUE = re.compile(
    r"(?:\\text\{)?(?:\(([A-Z])\)|([A-Z])[.:)])(?:\}:?)?[ :]?(?P<value>[^\^_+*/=<>,;'!)\]}].*)"
)
_PHRASES = {  # without spaces: another phrase that says the same
    "nosolutionexist": "nosolution", "norealsolution": "nosolution", "thereisnosolution": "nosolution",
    "therearenosolution": "nosolution", "dne": "doesnotexist", "allrealnumber": "allreal", "correct": "true",
}  # fmt: skip
_SYMBOLS = {"infinitelymany": r"\infty", "emptyset": r"\emptyset", "nosolution": r"\emptyset", "allreal": r"\mathbb{R}"}


def same_spelling(c: BaseComparison, gold: str, pred: str) -> bool | None:
    return True if gold == pred else None


def choice(c: BaseComparison, gold: str, pred: str) -> bool | None:
    r"""`C`, `\textbf{(C)}\ 5`, `\text{C. } 5`, `(C)`; several as `ABD` or `A, B, D`."""
    gold_letter, gold_value = _choice(gold)
    if not gold_letter:
        return _several_choices(gold, pred)
    pred_letter, pred_value = _choice(pred)
    if not pred_letter:
        return c.same_text(gold_value, pred) if gold_value else None
    if gold_letter != pred_letter:
        return False
    return True if not (gold_value and pred_value) else c.same_text(gold_value, pred_value)


def _choice(text: str) -> tuple[str, str]:
    """Letter and value of a choice, "" for what is not there. Case counts: `c` is a variable."""
    if match := _CHOICE.fullmatch(text):
        letter = match["letter"] or match["in_brackets"]
        return (letter, "") if letter.isupper() else ("", "")
    if match := _CHOICE_AND_VALUE.fullmatch(text):
        value = match["value"]
        if value.endswith("}") and value.count("{") < value.count("}"):
            value = rf"\text{{{value.strip()}"
        return match[1] or match[2], value
    return "", ""


def _several_choices(gold: str, pred: str) -> bool | None:
    letters = _letters_of(gold)
    if len(letters) < 2 or sorted(set(letters)) != letters:
        return None
    return True if letters == sorted(_letters_of(pred)) else None


def _letters_of(text: str) -> list[str]:
    match = re.fullmatch(r"(?:\\text\{)?[A-H](?:[,;]?[A-H])*\}?", text.replace(" ", ""))
    return re.findall("[A-H]", text) if match else []


def words(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Text: case, spaces, articles, a plural and a full stop aside."""
    said, given = say(gold), say(pred)
    if said and given and said == given:
        return True
    symbols = _SYMBOLS.get(said or "", gold), _SYMBOLS.get(given or "", pred)
    if symbols != (gold, pred):
        return c.same_text(*symbols)
    if is_upright(pred) or (is_upright(gold) and c.quantity(gold) is None):
        return False
    return None


def say(text: str) -> str | None:
    r"""What a text in words says (`\text{East}` -> `east`), None for anything with a symbol in it.

    Case counts in one or two letters only: the choice `C`, the variable `c`, the segment `AB`.
    """
    said = re.sub(r"\\text\{([^{}]*)\}", r"\1 ", text).strip(" .:")
    said = re.sub(r"^(?:[\"“]|``|'|`)(.*?)(?:[\"”]|'+)$", r"\1", said).strip(" .:" + "!" * is_upright(text))
    match = re.fullmatch(r"\(?([^\W\d_]+(?:[ '-]+[^\W\d_]{2,}| [^\W\d_])*)\)?[.:]?", said)
    if match is None:
        return None
    found = match.group(1)
    if len(found) <= 2:
        return found.lower() if found.lower() == "no" else found
    found = re.sub(r"^(?:an?|the) ", "", found.lower())
    found = re.sub(r"[ '-]", "", found)
    found = found.removesuffix("s") if len(found) > 3 else found
    return _PHRASES.get(found, found)


def is_upright(text: str) -> bool:
    r"""Whether all of `text` is in `\text{...}`."""
    return re.fullmatch(r"(?:\\text\{[^{}]*\})+", text) is not None
