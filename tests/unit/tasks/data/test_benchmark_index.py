import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.data.benchmark_index import BenchmarkIndex, normalise_question

QUESTION = r"A farmer sells $\frac{3}{4}$ of his $1,200$ apples at $0.50$ each. How many are left, and for what sum?"


def index_of(*questions: str) -> BenchmarkIndex:
    index = BenchmarkIndex()
    index.add("orchard", questions)
    return index


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTION,
        f"Read with care. {QUESTION} Give the product of both.",
        QUESTION.upper().replace(r"\FRAC", r"\frac"),
        QUESTION.replace("$", "").replace(" ", "\n  "),
        QUESTION.replace(r"\frac", r"\dfrac").replace("1,200", "1200"),
        QUESTION.replace("$1,200$", r"\(1{,}200\)").replace("left,", "left"),
    ],
)
def test_a_question_is_found_whatever_its_typesetting(prompt):
    assert index_of("Something else entirely, of at least 32 characters?", QUESTION).find(prompt) == (
        "question 2 of orchard"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTION.replace("1,200", "1,201"),
        QUESTION.replace("0.50", "50"),
        QUESTION[:-20],
        QUESTION.replace(r"\frac{3}{4}", "34"),
        "",
    ],
)
def test_another_question_is_not_found(prompt):
    assert index_of(QUESTION).find(prompt) is None


def test_numbers_are_whole():
    index = index_of("15 boxes hold the same number of eggs, in all 16")
    assert index.find("15 boxes hold the same number of eggs, in all 16. How many does one hold?") is not None
    assert index.find("15 boxes hold the same number of eggs, in all 160. How many does one hold?") is None
    assert index.find("15 boxes hold the same number of eggs, in all 16.5. How many does one hold?") is None
    assert index.find("215 boxes hold the same number of eggs, in all 16. How many does one hold?") is None


def test_a_short_question_must_be_the_whole_prompt():
    index = index_of("What is $2+2$?")
    assert index.find("what is 2 + 2") == "question 1 of orchard"
    assert index.find("What is $2+2$? And what is it in base three, if you please?") is None
    assert index.find("What is $2-2$?") is None


def test_sizes_count_the_questions_of_each_benchmark():
    index = index_of("a", "b")
    index.add("barn", ["c"])
    assert index.sizes == {"orchard": 2, "barn": 1}


@given(st.text("ab1.", min_size=40, max_size=60), st.text("ab1. ", max_size=30), st.text("ab1. ", max_size=30))
def test_agrees_with_a_plain_search_in_the_normalised_text(question, before, after):
    needle, text = normalise_question(question), normalise_question(before + question + after)
    starts = [i for i in range(len(text)) if text.startswith(needle, i)]
    whole = any(
        not (i > 0 and needle[0].isdecimal() and text[i - 1] in "1.")
        and not (i + len(needle) < len(text) and needle[-1].isdecimal() and text[i + len(needle)] in "1.")
        for i in starts
    )
    if len(needle) < 32:
        whole = text == needle
    assert (index_of(question).find(before + question + after) is not None) is whole


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"$\left( 3, \frac{\pi}{2} \right)$", r"(3,\dfrac{\pi}{2})"),
        (r"$x y+z$", "xy + z"),
        (r"$n \geqslant 2$", r"n\ge 2"),
        (r"\(a_1,\ldots,a_n\)", r"$a_1, \cdots, a_n$"),
        ("It’s 5 − 3", "It's 5-3"),
        ("ﬁnd  it.", "Find it"),
    ],
)
def test_spellings_of_one_question(one, other):
    assert normalise_question(one) == normalise_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2+3", "2-3"),
        ("1 23", "12 3"),
        ("1.5", "15"),
        ("$3!$", "$3$"),
        (r"\alpha", r"\beta"),
        ("中", "文"),
        ("x^2", "x_2"),
    ],
)
def test_different_questions_stay_different(one, other):
    assert normalise_question(one) != normalise_question(other)
