"""What runs math-verify: a script whose forks (`fork_server.py`) say whether two expressions are equal.

It imports math-verify once and warms the LaTeX parser up. A request is `comparison.Question` as a dictionary, the
verdict true or false. Of an answer's text sympy evaluates its numbers, digits and a point, and nothing else
(`Integer (12 )`).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Abs, Expr, Float, I, N, Rational, Symbol, ceiling, floor, fraction, nan, sign, simplify, together, zoo  # type: ignore[import-untyped]

from soup_verl.tasks.grading.fork_server import run_as_script

WARM_UP = (
    r"\frac{1}{2}+\sqrt[3]{x}",
    r"2\pi n^{2}-\sin(2t)+\cos\left(\frac{\pi}{3}-x\right)",
    r"(x+1)(x^{2}-3x+2)-(5x-7y+11z+4)",
    r"\frac{z_{1}+2z_{2}}{3}+\frac{-1+\sqrt{5}}{2}",
    r"\log_{2}8+\ln x",
    r"\binom{n}{2}e^{-at}",
    r"\frac{n!}{(n-k)!}",
    r"1+2\sqrt{3}i",
    r"|x-1|+2^{n-1}",
)
_STEPS = (floor, ceiling, sign)  # constant in places
_RELATIVE_PRECISION = 1e-12  # of two values that are to be equal; a decimal in an answer is read with 15 digits
_DIGITS = 30  # working precision, decimal digits
_EXACT_DIGITS = 400  # of a second look, where both are exact
_EXACT_PRECISION = 300  # digits of those that have to agree


class Unparsed(Exception):
    """LaTeX that math-verify does not read as one expression."""


@functools.lru_cache(maxsize=256)  # one expected answer, many responses
def parse_latex(latex: str) -> Any:
    """`latex` as a sympy expression. Only LaTeX: math-verify's plain-text route, which ends in `parse_expr`, is off."""
    config = LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
        ),
    )
    found = parse(f"${latex}$", [config], "no_fallback", "first_match", parsing_timeout=None)
    if len(found) != 1 or not isinstance(found[0], Expr):
        raise Unparsed(latex)
    return found[0].xreplace({symbol: _symbol(symbol.name) for symbol in found[0].free_symbols})


def _symbol(name: str) -> Any:
    """One meaning a name: math-verify takes `i` for a variable in `2i`, and variables for real only where it does."""
    return I if name == "i" else Symbol(name, real=True)


def answer(request: dict[str, Any]) -> bool:
    """The verdict on `comparison.Question`, as a dictionary; with a `response`, on `math_verify_alone`.

    Raises:
        Unparsed: one of them is not an expression.
    """
    if "response" in request:
        return math_verify_alone(request["gold"], request["response"])
    gold, pred = parse_latex(request["gold"]), parse_latex(request["pred"])
    if request["relation"]:
        return _same_relation(gold, pred, must_be_positive=request["relation"] == "<")
    if request["last_digit"] is not None and _is_rounding(gold, pred, request["last_digit"]):
        return True
    return _equal(gold, pred, request["within"])


