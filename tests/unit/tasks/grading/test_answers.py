"""Structure only: `decide` is a fake that knows no mathematics, so what is right here is right without math-verify."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.grading.answers import Comparison
from soup_verl.tasks.grading.comparison import MAX_PARTS, Question, Undecided
from soup_verl.tasks.grading.scalars import is_allowed, short_variables


def never(question):
    raise AssertionError(f"asked about {question}")


def same(gold, pred, **row):
    return Comparison(decide=never, **row).same(gold, pred)


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        ("5", "x = 5"),
        ("x=5", "5"),
        ("f(x)=2x", "2x"),
        ("90", r"\angle ABC = 90^\circ"),
        ("5", r"\text{Area} = 5"),
        ("1,-2", "-2, 1"),
        ("1,-2", "x=1, x=-2"),
        ("1,3", r"\{3, 1\}"),
        ("1,3", r"3 \text{ and } 1"),
        ("-2,-2", "-2, -2"),
        ("1234, 5678", "1,234, 5,678"),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
        ("(2,4)", r"\left( 2.0, \frac{8}{2} \right)"),
        ("(1,2),(3,4)", "(3,4), (1,2)"),
        (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty, 2)"),
        (r"(2,\infty)", r"(2,+\infty)"),
        (r"[-2,7]", r"x \in [-2,7]"),
        (r"k \geqslant 2", r"2 \le k"),
        (r"\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}", r"\begin{bmatrix}1\\\frac12\end{bmatrix}"),
        (r"\text{(C)}", "C"),
        ("C", r"\textbf{(C)}"),
        (r"\text{Evelyn}", "evelyn"),
    ],
)
def test_right_without_asking(gold, pred):
    assert same(gold, pred)


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        ("7", "12=7"),
        ("7", "x=12=7"),
        ("7", "3+4=7"),
        ("7", r"x \ge 7"),
        ("7", r"\pm 7"),
        ("7", "7, 7"),
        ("7", "7;8"),
        ("7", r"7 \text{ or } 8"),
        ("7", "0,1,2,3,4,5,6,7,8,9"),
        ("7", r"\{0,1,2,3,4,5,6,7,8,9\}"),
        ("7", "[0,9]"),
        ("7", "[7,7]"),
        ("7", r"0 \le x \le 9"),
        ("7", r"7\text{ million}"),
        ("7", ""),
        ("7", r"\begin{cases}7\\8\end{cases}, 7"),
        ("x=5", "y=5"),
        ("1,-2", "1"),
        ("1,-2", "1,-2,3"),
        ("1,-2", "1,1"),
        ("1,3", "(1,3)"),
        ("(2,4)", "(4,2)"),
        ("(2,4)", "[2,4]"),
        ("(2,4)", "2,4"),
        (r"k \geqslant 2", "k > 2"),
        (r"k \geqslant 2", r"k \le 2"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1 & 2\end{pmatrix}"),
        ("C", "A, B, C, D, E"),
        ("C", "ABCDE"),
        ("C", "c"),
        (r"\text{even}", r"\text{odd}"),
        ("6m", "6"),
        ("2k+2", "2K+2"),
        ("2n", "n, 2n"),
    ],
)
def test_wrong_without_asking(gold, pred):
    assert not same(gold, pred)


@pytest.mark.parametrize(
    "pred",
    [r"5 \bmod 7", r"\int_0^7 1 dx", r"\sum_{k=1}^7 1", r"\gcd(7,14)", r"\lfloor 7.5 \rfloor", "7 8", "7_8", "(7)8"]
    + [r"7\\8", "7|8", "7||", ")7(", "((7)", r"\begin{cases}7\\8\end{cases}", r"\input{x}", "7;", "7@", "7\x00", "٧"]
    + ["(" * 20 + "7" + ")" * 20, "7" + "+0" * 200, "__import__('os')", r"\mathbb{Z}", "7" * 401 + "!"],
)
def test_what_is_no_plain_expression_is_not_handed_on(pred):
    try:
        assert not same("7", pred)
    except Undecided as error:
        assert error.reason == "not_allowed"


@pytest.mark.parametrize(
    ("gold", "pred", "row", "question"),
    [
        ("7", "3+4", {}, Question("7", "3+4")),
        (r"\sqrt{2}", "1.414214", {}, Question(r"\sqrt{2}", "1.414214", last_digit=1e-6)),
        (r"\sqrt{2}", "1.4142", {}, Question(r"\sqrt{2}", "1.4142")),
        (r"\sqrt{2}", "1.4", {"tolerance": 0.1}, Question(r"\sqrt{2}", "1.4", within=0.1)),
        (r"288\pi", r"\pi 12^2 \cdot 2 \text{ cm}^3", {}, Question(r"288\pi", r"\pi12^{2}\cdot2")),
        ("x-y=3", "y-x=-3", {}, Question("(x-y)-(3)", "(y-x)-(-3)", relation="=")),
        (r"\lfloor n \rfloor", r"\lfloor n+0 \rfloor", {}, Question(r"\lfloor n\rfloor", r"\lfloor n+0\rfloor")),
        ("E_1+N", "N+E_{1}", {}, Question("z_{1}+z_{2}", "z_{2}+z_{1}")),
        (r"\frac{41}{12}+0", r"\frac{82}{24}+0 km", {"unit": "km"}, Question(r"\frac{41}{12}+0", r"\frac{82}{24}+0")),
    ],
)
def test_what_is_asked(gold, pred, row, question):
    asked = []
    assert Comparison(decide=lambda q: asked.append(q) or True, **row).same(gold, pred)
    assert asked == [question]


@pytest.mark.parametrize(
    ("gold", "pred", "row", "right"),
    [
        ("4.2", r"4.3\%", {"tolerance": 0.11, "unit": "%"}, True),
        ("4.2", "4.4", {"tolerance": 0.11, "unit": "%"}, False),
        ("45", "45 minutes", {"unit": "minute"}, True),
        ("166", "166 cm^2", {"unit": "$cm^2$"}, True),
        ("45", r"45 \text{ seconds}", {"unit": "minute"}, True),  # the gold's own text states no unit
        ("100,200", "200, 100", {"multiple": True}, True),
        ("100,200", "100200", {"multiple": True}, False),
        ("100,200", "100200", {}, True),
    ],
)
def test_what_the_row_says(gold, pred, row, right):
    assert same(gold, pred, **row) is right


def test_one_part_without_a_verdict_does_not_hide_that_another_is_missing():
    def decide(question):
        if "9" in question.pred:
            raise Undecided("timeout")
        return question.gold == question.pred.removesuffix("+0")

    with pytest.raises(Undecided, match="timeout"):
        Comparison(decide=decide).same(r"\pi,2\pi", r"\pi+0, 9\pi!")
    assert not Comparison(decide=decide).same(r"\pi", r"2\pi+0")


def test_long_lists_are_not_compared():
    numbers = ",".join(str(n) for n in range(1000, 1000 + MAX_PARTS + 1))
    assert not same(numbers, numbers.replace("1000", "1000.0"))


def test_variables_that_the_parser_would_confuse_are_renamed_alike():
    assert short_variables("N-n", "n-N") == ("z_{1}-n", "n-z_{1}")
    assert short_variables(r"\lambda_{\text{red}}\Delta E_{1}", "E_{1}") == (r"z_{1}z_{2} z_{3}", "z_{3}")


def test_allowed():
    assert is_allowed(r"\frac{1}{2}+|x|", frozenset())
    assert not is_allowed("", frozenset())
    assert is_allowed(r"\lfloor x\rfloor", frozenset({"lfloor", "rfloor"}))


@given(st.text(alphabet=r"\{}()[],;=<>|^_.-+0123456789xyzpmfrac !\"'&%$", max_size=60), st.booleans())
def test_never_raises_on_text(text, multiple):
    comparison = Comparison(decide=lambda q: False, multiple=multiple)
    for gold in ("7", r"1,\pi", "(2,4)", "x=5", r"\begin{pmatrix}1\\2\end{pmatrix}"):
        try:
            assert comparison.same(gold, text) in (True, False)
        except Undecided as error:
            assert error.reason == "not_allowed"


def undecided(gold, pred):
    with pytest.raises(Undecided) as caught:
        Comparison(decide=lambda question: True).same(gold, pred)
    return caught.value.reason


@pytest.mark.parametrize(("gold", "pred"), [("5", "5'"), ("x+1", "x'+1"), ("f''+1", "f'+1")])
def test_a_prime_is_not_dropped(gold, pred):
    assert undecided(gold, pred) == "not_allowed"


@pytest.mark.parametrize("pred", ["1.234567e9999", r"-1.234567\times10^{9999}"])
def test_a_decimal_whose_slack_no_float_holds_is_not_asked_about(pred):
    assert undecided(r"\sqrt{2}", pred) == "not_allowed"


@pytest.mark.parametrize(
    ("gold", "pred", "asked_for"),
    [("2e", "1.00000e2", r"1.00000\cdot10^{2}"), (r"\sqrt{2250000}", "1.5e3", r"1.5\cdot10^{3}")],
)
def test_powers_of_ten_are_asked_about_as_such(gold, pred, asked_for):
    """1.00000e2 would be 1 times e times 2 to the parser."""
    asked = []
    Comparison(decide=lambda question: bool(asked.append(question))).same(gold, pred)
    assert [question.pred for question in asked] == [asked_for]
