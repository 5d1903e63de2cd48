"""Tasks of other domains: the project's scorers judge them, once for each answer to a question."""

import random

import pytest

from benchmarks import domains
from benchmarks.domains import COUNTS, JUDGES, compute_score, judged
from benchmarks.tasks import TASKS
from soup_verl.tasks.reward import compute_score as score_of_project
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES

FORMULA = "a plus b times c minus a minus b"
PROGRAM = "```python\na,b,c=map(int,input().split())\nprint({})\n```"
EVERY = [pytest.param(name, marks=NEEDS_NAMESPACES if name == "code" else ()) for name in JUDGES]


@NEEDS_NAMESPACES
@pytest.mark.parametrize(
    ("printed", "right"),
    [
        ("a+b*c-a-b", 1.0),
        ("b*c-b", 1.0),  # another program that does the same
        ("-b+c*b", 1.0),
        ("a+b*c-a", 0.0),  # the last term is missing
        ("(a+b)*c-a-b", 0.0),
        ("a+b*c-a-", 0.0),  # no program
    ],
)
def test_programs_are_run(printed, right):
    program = PROGRAM.format(printed)
    assert compute_score("code", program, FORMULA) == {"score": right, "acc": right, "pred": program}


def test_what_is_no_program_has_no_answer():
    assert compute_score("code", "print(b*c-b)", FORMULA) == {"score": 0.0, "acc": 0.0, "pred": ""}


@pytest.mark.parametrize(
    ("response", "right", "answer"),
    [
        ("<answer>abcba</answer>", 1.0, True),
        ("<answer>bacab</answer>", 1.0, True),
        ("<answer>abbca</answer>", 0.0, True),  # scored .02 for the letters: not right
        ("<answer>abba</answer>", 0.0, True),  # scored .05: one letter is left over
        ("abcba", 0.0, False),
    ],
)
def test_palindromes_are_scored_by_reasoning_gym(response, right, answer):
    scored = compute_score("puzzle", response, "babca")
    assert scored == {"score": right, "acc": right, "pred": response if answer else ""}


@pytest.mark.parametrize(
    ("response", "right", "answer"),
    [
        ('"gold red pink grey"', 1.0, True),
        ('"red gold gold gold"', 1.0, True),
        ("gold red pink grey", 0.0, True),  # follows all but the form: no partial credit
        ('"gold red pink"', 0.0, True),  # a word too few
        ('"gold blue red pink"', 0.0, True),
        ('"red pink grey white"', 0.0, True),  # gold is missing
        (" ", 0.0, False),
    ],
)
def test_a_text_is_right_only_where_it_follows_every_instruction(response, right, answer):
    scored = compute_score("text", response, "red, gold, not blue, 4 words or more, in quotes")
    assert scored == {"score": right, "acc": right, "pred": response if answer else ""}


def test_the_order_of_named_colours_makes_no_other_question():
    key = TASKS["text"].key
    asked = "{}, {}, not blue, 4 words or more, in quotes"
    assert key(asked.format("red", "gold")) == key(asked.format("gold", "red"))
    assert len({key(wish.question) for wish in domains.WISHES}) == 1512  # of 28 pairs: 6 others, 3 counts, 3 forms


def test_palindromes_counted_by_hand():
    assert COUNTS["puzzle"]("babca") == 2  # abcba, bacab
    assert COUNTS["puzzle"]("aabbccdd") == 24
    assert COUNTS["puzzle"]("aaaabb") == 3  # two pairs of a, one of b
    assert not {"code", "text"} & set(COUNTS)


@pytest.mark.parametrize("name", EVERY)
def test_the_teachers_answers_are_right_and_its_slips_mostly_not(name):
    task, rng = TASKS[name], random.Random(7)
    questions = [task.draw(rng) for _ in range(8)]
    assert all(compute_score(name, task.answer(rng, q), q)["acc"] == 1.0 for q in questions)
    assert sum(compute_score(name, task.slip(rng, q), q)["acc"] for q in questions) <= 2


@pytest.mark.parametrize("name", EVERY)
def test_a_verdict_is_that_of_the_projects_scorer_and_asked_for_once(name, monkeypatch):
    task, rng, asked = TASKS[name], random.Random(3), []

    def scorer(*given, **keywords):
        asked.append(given[1])
        return score_of_project(*given, **keywords)

    judged.cache_clear()
    monkeypatch.setattr(domains, "score_of_project", scorer)
    question, other = task.draw(rng), task.draw(rng)
    responses = [task.answer(rng, question), "nothing", task.answer(rng, question)]
    first = [compute_score(name, response, question)["acc"] for response in responses * 4]
    assert first == [1.0, 0.0, 1.0] * 4 and sorted(asked) == sorted(set(responses))
    compute_score(name, "nothing", other)  # another question: another verdict
    assert asked.count("nothing") == 2


@NEEDS_NAMESPACES
@pytest.mark.parametrize("loop", ["while 1: pass", "import os; os.abort()"])
def test_a_verdict_that_the_machine_may_have_made_wrong_is_asked_for_again(loop, monkeypatch):
    """The scorer cannot say whether a program or the machine was too slow, nor whose process died."""
    seconds = {"test_time_limit_s": 1}
    monkeypatch.setitem(JUDGES, "code", domains.Judge("code", domains.gold_code, seconds))
    judged.cache_clear()
    program = f"```python\n{loop}\n```"
    for _ in range(2):
        assert compute_score("code", program, FORMULA) == {"score": 0.0, "acc": 0.0, "pred": program}
    assert judged.cache_info()[:2] == (0, 2) and judged.cache_info().currsize == 0


def test_a_puzzle_that_ran_out_of_time_is_judged_again_and_then_remembered(monkeypatch):
    palindrome, never = "<answer>abcba</answer>", {"time_limit_s": 0.0}
    judged.cache_clear()
    with monkeypatch.context() as busy:
        busy.setitem(JUDGES, "puzzle", domains.Judge("puzzles", domains.gold_puzzle, never))
        assert compute_score("puzzle", palindrome, "babca")["acc"] == 0.0
    assert [compute_score("puzzle", palindrome, "babca")["acc"] for _ in range(3)] == [1.0] * 3
    assert judged.cache_info()[:2] == (2, 2)  # hits, misses


def test_the_same_question_has_the_same_gold_and_memory_is_bounded():
    assert all(judge.gold(q) == judge.gold(q) for name, judge in JUDGES.items() for q in [TASKS[name].draw(random)])
    assert judged.cache_info().maxsize == domains.REMEMBERED
