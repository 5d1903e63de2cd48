"""Layouts and the registry: every data set reads its hub's columns and the plain ones, and says what it misses."""

import pytest

from soup_verl.tasks.data.datasets import (
    DATASETS,
    DatasetSpec,
    choose_layout,
    find_dataset,
    to_problems,
    without_dapo_instruction,
)
from soup_verl.tasks.data.layouts import (
    DataError,
    after_hashes,
    as_bool,
    as_level,
    as_text,
    as_texts,
    as_tolerance,
    last_boxed,
    last_user_turn,
)

_ASKED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nHow many legs have 3 cats?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
_USER = {"role": "user", "content": "How many legs have 3 cats?"}
_MATH = {
    "problem": "How many legs have 3 cats?",
    "solution": r"4 each: \boxed{12}",
    "answer": "12",
    "subject": "Zoology",
    "level": 4,
    "unique_id": "cats/1",
}
_PLAIN = {"id": "cats/1", "question": "How many legs have 3 cats?", "answer": "12"}
# A row as each hub data set has it, with columns that are not read.
HUB_ROWS = {
    "dapo-math-17k": {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": _ASKED}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "12", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "cats/1"},
    },
    "openr1-math-46k": {
        "prompt": [{"role": "system", "content": "Think aloud."}, _USER],
        "reward_model": {"ground_truth": "12", "style": "rule"},
        "target": [{"role": "assistant", "content": "12"}],
    },
    "math-level3-5": _MATH,
    "gsm8k": {"question": "How many legs have 3 cats?", "answer": "4 each: 3*4=<<3*4=12>>12\n#### 12"},
    "math-500": _MATH,
    "amc23": {**_PLAIN, "url": "https://example.org"},
    "aime24": {"id": 7, "problem": "How many legs have 3 cats?", "solution": r"\boxed{12}", "url": ""},
    "aime25": {"id": "7", "problem": "How many legs have 3 cats?", "answer": "12"},
    "minerva": {"question": "How many legs have 3 cats?", "answer": "12"},
    "olympiadbench": {
        "id": 1606,
        "question": "How many legs have 3 cats?",
        "solution": ["Count."],
        "final_answer": ["12"],
        "is_multiple_answer": False,
        "unit": None,
        "error": "1e-1",
        "subfield": "Zoology",
    },
}
HUB_ROWS["gsm8k-test"] = HUB_ROWS["gsm8k"]
HUB_ROWS["aime26"] = HUB_ROWS["aime25"]
for name in ("hmmt25-feb", "hmmt25-nov"):
    HUB_ROWS[name] = {
        "problem_idx": 3,
        "problem": "How many legs have 3 cats?",
        "answer": "12",
        "problem_type": ["Zoology", "Algebra"],
    }
MATHEMATICS = [name for name, spec in DATASETS.items() if spec.domain == "mathematics"]


def only(spec: DatasetSpec, row: dict):
    (problem,) = to_problems(spec, [(1, row)])
    return problem


@pytest.mark.parametrize("name", MATHEMATICS)
def test_every_data_set_reads_a_row_of_its_hub(name):
    problem = only(DATASETS[name], HUB_ROWS[name])
    assert (problem.row, problem.question, problem.gold) == (1, "How many legs have 3 cats?", "12")
    assert isinstance(problem.id, str) and problem.id


@pytest.mark.parametrize("name", MATHEMATICS)
def test_every_data_set_reads_the_plain_layout(name):
    problem = only(DATASETS[name], _PLAIN | {"alt_answers": ["12.0", "a dozen"], "level": 3})
    assert (problem.id, problem.question, problem.gold) == ("cats/1", "How many legs have 3 cats?", "12")
    assert (problem.alt_answers, problem.level) == (("12.0", "a dozen"), 3)


def test_optional_columns_fill_their_fields():
    problem = only(DATASETS["olympiadbench"], HUB_ROWS["olympiadbench"] | {"unit": "legs", "is_multiple_answer": True})
    assert (problem.id, problem.tolerance, problem.unit, problem.is_multiple_answer) == ("1606", 0.1, "legs", True)
    assert problem.subject == "Zoology"
    math = only(DATASETS["math-500"], _MATH)
    assert (math.id, math.level, math.subject) == ("cats/1", 4, "Zoology")
    hmmt = only(DATASETS["hmmt25-feb"], HUB_ROWS["hmmt25-feb"])
    assert (hmmt.id, hmmt.subject) == ("3", "Zoology, Algebra")


def test_several_final_answers_are_one_gold():
    row = HUB_ROWS["olympiadbench"] | {"final_answer": ["3", "-3"], "is_multiple_answer": True}
    assert only(DATASETS["olympiadbench"], row).gold == "3,-3"


def test_the_plain_layout_takes_difficulty_for_a_level_only_where_there_is_no_level():
    spec = DATASETS["math-level3-5"]
    assert only(spec, _PLAIN | {"difficulty": 5.0}).level == 5
    assert only(spec, _PLAIN | {"difficulty": 5.0, "level": 2}).level == 2


