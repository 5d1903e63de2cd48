import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.grading.boxes import last_box
from soup_verl.tasks.grading.brackets import split_top, unwrap
from soup_verl.tasks.grading.latex_text import clean
from soup_verl.tasks.grading.words import is_upright, say


@pytest.mark.parametrize(
    ("text", "content", "reason"),
    [
        (r"so \boxed{5}.", "5", ""),
        (r"\boxed{4}, no: \boxed{5}", "5", ""),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", ""),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", ""),
        (r"\boxed {5}", "5", ""),
        (r"\boxed{a \boxed{5} b}", "5", ""),  # the last that was opened
        (r"\boxed{5} and \boxed", "5", ""),
        (r"\boxed{}", "", ""),
        ("5", None, "no_box"),
        ("", None, "no_box"),
        (r"\boxed 5", "5", ""),
        (r"so $\boxed 12$", "12", ""),
        (r"\boxed 12", None, "no_box"),  # TeX boxes the 1
        (r"with \boxed as asked", None, "no_box"),
        (r"\boxed{4} then \boxed{5", None, "unclosed_box"),  # no falling back to an answer that was given up
        (r"\boxed{5\}", None, "unclosed_box"),
        ("\\boxed{5\\", None, "unclosed_box"),
        (r"\boxed{" + "9" * 21 + "}", None, "too_long"),
        (r"\boxed{" + "9" * 20 + "}", "9" * 20, ""),
        (r"\boxed{" + "9" * 500, None, "too_long"),
    ],
)
def test_the_last_box_and_no_other(text, content, reason):
    assert last_box(text, max_chars=20) == (content, reason)


@pytest.mark.parametrize("junk", [r"\boxed{", r"\boxed", r"\boxed ", "{", "}", "\\", r"\boxed{}{", "\\boxed{\\"])
def test_a_box_in_junk_is_found_in_linear_time(junk):
    start = time.process_time()
    last_box(junk * (200_000 // len(junk)), max_chars=1000)
    assert time.process_time() - start < 0.5  # seconds; quadratic would be minutes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\tfrac{1}2", r"\frac{1}{2}"),
        (r"\frac 59", r"\frac{5}{9}"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt[3]7", r"\sqrt[3]{7}"),
        ("x^2", "x^{2}"),
        ("52_8", "52_{8}"),
        (r"10,\!080", "10080"),
        (r"11,\! 111,\! 100", "11111100"),
        ("1{,}234", "1234"),
        (r"90^\circ", r"90^{\circ}"),
        (r"90\degree", "90°"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"$18.90", "18.90"),
        ("$5$", "5"),
        (r"\mathrm{cm}", r"\text{ cm }"),
        (r"\mathbf{2340}", "2340"),
        (r"\text{two  words }", r"\mathrm{two words}"),
        (r"1 \text{ and } 2", "1,2"),
        ("1 or 2", "1,2"),
        (r"x \geqslant 2", r"x\ge 2"),
        ("−5", "-5"),
        ("3×4", r"3 \times 4"),
        ("(+2,5)", "(2,5)"),
        ("5.", "5"),
    ],
)
def test_spellings_of_the_same_answer(one, other):
    assert clean(one) == clean(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("5 7", "57"), (r"\pi r", r"\pir"), ("1, 234", "1,234"), (r"5\\7", "57"), ("x^{2}3", "x^{23}"), ("5.7", "57")]
    + [(r"\text{or more}", r"\text{ormore}")],
)
def test_different_answers_stay_different(one, other):
    assert clean(one) != clean(other)


@given(st.text())
def test_cleaning_never_raises_and_is_done_at_once(text):
    assert isinstance(clean(text), str)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"\text{(C)}", "C"),
        ("(C)", "C"),
        ("C", "C"),
        ("c", "c"),
        (r"\text{East}", "east"),
        ("AB", "AB"),
        ("N-n", None),
        (r"\pi", None),
        ("5", None),
        ("A,B", None),
    ],
)
def test_words(text, said):
    assert say(text) == said


def test_upright_text_only():
    assert is_upright(r"\text{even}") and not is_upright("even") and not is_upright(r"5\text{cm}")


def test_splitting_respects_brackets():
    assert split_top("(1,2),3,[4,5)", ",") == ["(1,2)", "3", "[4,5)"]
    assert split_top(r"f(a,b)\cup g", r"\\cup ?") == ["f(a,b)", "g"]
    assert split_top("", ",") == [""]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(0,1]", ("(", "0,1", "]")),
        (r"\{1\}", (r"\{", "1", r"\}")),
        ("(1)+(2)", None),
        ("5", None),
        ("((1)", None),
    ],
)
def test_one_bracket_from_end_to_end(text, parts):
    assert unwrap(text) == parts
