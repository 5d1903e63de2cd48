from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.data.benchmark_index import BenchmarkIndex, normalise_question
from soup_verl.tasks.data.cleaning import (
    DROPS,
    Finding,
    Tally,
    clean,
    drop_far_alternates,
    drop_over_long,
    gold_fault,
    normalise_gold,
    remove_control,
    repair,
    restore_latex,
    restore_ligatures,
)
from soup_verl.tasks.data.datasets import Problem

LONG = "A hen lays three eggs in two days; how many does she lay in a fortnight?"


def problem(row: int, question: str = "How many?", gold: str = "1", **more) -> Problem:
    return Problem(row=row, id=str(row), question=question, gold=gold, **more)


def dropped(tally: Tally) -> dict[str, int]:
    return {reason: finding.rows for reason, finding in tally.dropped.items() if finding.rows}


@pytest.mark.parametrize(
    ("eaten", "meant"),
    [
        ("$\frac{1}{2}$", r"$\frac{1}{2}$"),
        ("2 \times 3 \text{ cm}, \theta, \tan(x)", r"2 \times 3 \text{ cm}, \theta, \tan(x)"),
        ("\binom{4}{2} \bmod 5, \bar x, \beta", r"\binom{4}{2} \bmod 5, \bar x, \beta"),
        ("\alpha \approx \vec v", r"\alpha \approx \vec v"),
        ("\\left( 1 \right)", r"\left( 1 \right)"),
        ("x \neq 2", r"x \neq 2"),
        ("$\x0crac12$", r"$\frac12$"),
    ],
)
def test_what_an_escape_has_eaten_is_put_back(eaten, meant):
    assert restore_latex(eaten) == meant
    assert repair(problem(1, eaten), Tally()).question == meant


@pytest.mark.parametrize(
    "text", ["one\two\three", "\tan apple", "line\nequal", "a\nu", "tab\there", "page\fbreak", r"\frac{1}{2}"]
)
def test_ordinary_breaks_and_sound_latex_are_left_alone(text):
    assert restore_latex(text) == text


@pytest.mark.parametrize(
    ("read", "meant"),
    [
        ("satis\fes", "satisfies"),
        ("de\fne", "define"),
        ("fi\fve", "five"),
        ("the \ffirst", "the first"),
        ("\fnd the area", "find the area"),
        ("di\verence", "difference"),
        ("di\vfference", "difference"),
        ("next page\f\nNow", "next page\f\nNow"),
    ],
)
def test_ligatures_of_old_fonts_are_spelt_out(read, meant):
    assert restore_ligatures(read) == meant


def test_other_control_characters_go_and_breaks_stay_breaks():
    assert remove_control("a\r\nb\rc\fd\ve\x00f\x7fg\x85h\ud835i\tj\n") == "a\nb\nc d efg hi\tj\n"


def test_repairs_reach_every_text_and_are_counted_by_row():
    tally = Tally()
    fixed = repair(problem(3, " a \frac12 \frac13\x01 ", "\frac{1}{2}", alt_answers=("\x02" + "0.5",)), tally)
    assert (fixed.question, fixed.gold, fixed.alt_answers) == (r"a \frac12 \frac13", r"\frac{1}{2}", ("0.5",))
    assert {kind: (f.rows, f.first_row) for kind, f in tally.repaired.items()} == {
        "latex_restored": (1, 3),
        "ligatures_restored": (0, None),
        "control_characters_removed": (1, 3),
        "alternates_dropped": (0, None),
    }
    assert tally.repaired["latex_restored"].detail == r"' a \x0crac12 \x0crac1' -> ' a \\frac12 \\fra'"


