r"""Answers that are one value: numbers, times of day, ratios, numbers in a base, expressions for math-verify."""

from __future__ import annotations

import re
from dataclasses import replace

from soup_verl.tasks.grading.brackets import split_top
from soup_verl.tasks.grading.comparison import MAX_NESTING, BaseComparison, Question, Undecided
from soup_verl.tasks.grading.names import DERIVATIVE, letters
from soup_verl.tasks.grading.notation import CONSTANTS, GREEK
from soup_verl.tasks.grading.number_words import read_words
from soup_verl.tasks.grading.quantities import Quantity, agree, as_latex, split_unit

MAX_EXPRESSION = 400  # characters

_COMMANDS = frozenset(f"{CONSTANTS} {GREEK}".split())
_IF_EXPECTED = frozenset(["lfloor", "rfloor", "lceil", "rceil"])  # allowed where the expected answer has them
_LONG_VARIABLE = re.compile(
    rf"{DERIVATIVE.pattern}|(?<![A-Za-z])[a-z]_\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}"
    rf"|(?:[A-Z]|\\(?:{GREEK.replace(' ', '|')})(?![A-Za-z]))(?:_\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})?|\\[A-Za-z]+"
)
_NOT_A_VARIABLE = re.compile(rf"\\(?!frac\{{|(?:{GREEK.replace(' ', '|')})(?![A-Za-z]))")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(:[0-9]{2})?(?:\\text\{)?([ap]\.?m?\.?)?\}?", re.IGNORECASE)
_BASE = re.compile(r"([0-9A-Z]+)_\{([0-9]+|[a-z]+)\}")


