from fractions import Fraction as F

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.grading.latex_text import clean
from soup_verl.tasks.grading.quantities import MAX_NUMBER, agree, as_latex, parse_quantity, split_unit
from soup_verl.tasks.grading.units import read_unit


def read(text, unit=""):
    return parse_quantity(clean(text), clean(unit))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", F(5)),
        ("-5", F(-5)),
        ("+2", F(2)),
        ("007", F(7)),
        (".35625", F(35625, 100000)),
        ("5.", F(5)),
        ("-1./3", F(-1, 3)),
        ("1/3", F(1, 3)),
        (r"\frac{14}{3}", F(14, 3)),
        (r"-\frac{-1}{2}", F(1, 2)),
        (r"\frac43", F(4, 3)),
        (r"1\frac{4}{5}", F(9, 5)),
        (r"-137 \frac{1}{2}", F(-275, 2)),
        ("2 1/4", F(9, 4)),
        ("1,234,567", F(1234567)),
        (r"10,\!080", F(10080)),
        ("1 234", F(1234)),
        ("3.83e35", F(383) * 10**33),
        (r"3.83 \times 10^{35}", F(383) * 10**33),
        (r"3.83 \cdot 10^{-2}", F(383, 10**4)),
        ("10^{-3}", F(1, 1000)),
        (r"10^{2}", F(100)),
        (r"\$32,\!348", F(32348)),
        ("5.4 million", F(5_400_000)),
    ],
)
def test_plain_numbers_are_read_exactly(text, value):
    assert read(text).value == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "-", ".", "5 7", "1,23", "12,34", "1,2345", "1/0", r"\frac{1}{0}", "2^{10}", "5+2", "52_8", r"\sqrt{4}"]
    + [
        "1e99999",
        "5x",
        "6m",
        "7!",
        "1/2/3",
        "--5",
        "e5",
        "٣",
        r"5 \text{ or } 7",
        r"5 \text{ mod } 7",
        r"5 \text{ or more}",
        "nan",
        "inf",
    ],
)
def test_anything_else_is_no_plain_number(text):
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "unit", "body", "name"),
    [
        (r"5.4 \text{ cents}", "", "5.4", "cents"),
        (r"864 \mbox{ inches}^2", "", "864", "in^2"),
        (r"3 \text{ m}/\text{s}", "", "3", "m/s"),
        (r"288\pi \text{ cm}^3", "", r"288\pi", "cm^3"),
        ("45 minutes", "", "45", "min"),
        ("90°", "", "90", "degree"),
        ("6m", "", "6m", ""),
        ("6m", "m", "6", "m"),
        ("166cm^2", "$cm^2$", "166", "cm^2"),
        (r"18 \text{ eggs}", "", "18", ""),
        (r"\text{cm}", "", r"\text{cm}", ""),
        (r"\$5", "", "5", "dollar"),
        ("-5€", "", "-5", "euro"),
    ],
)
def test_units_come_off(text, unit, body, name):
    measured = split_unit(clean(text), clean(unit))
    assert (measured.body, measured.unit) == (body, read_unit(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\text{centimeters}", "cm"),
        (r"\text{m s}^{-2}", "m/s^2"),
        ("square inches", "in^2"),
        ("km per hour", "kph"),
        (r"\frac{\text{m}}{\text{s}}", "m/s"),
    ],
)
def test_one_unit_whatever_it_is_called(one, other):
    assert read_unit(one) == read_unit(other) is not None


def test_units_that_differ():
    assert read_unit("apples") is None
    assert (
        read_unit("cm").dimensions == read_unit("km").dimensions
        and read_unit("km").factor == 100_000 * read_unit("cm").factor
    )
    assert read_unit("cm^2").dimensions != read_unit("cm").dimensions


@pytest.mark.parametrize(
    ("gold", "pred", "same"),
    [
        ("0.5", "1/2", True),
        ("7", "7.0000001", False),
        ("62.5%", "62.5", True),
        ("62.5%", "0.625", True),
        ("62.5%", r"0.625\%", False),
        ("20", r"20\%", True),
        ("0.5", r"0.5\%", False),
        (r"5 \text{ cm}", r"50 \text{ mm}", True),
        ("0.2", r"20\%", True),
        (r"5 \text{ km}", r"5 \text{ m}", False),
        (r"5 \text{ km}", "5 kilometers", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("1/3", "0.333335", False),
        ("0.333", "0.333333", False),
        ("1e-8", "0", False),
        ("1e-8", "0.0000000", False),
    ],
)
def test_agreement(gold, pred, same):
    assert agree(read(gold), read(pred)) is same


def test_the_unit_that_was_asked_for_needs_no_upright_text():
    assert read("5 m") is None  # 5 times m
    assert agree(read(r"5 \text{ km}"), read("5 m", "m")) is False
    assert agree(read(r"5 \text{ m}"), read("5 m", "m")) is True


@pytest.mark.parametrize(("pred", "same"), [("4.1", True), ("4.3", True), ("4.31", False), ("4.0999", False)])
def test_a_tolerance_is_absolute_and_includes_its_ends(pred, same):
    assert agree(read("4.2"), read(pred), tolerance=0.1 + 1e-12) is same


@given(st.fractions(), st.fractions())
def test_fractions_agree_only_with_themselves(a, b):
    gold, pred = read(f"\\frac{{{a.numerator}}}{{{a.denominator}}}"), read(f"{b.numerator}/{b.denominator}")
    assert agree(gold, pred) is (a == b)


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("1.5e3", r"1.5\cdot10^{3}"),
        ("-2E-07", r"-2\cdot10^{-7}"),
        (r"1,234\times10^{2}", r"1234\cdot10^{2}"),
        ("10^{-3}", "10^{-3}"),
        ("+1,234", "1234"),
        ("-5", "-5"),
        ("2e", "2e"),
        (r"1,2\pi", r"1,2\pi"),
    ],
)
def test_a_plain_number_is_spelled_as_a_parser_reads_it(text, latex):
    assert as_latex(text) == latex


def test_a_number_that_python_would_not_read_is_none():
    assert read("7" * MAX_NUMBER) is not None and read("7" * (MAX_NUMBER + 1)) is None
    assert read("0." + "7" * 5000) is None


@pytest.mark.parametrize("words", ["minus one", "squared", "plus two", "times three", "factorial"])
def test_words_that_calculate_are_no_unit(words):
    assert read(rf"5\text{{ {words}}}") is None