@pytest.mark.parametrize(
    ("gold", "alternates", "kept"),
    [
        ("0.53", ("4.4e7", "0.530", r"4.4 \times 10^7"), ("0.530",)),
        ("6630", ("6630.65", "6.6e3"), ("6630.65", "6.6e3")),  # rounded otherwise
        ("100", ("105", "106"), ("105",)),
        ("-2", ("2",), ()),
        ("0", ("0.0", "1e-9"), ("0.0",)),
        ("x+1", ("7", "1+x"), ("7", "1+x")),  # not a number: nothing to compare with
        ("5", (r"\sqrt{25}",), (r"\sqrt{25}",)),
    ],
)
def test_alternatives_that_are_another_number_go(gold, alternates, kept):
    tally = Tally()
    assert drop_far_alternates(problem(1, gold=gold, alt_answers=alternates), tally).alt_answers == kept
    assert tally.repaired["alternates_dropped"].rows == int(kept != alternates)


@given(st.text(st.sampled_from("ab fir\f\v\n\t\r\x01\\{}"), max_size=40))
def test_a_repaired_problem_needs_no_repair(text):
    once = repair(problem(1, text, text), Tally())
    tally = Tally()
    assert repair(once, tally) == once
    assert not any(f.rows for f in tally.repaired.values())


@given(
    st.lists(st.sampled_from(["eq", "abla", "rac", "fi", "nd", "a", " ", *"\f\v\n\t\r\x01\x7f\ud800\\"])).map("".join)
)
def test_a_repaired_text_is_the_three_repairs_in_their_order(text):
    fixed = remove_control(restore_ligatures(restore_latex(text)))
    assert repair(problem(1, text), Tally()).question == fixed.strip()


@pytest.mark.parametrize(
    "gold", ["1", r"\frac{1}{2}", r"\left[0,1\right)", r"\{1,2\}", "[0,1)", r"\leftarrow", "336^\\circ", "$221,$8$"]
)
def test_sound_golds(gold):
    assert gold_fault(gold) is None


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        (r"\frac{1}{2", "braces do not pair up"),
        ("}1{", "braces do not pair up"),
        (r"\left(1,2)", r"\left and \right do not pair up"),
        ("1\\", "ends in a backslash"),
    ],
)
def test_golds_that_do_not_parse(gold, fault):
    assert gold_fault(gold) == fault


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2.0", "2"),
        ("1,000", "1000"),
        (r"$7 - 2\pi$", r"7-2\pi"),
        (r"\dfrac12", r"\frac12"),
        ("3.", "3"),
        (r"\mathbf{23}", "23"),
    ],
)
def test_spellings_of_one_gold(one, other):
    assert normalise_gold(one) == normalise_gold(other)


@pytest.mark.parametrize(("one", "other"), [("2.01", "2"), ("a", "A"), ("(1,2)", "12"), ("-1", "1"), ("2.05", "2.5")])
def test_different_golds_stay_different(one, other):
    assert normalise_gold(one) != normalise_gold(other)


def test_every_reason_drops_its_row_and_is_told_with_the_first():
    index = BenchmarkIndex()
    index.add("hens", [LONG])
    rows = [
        problem(1, "Kept", "1", level=3),
        problem(2, " \x01", "1", level=3),
        problem(3, "No gold", "$ $", level=3),
        problem(4, "Torn gold", "{1", level=3),
        problem(5, "Too easy", "1", level=2),
        problem(6, "No level", "1"),
        problem(7, "kept!".replace("!", "."), "1.0", level=3),
        problem(8, "Two golds", "1", level=3),
        problem(9, "two  golds", "1", level=3),
        problem(10, "Two golds", "2", level=5),
        problem(11, f"Once more: {LONG}", "21", level=5),
    ]
    tally = Tally()
    kept = clean(rows, tally, is_benchmark=False, levels=(3, 5), index=index)
    assert [p.row for p in kept] == [1]
    assert {r: (f.rows, f.first_row, f.detail) for r, f in tally.dropped.items() if f.rows} == {
        "empty_question": (1, 2, ""),
        "empty_gold": (1, 3, ""),
        "unparsable_gold": (1, 4, "braces do not pair up: '{1'"),
        "outside_levels": (2, 5, ""),
        "duplicate": (1, 7, "of row 1"),
        "conflicting_golds": (3, 8, "'1' in row 8, '2' in row 10"),
        "benchmark_overlap": (1, 11, "question 1 of hens"),
    }
    assert index.hits == {"hens": 1}
    tally.check(len(kept))


