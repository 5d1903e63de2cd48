"""Units of measure: `cm^2`, `m/s`, `km per hour`, `square inches`. What each measures, and how much of it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

_TABLE = {
    "length": "m:1 meter:1 metre:1 cm:1/100 centimeter:1/100 centimetre:1/100 mm:1/1000 millimeter:1/1000 "
    "millimetre:1/1000 km:1000 kilometer:1000 kilometre:1000 in:127/5000 inch:127/5000 ft:381/1250 foot:381/1250 "
    "feet:381/1250 yd:1143/1250 yard:1143/1250 mi:201168/125 mile:201168/125 厘米:1/100 米:1 千米:1000 公里:1000",
    "time": "s:1 sec:1 second:1 min:60 minute:60 h:3600 hr:3600 hour:3600 day:86400 week:604800 秒:1 分钟:60 小时:3600 "
    "天:86400 ms:1/1000 millisecond:1/1000",
    "year": "year:1 yr:1 month:1/12 年:1",
    "mass": "kg:1 kilogram:1 g:1/1000 gram:1/1000 mg:1/1000000 milligram:1/1000000 "
    "ton:1000 tonne:1000 千克:1 克:1/1000",
    "weight": "lb:16 oz:1 ounce:1",  # not of mass: a pound of 0.4536 kg is a rounded one
    "volume": "l:1000 liter:1000 litre:1000 ml:1 milliliter:1 millilitre:1",
    "gallon": "gallon:8 gal:8 quart:2 qt:2 pint:1",
    "angle": "degree:1 deg:1 °:1 度:1",
    "radian": "radian:1 rad:1",
    "dollar": "dollar:1 usd:1 $:1 cent:1/100 ¢:1/100",
    "euro": "euro:1 eur:1 €:1",
    "sterling": "£:1 gbp:1 pence:1/100",
    "yuan": "yuan:1 元:1 rmb:1 cny:1",
    "yen": "yen:1 ¥:1 jpy:1",
    "rupee": "rupee:1 rs:1 inr:1 ₹:1",
    "frequency": "hz:1 hertz:1 khz:1000 mhz:1000000",
    "energy": "j:1 joule:1 kj:1000",
    "force": "newton:1 n:1 kn:1000",
    "power": "watt:1 w:1 kw:1000",
    "voltage": "v:1 volt:1",
    "current": "a:1 ampere:1 amp:1",
    "pressure": "pa:1 pascal:1 kpa:1000",
    "electronvolt": "ev:1 kev:1000 mev:1000000",
    "temperature": "k:1 kelvin:1",
    "celsius": "c:1 celsius:1 °c:1 ℃:1",
    "fahrenheit": "f:1 fahrenheit:1 °f:1",
    "amount": "mol:1 mole:1",
    "unit": "unit:1",
    "morning": "am:1 a.m.:1",
    "evening": "pm:1 p.m.:1",
}
_UNITS = {
    word: (dimension, Fraction(factor))
    for dimension, line in _TABLE.items()
    for word, factor in (entry.rsplit(":", 1) for entry in line.split())
}
_SPEEDS = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "mps": "m/s", "fps": "ft/s", "sqft": "ft^2"}
_TOKEN = re.compile(r"\^-?[0-9]|/|[^\W\d_]+(?:\.[A-Za-z]\.)?|[°$€£¥₹¢][CFcf]?")
_PREFIXES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}


@dataclass(frozen=True)
class Unit:
    """`dimensions`: (quantity, exponent) pairs in order, `factor`: how many base units it is."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction


@functools.lru_cache(maxsize=512)
def read_unit(text: str) -> Unit | None:
    r"""The unit that `text` (in normal form) names, None for a noun: `\text{apples}`."""
    if fraction := re.fullmatch(r"\\frac\{(.*)\}\{(.*)\}", text):
        text = f"{fraction[1]}/{fraction[2]}"
    text = re.sub(r"\^\{(-?[0-9])\}", r"^\1", text)
    text = re.sub(r"\\text\b|\\cdot ?|[{}\\]", " ", text)
    exponents: dict[str, int] = {}
    factor = Fraction(1)
    sign, power = 1, 1
    tokens = _TOKEN.findall(_written_out(text))
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        if token[0] == "^":
            continue  # of the word before
        if token in ("/", "per"):
            sign = -1
        elif token in _PREFIXES:
            power = _PREFIXES[token]
        elif (name := _known(token)) is None:
            return None
        else:
            dimension, size = _UNITS[name]
            exponent = sign * power * (int(following[1:]) if following[:1] == "^" else 1)
            exponents[dimension] = exponents.get(dimension, 0) + exponent
            factor *= size**exponent
            sign, power = 1, 1
    if not exponents:
        return None
    return Unit(tuple(sorted((d, e) for d, e in exponents.items() if e)), factor)


def _written_out(text: str) -> str:
    return " ".join(_SPEEDS.get(word.lower(), word) for word in text.split())


def _known(word: str) -> str | None:
    lower = word.lower()
    names = (lower, lower.removesuffix("s"), lower.removesuffix("es"))
    return next((name for name in names if name in _UNITS), None)
