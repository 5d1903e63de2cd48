"""Plain numbers in answers: decimals, fractions, mixed numbers, powers of ten, percent, units. Exact, in Python alone.

Texts are as `latex_text.clean` leaves them: no spaces but between digits, `\\text{...}` for any upright text, `°` for
degrees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from soup_verl.tasks.grading.number_words import is_number_word, read_words, scale_of
from soup_verl.tasks.grading.units import Unit, read_unit

ENOUGH_DIGITS = 6  # a decimal answer with this many significant digits may stand for what it rounds
MAX_NUMBER = 1000  # characters; a longer one is right in the very spelling of the expected answer only

_DECIMAL = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"([+-]?{_DECIMAL})"
_EXPONENT = r"\{?([+-]?[0-9]{1,4})\}?"
_FRACTION = re.compile(
    # 1\frac{2}{3}, \frac{2}{3}, 1 2/3, 2/3
    rf"([0-9]*)\\frac\{{{_SIGNED}\}}\{{{_SIGNED}\}}|(?:([0-9]+) )?({_DECIMAL})/(-?{_DECIMAL})"
)
_POWER = re.compile(rf"({_DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*|x)10\^){_EXPONENT}|10\^{_EXPONENT}")
_PLAIN = re.compile(_DECIMAL)
_TEXT = r"\\text\{[^{}0-9=<>+]*\}"
_UNIT = re.compile(rf"(?:{_TEXT})(?:(?:/|\\cdot ?)?{_TEXT}|\^\{{-?[0-9]\}})*$|\\frac\{{{_TEXT}\}}\{{{_TEXT}\}}$")
_BARE_UNIT = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?:/[A-Za-z]+)?(?:\^\{[23]\})?$")
_PERCENT = re.compile(r"(?:\\?%|\\text\{(?:percent|per cent|pct)\}|(?<![A-Za-z])percent)$")
_DEGREE = re.compile(r"°(?:\\text\{[CF]\}|[CF])?$")
_CURRENCY = re.compile(
    r"([+-]?)(\\\$|[€£¥₹]|\\text\{(?:US\\?\$|USD|EUR|GBP|CNY|RMB|INR|Rs\.?)\})([+-]?)", re.IGNORECASE
)
_CURRENCY_BEHIND = re.compile(r"(?:\\\$|[€£¥₹¢元])$")
_COUNTER = re.compile("(?:[个人种次只条元度米秒天年]|厘米|千米|小时|分钟|平方米)$")
_NO_UNIT = frozenset(
    [
        "and",
        "or",
        "to",
        "mod",
        "not",
        "from",
        "through",
        "between",
        "none",
        "any",
        "all",
        "of",
        "is",
        "are",
        "if",
        "for",
    ]
    + ["plus", "minus", "times", "over", "less", "more", "divided", "multiplied", "squared", "cubed", "power", "root"]
    + ["factorial", "negative", "choose", "least", "most", "fewer", "greater", "larger", "smaller", "below", "above"]
    + ["under", "up", "down", "about", "roughly", "approximately", "almost", "nearly", "except", "other", "others"]
    + ["maximum", "minimum", "double", "twice", "triple", "doubled", "halved", "fold", "base", "remainder"]
    + ["pi", "infinity", "inverse", "where", "when", "unless", "modulo", "squareroot", "percentage"]
)


@dataclass(frozen=True)
class Measured:
    """A text without its unit. `unit` is None for none and for a noun; `scale` is what words such as "million" or
    "tenths" multiply by."""

    body: str
    unit: Unit | None = None
    percent: bool = False
    scale: Fraction = Fraction(1)


@dataclass(frozen=True)
class Quantity:
    """A plain number.

    Attributes:
        value: exact, without regard to a percent sign.
        percent: whether a percent sign followed.
        unit: None for none or one that is not known.
        last_digit: what the last digit of a decimal counts, so 0.01 for 3.14; None for integers and fractions.
        digits: significant digits of a decimal, 0 for others.
    """

    value: Fraction
    percent: bool = False
    unit: Unit | None = None
    last_digit: Fraction | None = None
    digits: int = 0

    @property
    def slack(self) -> Fraction | None:
        """What the last digit of the decimal counts, where it may have been cut or rounded; None where it may not."""
        return self.last_digit if self.digits >= ENOUGH_DIGITS else None


def split_unit(text: str, unit: str = "") -> Measured:
    """Take a percent sign, a degree sign, a currency, a unit or a number word off `text`.

    Args:
        text: cleaned answer.
        unit: the unit the answer is asked in; its letters need no `\\text` around them.
    """
    if match := _PERCENT.search(text):
        return Measured(text[: match.start()], percent=True)
    if match := _CURRENCY.match(text):
        rest = split_unit(match[1] + match[3] + text[match.end() :])
        return replace(rest, unit=rest.unit or read_unit(match[2]))
    if match := _DEGREE.search(text) or _CURRENCY_BEHIND.search(text) or _COUNTER.search(text):
        return (
            Measured(text[: match.start()], unit=read_unit(re.sub(r"\\text|[{}]", "", match.group())))
            if match.start()
            else Measured(text)
        )
    match = _UNIT.search(text) or _BARE_UNIT.search(text)
    if match is None or not match.start():
        return _split_asked_unit(text, unit)
    words = re.findall(r"[^\W\d_]+(?:\.[A-Za-z]\.)?", match.group().replace(r"\text", ""))
    if not words or _NO_UNIT & {word.lower() for word in words}:
        return Measured(text)
    scale, nouns = _split_scale(words)
    is_known = scale != 1 or read_unit(match.group()) is not None
    if not match.group().startswith("\\") and not is_known:
        return _split_asked_unit(text, unit)  # letters of an expression
    named = read_unit(match.group() if scale == 1 else " ".join(nouns))
    if named is None and any(map(is_number_word, nouns)):
        return Measured(text)
    return Measured(text[: match.start()], unit=named, scale=scale)


def _split_scale(words: list[str]) -> tuple[Fraction, list[str]]:
    """What the number words at the beginning multiply by, and the other words: `hundred million dollars`."""
    scale = Fraction(1)
    for i, word in enumerate(words):
        factor = scale_of(word)
        if factor is None:
            return scale, [w for w in words[i:] if w != "of" or not i]
        scale *= factor
    return scale, []


def _split_asked_unit(text: str, unit: str) -> Measured:
    if unit and text.endswith(unit) and text != unit:
        return Measured(text.removesuffix(unit), unit=read_unit(unit), percent=unit == "%")
    return Measured(text)


def parse_quantity(text: str, unit: str = "") -> Quantity | None:
    """The plain number that `text` is, None where it is anything else.

    Args:
        text: cleaned answer.
        unit: the unit the answer is asked in, cleaned too.
    """
    if len(text) > MAX_NUMBER:
        return None
    measured = split_unit(text, unit)
    number = _parse_unsigned(measured.body[measured.body[:1] in ("+", "-") :])
    if number is None:
        said = (
            read_words(re.sub(r"\\text\{([^{}]*)\}", r"\1", text)) if text[-1:].isalpha() or text[-1:] == "}" else None
        )
        return None if said is None else Quantity(said)
    value, last_digit, digits = number
    sign = -1 if measured.body.startswith("-") else 1
    last_digit = None if last_digit is None else last_digit * measured.scale
    return Quantity(sign * measured.scale * value, measured.percent, measured.unit, last_digit, digits)


def _parse_unsigned(text: str) -> tuple[Fraction, Fraction | None, int] | None:
    """Value, weight of the last digit and significant digits (decimals only)."""
    if _PLAIN.fullmatch(text):
        return _decimal(text)
    if match := _POWER.fullmatch(text):
        mantissa, exponent, lone_exponent = match.groups()
        value, last_digit, digits = _decimal(mantissa or "1")
        power = Fraction(10) ** int(exponent or lone_exponent)
        return value * power, None if last_digit is None else last_digit * power, digits
    if match := _FRACTION.fullmatch(text):
        whole, top, bottom, whole_before_slash, slash_top, slash_bottom = match.groups()
        denominator = _signed(bottom or slash_bottom)
        if denominator:
            return int(whole or whole_before_slash or 0) + _signed(top or slash_top) / denominator, None, 0
    return None


def as_latex(text: str) -> str:
    r"""`text`, a plain number as a LaTeX parser reads it: `1.5\cdot10^{3}`, where `1.5e3` would be 1.5 times e times 3.

    Anything but a plain number stays as it is.
    """
    sign, unsigned = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    if match := _POWER.fullmatch(unsigned):
        mantissa, exponent, lone_exponent = match.groups()
        power = rf"10^{{{int(exponent or lone_exponent)}}}"
        return sign + (rf"{re.sub('[, ]', '', mantissa)}\cdot{power}" if mantissa else power)
    return sign + re.sub("[, ]", "", unsigned) if _PLAIN.fullmatch(unsigned) else text


def _signed(text: str) -> Fraction:
    value = _decimal(text.lstrip("+-"))[0]
    return -value if text.startswith("-") else value


def _decimal(text: str) -> tuple[Fraction, Fraction | None, int]:
    digits, _, places = re.sub("[, ]", "", text).partition(".")
    value = Fraction(int(f"0{digits}{places}"), 10 ** len(places))
    if not places:
        return value, None, 0
    return value, Fraction(1, 10 ** len(places)), len((digits + places).lstrip("0"))


def agree(gold: Quantity, pred: Quantity, tolerance: float | None = None, *, unit_required: bool = False) -> bool:
    """Whether two plain numbers are the same answer.

    Equal exactly, in units of the same quantity (5 cm is 50 mm; a unit may be left out unless it is required); or
    within `tolerance`; or what `is_rounding` allows. 20 and 20% are the same (the question asked for percent), 0.2 and
    20% too; but a gold below 1 without a sign is no number of percent: 0.5 is not 0.5%.
    """
    gold_value, pred_value = gold.value, pred.value
    if gold.unit and pred.unit:
        if gold.unit.dimensions != pred.unit.dimensions:
            return False
        if gold.unit.factor != pred.unit.factor:
            pred_value *= pred.unit.factor / gold.unit.factor
    elif unit_required and gold.unit:
        return False
    readings = [pred_value]
    if gold.percent != pred.percent:
        readings.append(pred_value / 100 if pred.percent else pred_value * 100)
        if pred.percent and abs(gold_value) < 1:
            readings = readings[1:]
    if gold_value in readings:
        return True
    if tolerance is not None and abs(gold_value - pred_value) <= Fraction(tolerance):
        return True
    return gold.last_digit is None and pred.slack is not None and is_rounding(gold_value, pred_value, pred.slack)


def is_rounding(exact: Fraction, decimal: Fraction, last_digit: Fraction) -> bool:
    """Whether `decimal` is `exact`, which has no decimal, rounded or cut there: 0.666667 and 0.666666 for 2/3."""
    if has_decimal(exact):
        return False
    off = exact - decimal
    return abs(off) <= last_digit / 2 or (0 <= off < last_digit if exact > 0 else -last_digit < off <= 0)


def has_decimal(value: Fraction) -> bool:
    """Whether the value can be written with finitely many decimals: integers and 7/4 can, 1/3 cannot."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
