"""Plain numbers in answers: decimals, fractions, mixed numbers, powers of ten, percent, units. Exact, in Python alone.

Texts are as `latex_text.clean` leaves them: no spaces but between digits, `\\text{...}` for any upright text, `°` for
degrees, no currency signs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

ENOUGH_DIGITS = 6  # a decimal answer with this many significant digits may stand for what it rounds
MAX_NUMBER = 1000  # characters; a longer one is right in the very spelling of the expected answer only

_DECIMAL = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"([+-]?{_DECIMAL})"
_EXPONENT = r"\{?([+-]?[0-9]{1,4})\}?"
_FRACTION = re.compile(
    # 1\frac{2}{3}, \frac{2}{3}, 1 2/3, 2/3
    rf"([0-9]*)\\frac\{{{_SIGNED}\}}\{{{_SIGNED}\}}|(?:([0-9]+) )?({_DECIMAL})/({_DECIMAL})"
)
_POWER = re.compile(rf"({_DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*|x)10\^){_EXPONENT}|10\^{_EXPONENT}")
_PLAIN = re.compile(_DECIMAL)
_TEXT = r"\\text\{[A-Za-z .,/-]*\}"
_UNIT = re.compile(rf"(?:{_TEXT})(?:(?:/|\\cdot)?{_TEXT}|\^\{{-?[0-9]\}})*$")
_BARE_UNIT = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?:/[A-Za-z]+)?(?:\^\{[23]\})?$")
_SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNIT = frozenset(
    ["and", "or", "to", "mod", "not", "from", "through", "between", "none", "any", "all", "of", "is"]
    + ["plus", "minus", "times", "over", "less", "more", "divided", "multiplied", "squared", "cubed", "power", "root"]
    + ["half", "factorial", "negative", "choose"]
)
_SYNONYMS = (
    "m meter metre",
    "cm centimeter centimetre",
    "mm millimeter millimetre",
    "km kilometer kilometre",
    "in inch inche",
    "ft foot feet",
    "yd yard",
    "mi mile",
    "s sec second",
    "min minute",
    "h hr hour",
    "day",
    "week",
    "month",
    "year yr",
    "g gram",
    "kg kilogram",
    "lb pound",
    "oz ounce",
    "l liter litre",
    "ml milliliter millilitre",
    "cent",
    "dollar usd",
    "degree deg °",
    "radian rad",
    "unit squareunit squnit cubicunit",
    "km/h kph kmph",
    "mph mile/hour miles/hour",
    "m/s",
    "kelvin",
    "hz hertz",
    "joule",
    "newton",
    "watt",
    "volt",
    "ev",
)
_KNOWN = {word: names.split()[0] for names in _SYNONYMS for word in names.split()}


@dataclass(frozen=True)
class Measured:
    """A text without its unit. `scale` is what words such as "million" multiply by."""

    body: str
    unit: str = ""
    percent: bool = False
    scale: int = 1


@dataclass(frozen=True)
class Quantity:
    """A plain number.

    Attributes:
        value: exact, without regard to a percent sign.
        percent: whether a percent sign followed.
        unit: as `unit_name` has it, "" for none or one that is not known.
        last_digit: what the last digit of a decimal counts, so 0.01 for 3.14; None for integers and fractions.
        digits: significant digits of a decimal, 0 for others.
    """

    value: Fraction
    percent: bool = False
    unit: str = ""
    last_digit: Fraction | None = None
    digits: int = 0

    @property
    def slack(self) -> Fraction | None:
        """How far from the true value the decimal may lie for having been cut or rounded; None: not at all."""
        return self.last_digit if self.digits >= ENOUGH_DIGITS else None


def unit_name(text: str) -> str:
    """One name for the known spellings of a unit (`centimeters`, `cm^{2}` -> `cm`), "" for what is not known."""
    word = re.sub(r"\\text|\^\{-?[0-9]\}|[{} .$\\]", "", text).lower()
    return _KNOWN.get(word) or _KNOWN.get(word.removesuffix("s"), "")


def split_unit(text: str, unit: str = "") -> Measured:
    """Take a percent sign, a degree sign, a unit or a number word off the end of `text`.

    Args:
        text: cleaned answer.
        unit: the unit the answer is asked in; its letters need no `\\text` around them.
    """
    if match := re.search(r"(?:\\?%|\\text\{(?:percent|per cent)\}|(?<![A-Za-z])percent)$", text):
        return Measured(text[: match.start()], percent=True)
    if text.endswith("°"):
        return Measured(text[:-1], unit="degree")
    match = _UNIT.search(text) or _BARE_UNIT.search(text)
    if match is None or not match.start():
        return _split_asked_unit(text, unit)
    words = re.findall(r"[A-Za-z]+", match.group().replace(r"\text", ""))
    if not words or _NO_UNIT & {word.lower() for word in words}:
        return Measured(text)
    body = text[: match.start()]
    if words[0].lower() in _SCALES:
        return Measured(body, unit=unit_name("".join(words[1:])), scale=_SCALES[words[0].lower()])
    if not match.group().startswith(r"\text") and not unit_name(match.group()):
        return _split_asked_unit(text, unit)  # letters of an expression
    return Measured(body, unit=unit_name(match.group()))


def _split_asked_unit(text: str, unit: str) -> Measured:
    if unit and text.endswith(unit) and text != unit:
        return Measured(text.removesuffix(unit), unit=unit_name(unit), percent=unit == "%")
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
    number = _parse_unsigned(re.sub(r"^[+-]", "", measured.body))
    if number is None:
        return None
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


def agree(gold: Quantity, pred: Quantity, tolerance: float | None = None) -> bool:
    """Whether two plain numbers are the same answer.

    Equal exactly; or within `tolerance`; or `pred` is a decimal of at least `ENOUGH_DIGITS` digits and a fraction is
    less than one unit of its last digit away (cut and rounded decimals are). 20 and 20% are the same (the question
    asked for percent), 0.2 and 20% too. Two different known units never agree.
    """
    if gold.unit and pred.unit and gold.unit != pred.unit:
        return False
    readings = [pred.value]
    if gold.percent != pred.percent:
        readings.append(pred.value / 100 if pred.percent else pred.value * 100)
    if gold.value in readings:
        return True
    distance = abs(gold.value - pred.value)
    if tolerance is not None and distance <= Fraction(tolerance):
        return True
    return gold.last_digit is None and pred.slack is not None and distance < pred.slack