def number(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Plain numbers, with or without unit."""
    gold_number = c.quantity(gold)
    if gold_number is None:
        return None
    pred_number = c.quantity(pred)
    if pred_number is None:
        return None
    return agree(gold_number, pred_number, c.tolerance, unit_required=c.rules.unit_required)


def clock(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`3:45`, `3:45 p.m.`: the same digits, and not morning against evening."""
    times = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(pred)
    if times[0] is None or times[1] is None:
        return None
    halves = [(time[4] or "")[:1].lower() for time in times if time]
    digits = [(int(time[1]), time[2], time[3] or "") for time in times if time]
    return digits[0] == digits[1] and (halves[0] == halves[1] or not all(halves))


def ratio(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`2:3` is `4:6` and, of two terms, 2/3."""
    terms = [split_top(text, ":") for text in (gold, pred)]
    if len(terms[0]) == 1 and len(terms[1]) == 1:
        return None
    if len(terms[0]) != len(terms[1]):
        quotients = [t[0] if len(t) == 1 else _quotient(t) for t in terms]
        return all(quotients) and c.same_text(quotients[0], quotients[1])
    values = [[c.quantity(term) for term in side] for side in terms]
    if None in values[0] or None in values[1]:
        return c.in_order(terms[0], terms[1])
    a, b = ([v.value for v in side if v] for side in values)
    return all(a[0] * y == b[0] * x for x, y in zip(a, b, strict=True)) and bool(any(a) and any(b))


def _quotient(terms: list[str]) -> str:
    return rf"\frac{{{terms[0]}}}{{{terms[1]}}}" if len(terms) == 2 else ""


def in_base(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`2516_{8}`: digits and base are one name; its value in base ten is not what was asked for."""
    found = _BASE.fullmatch(gold), _BASE.fullmatch(pred)
    if found[0] and found[1]:
        bases = [read_words(m[2]) or m[2] for m in found if m]
        return found[0][1] == found[1][1] and str(bases[0]) == str(bases[1])
    return False if (found[0] or found[1]) else None


def expression(c: BaseComparison, gold: str, pred: str) -> bool:
    """What is left: equal as math-verify has it, units and percent signs aside."""
    gold_number, pred_number = c.quantity(gold), c.quantity(pred)
    gold, pred = _angles_in_radians(gold), _angles_in_radians(pred)
    gold_unit, pred_unit = split_unit(gold, c.unit), split_unit(pred, c.unit)
    if gold_unit.scale != pred_unit.scale:
        return False
    if gold_unit.unit and (pred_unit.unit or c.rules.unit_required) and gold_unit.unit != pred_unit.unit:
        return False
    gold, pred = _in_one_angle(gold_unit.body, pred_unit.body, "°" in gold, "°" in pred)
    gold, pred = (as_latex(side.replace("°", "")) for side in (gold, pred))
    last_digit = None
    if c.tolerance is None and gold_number is None and pred_number is not None:
        last_digit = _last_digit(pred_number)
    return ask(c, Question(gold, pred, within=c.tolerance, last_digit=last_digit))


def _angles_in_radians(text: str) -> str:
    r"""`\sin 30°` as the sine of a multiple of pi."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", text):
        text = re.sub(r" ?([0-9.]+)°", r"(\\frac{\\pi}{180}\\cdot\1)", text)
    return text


def _in_one_angle(gold: str, pred: str, gold_in_degrees: bool, pred_in_degrees: bool) -> tuple[str, str]:
    r"""Degrees against a multiple of \pi are compared in radians."""
    if gold_in_degrees and not pred_in_degrees and r"\pi" in pred:
        return rf"\frac{{\pi}}{{180}}\cdot({gold})", pred
    if pred_in_degrees and not gold_in_degrees and r"\pi" in gold:
        return gold, rf"\frac{{\pi}}{{180}}\cdot({pred})"
    return gold, pred


def _last_digit(number: Quantity) -> float | None:
    """What the last digit counts, for a `Question`. Raises Undecided where no float holds it: 1.234567e9999."""
    try:
        return None if number.slack is None else float(number.slack)
    except OverflowError:
        raise Undecided("not_allowed") from None


# ---- what may be handed on ----


def ask(c: BaseComparison, question: Question) -> bool:
    """The verdict on two expressions that may be handed on."""
    gold, pred = short_variables(question.gold, question.pred)
    commands = frozenset(re.findall(r"\\([A-Za-z]+)", gold))
    if not is_allowed(gold, commands):
        return False  # only its own spelling is right, and that was compared
    # The parser drops primes: x' would be x.
    if not is_allowed(pred, commands) or gold.count("'") != pred.count("'"):
        raise Undecided("not_allowed")
    if not _may_be_equal(question.gold, question.pred):
        return False
    return c.decide(replace(question, gold=gold, pred=pred))


def _may_be_equal(gold: str, pred: str) -> bool:
    r"""Whether both have the same variables, or one has one or two more that may cancel: \sin^2 x + \cos^2 x is 1."""
    gold_letters, pred_letters = letters(gold), letters(pred)
    if gold_letters == pred_letters:
        return True
    if not 1 <= len(gold_letters ^ pred_letters) <= 2:
        return False
    more = gold if gold_letters > pred_letters else pred if pred_letters > gold_letters else ""
    return re.search(r"\\(?:frac|sin|cos|tan|cot|sec|csc)|/", more) is not None


def short_variables(gold: str, pred: str) -> tuple[str, str]:
    r"""Both with `z_{1}`, `z_{2}`, ... for variables with an index, capital and Greek letters, and derivatives.

    The LaTeX parser takes E for the constant e in any case, I for i, does not tell N from n, reads \gamma( as a
    function and cancels d in `dx/dt`.
    """
    names: dict[str, str] = {}

    def rename(match: re.Match) -> str:
        found = match.group()
        if _NOT_A_VARIABLE.match(found):
            return found
        space = " " if match.string[match.start() - 1 : match.start()].isalpha() else ""  # a command before it
        return space + names.setdefault(found, f"z_{{{len(names) + 1}}}")

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
    return is_balanced(text)


def is_balanced(text: str) -> bool:
    closing = []
    for character in text:
        if character in "([{":
            closing.append(")]}"["([{".index(character)])
        elif character in ")]}" and (not closing or closing.pop() != character):
            return False
        if len(closing) > MAX_NESTING:
            return False
    return not closing