def test_a_benchmark_keeps_rows_that_repeat_another_but_not_those_without_a_gold():
    rows = [problem(1), problem(2), problem(3, gold="2"), problem(4, gold="")]
    tally = Tally()
    assert [p.row for p in clean(rows, tally, is_benchmark=True)] == [1, 2, 3]
    assert dropped(tally) == {"empty_gold": 1}


def test_a_prompt_of_exactly_the_limit_is_kept():
    tally = Tally(rows_in=3)
    kept = drop_over_long([problem(1), problem(2), problem(3)], [4, 5, 6], 5, tally)
    assert [p.row for p in kept] == [1, 2]
    assert tally.dropped["over_long"] == Finding(1, 3, "6 tokens")


def test_the_first_flaw_is_the_lowest_row_and_a_selection_is_none():
    tally = Tally()
    assert tally.first_flaw() is None
    tally.drop("outside_levels", 1)
    assert tally.first_flaw() is None
    tally.drop("duplicate", 9, detail="of row 2")
    tally.repair("latex_restored", 4)
    assert tally.first_flaw() == (4, "latex_restored", "")
    tally.drop("duplicate", 3, rows=2, detail="of row 1")
    assert tally.first_flaw() == (3, "duplicate", "of row 1")
    assert tally.dropped["duplicate"].rows == 3


def test_sums_that_do_not_add_up_are_ours_to_mend():
    tally = Tally(rows_in=3)
    tally.drop("duplicate", 2)
    tally.check(2)
    with pytest.raises(AssertionError, match="3 rows in, 1 kept, 1 dropped"):
        tally.check(1)


questions = st.sampled_from(["", "x", "X.", "y", "y\f", "\frac12", LONG, f"So: {LONG}", "\x01"])
golds = st.sampled_from(["", "1", "1.0", "2", "{", "$", "\frac12"])
tables = st.lists(st.tuples(questions, golds, st.sampled_from([None, 1, 3, 5])), max_size=25)


@given(tables, st.booleans(), st.booleans(), st.sampled_from([None, (3, 5)]), st.integers(0, 8))
def test_rows_in_are_rows_kept_and_rows_dropped(table, is_benchmark, against, levels, limit):
    index = BenchmarkIndex()
    index.add("hens", [LONG])
    tally = Tally()
    rows = [problem(i, q, g, level=level) for i, (q, g, level) in enumerate(table, start=1)]
    kept = clean(rows, tally, is_benchmark=is_benchmark, levels=levels, index=index if against else None)
    kept = drop_over_long(kept, [len(p.question) for p in kept], limit, tally)
    assert tally.rows_in == len(table) == len(kept) + sum(dropped(tally).values())
    tally.check(len(kept))
    assert set(tally.dropped) == set(DROPS)
    assert [p.row for p in kept] == sorted({p.row for p in kept})
    if not is_benchmark:
        assert max(Counter(normalise_question(p.question) for p in kept).values(), default=1) == 1


@given(tables, st.randoms())
def test_the_order_of_the_rows_does_not_change_how_many_go(table, random):
    def counts(order):
        tally = Tally()
        rows = [problem(i, *table[j][:2]) for i, j in enumerate(order, start=1)]
        clean(rows, tally, is_benchmark=False)
        return dropped(tally)

    order = list(range(len(table)))
    shuffled = random.sample(order, len(order))
    assert counts(order) == counts(shuffled)


@given(tables)
def test_cleaning_twice_changes_nothing(table):
    rows = [problem(i, q, g) for i, (q, g, _) in enumerate(table, start=1)]
    once = clean(rows, Tally(), is_benchmark=False)
    tally = Tally()
    assert clean([replace(p) for p in once], tally, is_benchmark=False) == once
    assert not dropped(tally)