def test_rows_without_an_id_get_one_from_the_data_set_and_the_row():
    rows = [(1, HUB_ROWS["gsm8k"]), (5, HUB_ROWS["gsm8k"])]
    assert [p.id for p in to_problems(DATASETS["gsm8k"], rows)] == ["gsm8k/1", "gsm8k/5"]


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(DataError, match=r"--dataset='gsm9k'.*dapo-math-17k, openr1-math-46k, .*gsm8k-test"):
        find_dataset("gsm9k")


def test_missing_columns_are_answered_with_those_found_and_those_expected():
    with pytest.raises(DataError, match=r"columns are id, q: expected problem, solution .*math-ai/aime24.* or id, q"):
        choose_layout(DATASETS["aime24"], ["id", "q"])


def test_a_later_row_that_lacks_a_column_is_named():
    rows = [(1, _PLAIN), (2, {"id": "x", "question": "?"})]
    with pytest.raises(DataError, match=r"row 2: no column 'answer'; columns found: id, question"):
        list(to_problems(DATASETS["gsm8k"], rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ["a"]}, r"row 1: column 'question' is list \(\"\['a'\]\"\), expected text"),
        ({"answer": True}, "row 1: column 'answer' is bool"),
        ({"is_multiple_answer": "yes"}, "column 'is_multiple_answer' is 'yes', expected true or false"),
        ({"error": "about 1"}, "column 'error' is 'about 1', expected a tolerance"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_row_and_column(change, message):
    with pytest.raises(DataError, match=message):
        only(DATASETS["olympiadbench"], _PLAIN | change)


def test_a_prompt_that_is_no_chat_is_refused():
    with pytest.raises(DataError, match=r"column 'prompt' is 'How many', expected chat messages with a user turn"):
        only(DATASETS["dapo-math-17k"], HUB_ROWS["dapo-math-17k"] | {"prompt": "How many"})
    with pytest.raises(DataError, match=r"column 'reward_model' is '12', expected a mapping with 'ground_truth'"):
        only(DATASETS["dapo-math-17k"], HUB_ROWS["dapo-math-17k"] | {"reward_model": "12"})


def test_names_are_lower_case_and_every_benchmark_is_one():
    assert all(name == name.lower() for name in DATASETS)
    training = {"dapo-math-17k", "openr1-math-46k", "math-level3-5", "gsm8k"}
    training |= {"mbpp", "deepcoder", "if-rlvr", "xsum", "cnn-dailymail"}
    assert {name for name, spec in DATASETS.items() if not spec.is_benchmark} == training


def test_the_dapo_instruction_goes_and_nothing_else():
    assert without_dapo_instruction(_ASKED) == "How many legs have 3 cats?"
    assert without_dapo_instruction("Solve it.\n\nRemember me.") == "Solve it.\n\nRemember me."


@pytest.mark.parametrize("half", [_ASKED.rpartition("\n\n")[0], _ASKED.partition("\n\n")[2]])
def test_half_a_dapo_instruction_is_refused(half):
    with pytest.raises(DataError, match="expected DAPO's instruction before and after the question"):
        without_dapo_instruction(half)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1,2)}", r"\{1,2)"),  # braces that are characters do not count
        (r"\boxed{1", ""),
        ("none", ""),
        (None, ""),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(("text", "answer"), [("a #### 1,234 ", "1234"), ("#### 1\n#### -2", "-2"), ("12", "")])
def test_after_hashes(text, answer):
    assert after_hashes(text) == answer


@pytest.mark.parametrize(("value", "text"), [(None, ""), (204, "204"), (204.0, "204"), (0.5, "0.5"), (" a ", " a ")])
def test_as_text(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize(("value", "level"), [(5, 5), (5.0, 5), ("Level 3", 3), ("Level ?", None), (None, None)])
def test_as_level(value, level):
    assert as_level(value) == level


@pytest.mark.parametrize(("value", "number"), [(None, None), ("", None), ("1e-1", 0.1), (0, 0.0)])
def test_as_tolerance(value, number):
    assert as_tolerance(value) == number


@pytest.mark.parametrize("value", [-1, "nan", float("inf"), [1]])
def test_a_tolerance_is_a_finite_number_of_at_least_zero(value):
    with pytest.raises(DataError, match="expected a tolerance"):
        as_tolerance(value)


def test_as_texts_and_as_bool():
    assert (as_texts(None), as_texts("a"), as_texts([1, "b"])) == ((), ("a",), ("1", "b"))
    assert (as_bool(None), as_bool(False), as_bool(True)) == (False, False, True)


def test_the_last_user_turn_is_the_question():
    assert last_user_turn([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]) == "b"
    with pytest.raises(DataError, match="user turn"):
        last_user_turn([{"role": "system", "content": "a"}])