def math_verify_alone(gold: str, response: str) -> bool:
    """What math-verify itself says, with the targets that verl's own reward (`reward_score/math_verify.py`) gives it.

    Only `soup_verl.grade` asks, to compare: unlike everything else here this reads plain text with sympy's parser.
    """
    expected = parse(rf"\boxed{{{gold}}}", [LatexExtractionConfig()], parsing_timeout=None)
    given = parse(response, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    return any(verify(g, p, timeout_seconds=None) for g in expected for p in given)


def _same_relation(gold: Any, pred: Any, *, must_be_positive: bool) -> bool:
    """Whether the differences of the sides of two relations are equal up to a constant factor; of equations also up to
    denominators, as in xy = 1 and y = 1/x."""
    factor = simplify(gold / pred)
    if must_be_positive:
        return bool(factor.is_number and factor.is_positive)
    if not factor.is_number:
        factor = simplify(fraction(together(gold))[0] / fraction(together(pred))[0])
    return bool(factor.is_number and factor.is_finite and factor.is_zero is False)


def _is_rounding(gold: Any, pred: Any, last_digit: float) -> bool:
    """Whether `pred` is `gold`, which is no decimal, rounded or cut at the last digit."""
    gold = gold.doit()
    if gold.is_rational and not (isinstance(gold, Rational) and not _has_decimal(gold.q)):
        return False
    exact, decimal = _value(gold), _value(pred)
    if exact is None or decimal is None or not (exact.is_real and decimal.is_real) or gold.free_symbols:
        return False
    off = exact - decimal
    is_cut = 0 <= off < last_digit if exact > 0 else -last_digit < off <= 0
    return bool(abs(off) <= last_digit * (0.5 + 1e-9) or is_cut)


def _has_decimal(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _symbolic_equal(gold: Any, pred: Any) -> bool:
    return bool(verify(gold, pred, strict=True, timeout_seconds=None))


def _value(expression: Any, digits: int = _DIGITS) -> Any | None:
    """The expression as a number, with its symbols at fixed points; None where it has no finite value there."""
    symbols = sorted(expression.free_symbols, key=str)
    points = {
        s: Float("0.61803398874989484820", digits) + Float(sum(map(ord, s.name)) % 97, digits) / 89 for s in symbols
    }
    value = N(expression.subs(points), digits)
    return value if value.is_number and value.is_finite else None


def _equal(gold: Any, pred: Any, within: float | None) -> bool:
    """Equal to math-verify, and in value.

    Math-verify rounds to 6 decimals and drops what is small: 1e-8 and 0 are equal to it. So the distance, relative to
    the size, has to agree first, to 12 digits where one is a decimal and to 300 where both are exact: sqrt(10^40+1) is
    not 10^20. `within` is an absolute distance that replaces both: a tolerance, or what the digits of a decimal answer
    leave open.
    """
    if gold.has(zoo, nan) or pred.has(zoo, nan):
        return False  # neither is equal to itself
    a, b = _value(gold), _value(pred)
    if a is None or b is None:  # an undefined function, say
        return bool(gold.free_symbols) and within is None and _symbolic_equal(gold, pred)
    if within is not None:
        return bool(Abs(a - b) <= within)
    if not Abs(a - b) <= _RELATIVE_PRECISION * max(Abs(a), Abs(b)):
        return False
    if gold.has(Float) or pred.has(Float):
        return _symbolic_equal(gold, pred)
    return _agree_exactly(gold, pred) and (_symbolic_equal(gold, pred) or _agree_everywhere(gold, pred))


def _agree_everywhere(gold: Any, pred: Any) -> bool:
    """Whether two expressions with variables are equal wherever both are real, of points of both signs: ln(ab) is
    ln a + ln b, the root of x^2 is not x. Math-verify does not simplify all of these.

    The points are fractions, so that the difference is known to any digit: 10^400 x + 1 is not 10^400 x.
    """
    symbols = sorted(gold.free_symbols | pred.free_symbols, key=str)
    if not symbols or gold.has(*_STEPS) or pred.has(*_STEPS):
        return False
    agreed = 0
    for directions in itertools.product((1, -1), repeat=min(len(symbols), 4)):
        points = {
            symbol: direction * Rational(61 * (sum(map(ord, symbol.name)) % 89) + 97 * i + 59, 83)
            for i, (symbol, direction) in enumerate(zip(symbols, itertools.cycle(directions), strict=False))
        }
        a, b = N(gold.subs(points), _DIGITS), N(pred.subs(points), _DIGITS)
        if not (a.is_real and b.is_real and a.is_finite and b.is_finite):
            continue
        difference = (gold - pred).subs(points).evalf(5, maxn=2 * _EXACT_DIGITS)
        if not Abs(difference) <= Float(10, _EXACT_DIGITS) ** -_EXACT_PRECISION:
            return False
        agreed += 1
    return agreed > 0


def _agree_exactly(gold: Any, pred: Any) -> bool:
    a, b = _value(gold, _EXACT_DIGITS), _value(pred, _EXACT_DIGITS)
    if a is None or b is None:
        return False
    return bool(Abs(a - b) <= Float(10, _EXACT_DIGITS) ** -_EXACT_PRECISION * max(Abs(a), Abs(b)))


def warm_up() -> None:
    """Fill the parser's tables."""
    for latex in WARM_UP:
        expression = parse_latex(latex)
        _symbolic_equal(expression, expression + 1)


if __name__ == "__main__":
    run_as_script(answer, warm_up)
