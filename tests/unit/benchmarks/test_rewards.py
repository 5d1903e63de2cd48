import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.domains import JUDGES
from benchmarks.rewards import CHECKERS, COUNTS, compute_score
from benchmarks.tasks import TASKS, demonstrations, draw_splits, rows

seeds = st.integers(0, 10_000)
tasks = st.sampled_from(sorted(CHECKERS))


def score(task, answer, question):
    return compute_score(task, answer, question)["score"]


@pytest.mark.parametrize(
    ("answer", "right", "spelling"),
    [
        ("9+5-3", 0.0, "+9+5-3"),  # 11
        ("9-5+3+3", 1.0, "+9+3+3-5"),
        ("3+3-5+9", 1.0, "+9+3+3-5"),  # the same terms in another order
        ("9-5+3+3<|im_end|>", 1.0, "+9+3+3-5"),
        ("7+3", 0.0, ""),  # two numbers only
        ("7+3+5-5", 0.0, "+7+5+3-5"),  # one 5 is given
        ("7-5+3+5", 0.0, "+7+5+3-5"),
        ("-5+9+3+3", 0.0, ""),  # a sign in front
        ("9-5+3+3=10", 0.0, ""),
        ("9 - 5 + 3 + 3", 0.0, ""),
        ("9-5+03+3", 0.0, ""),
        ("9-5+3+3\n9-5+3+3", 0.0, ""),
        ("", 0.0, ""),
    ],
)
def test_countdown(answer, right, spelling):
    assert compute_score("countdown", answer, "3,9,5,7,3=10") == {"score": right, "acc": right, "pred": spelling}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("72\n59", 1.0), ("59", 1.0), ("71\n59", 1.0), ("72\n58", 0.0), ("59\n", 1.0), ("59\n72", 0.0), ("059", 0.0)],
)
def test_chain_sum_reads_the_last_line_alone(answer, right):
    assert score("chain_sum", answer, "27+45-13=") == right


@pytest.mark.parametrize(
    ("answer", "right"), [("dkbg", 1.0), ("bgdk", 1.0), ("kdbg", 0.0), ("dkb", 0.0), ("dkbgg", 0.0), ("dkbx", 0.0)]
)
def test_order(answer, right):
    assert score("order", answer, "kdbg:d<k,b<g") == right


def test_counts_by_hand():
    assert COUNTS["countdown"]("1,2,3=6") == 1  # 1+2+3
    assert COUNTS["countdown"]("1,1,2,4=4") == 4  # 1+1+2, 4+1-1, 4+2-1-1, 4-2+1+1
    assert COUNTS["countdown"]("1,2,3=3") == 0  # 1+2 has two terms
    assert COUNTS["chain_sum"]("27+45-13=") == 1
    assert COUNTS["order"]("kdbg:d<k,b<g") == 6  # 4! / 2 / 2
    assert COUNTS["order"]("abc:a<b,b<c") == 1


@given(tasks, seeds)
def test_a_valid_answer_passes_and_is_among_those_counted(name, seed):
    rng, task = random.Random(seed), TASKS[name]
    question = task.draw(rng)
    answers = {task.answer(rng, question) for _ in range(5)}
    scored = [compute_score(name, answer, question) for answer in answers]
    assert all(s["score"] == 1.0 for s in scored), (question, answers)
    assert len({s["pred"] for s in scored}) <= COUNTS[name](question)


@given(tasks, seeds, st.integers(0, 30), st.sampled_from("0123456789+-=xyz\n "))
def test_a_mutated_answer_passes_only_if_it_is_another_valid_one(name, seed, place, character):
    """Decided by other means than the checker's."""
    rng, task = random.Random(seed), TASKS[name]
    question = task.draw(rng)
    answer = task.answer(rng, question)
    place %= len(answer)
    mutated = (answer[:place] + character + answer[place + 1 :]).strip()
    if score(name, mutated, question) == 0.0:
        return
    if name == "countdown":
        assert set(mutated) <= set("0123456789+-")
        terms = mutated.replace("-", "+-").split("+")
        assert sum(map(int, filter(None, terms))) == int(question.split("=")[1])
    elif name.startswith("chain_sum"):
        assert mutated.split("\n")[-1] == answer.split("\n")[-1]
    else:
        assert mutated == answer


@given(tasks, seeds)
def test_leaving_the_last_character_out_fails(name, seed):
    rng, task = random.Random(seed), TASKS[name]
    question = task.draw(rng)
    answer = task.answer(rng, question)
    cut = answer[:-1]
    if name == "countdown" and cut[-1].isdigit():  # "12+3+45" -> "12+3+4" may be right as well
        return
    assert score(name, cut, question) == 0.0


QUESTIONS = [("countdown", "3,9,5,7,3=10"), ("chain_sum", "3+7="), ("order", "kdbg:d<k,b<g")]
HOSTILE = [
    "__import__('os').system('touch /tmp/owned')",
    "9**9**9",
    "9" * 1_000_000,
    "1+" * 100_000 + "1",
    "(" * 10_000,
    "9-5+3+3\x00",
    "٣+٣+٤",  # digits that are not ASCII
    "²+3+5",
    "${jndi:ldap://x}",
    "'; DROP TABLE",
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(("task", "question"), QUESTIONS)
def test_hostile_text_is_only_wrong(task, question, text):
    assert score(task, text, question) == 0.0


@pytest.mark.parametrize(("task", "question"), QUESTIONS)
@given(text=st.text(max_size=40))
def test_any_text_gets_a_score(task, question, text):
    assert score(task, text, question) in (0.0, 1.0)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match="data_source='gsm8k': expected one of countdown, chain_sum, chain_sum_8"):
        compute_score("gsm8k", "1", "1")
    assert set(CHECKERS) == set(COUNTS) == set(TASKS) - set(JUDGES)


# ---- what the tasks write ----


@pytest.mark.parametrize("name", sorted(TASKS))
def test_splits_are_seeded_and_share_no_question(name):
    task = TASKS[name]
    sizes = {"val": 10, "train": 20, "sft": 40}
    splits = draw_splits(task, sizes, seed=3)
    assert {split: len(questions) for split, questions in splits.items()} == sizes
    keys = {split: {task.key(q) for q in questions} for split, questions in splits.items()}
    assert len(keys["val"]) == 10 and len(keys["train"]) == 20
    assert not keys["val"] & keys["train"] and not (keys["val"] | keys["train"]) & keys["sft"]
    assert splits == draw_splits(task, sizes, seed=3) != draw_splits(task, sizes, seed=4)
    longer = draw_splits(task, sizes | {"sft": 60}, seed=3)
    assert (longer["val"], longer["train"], longer["sft"][:40]) == (splits["val"], splits["train"], splits["sft"])


@pytest.mark.parametrize("name", sorted(CHECKERS))
def test_the_teacher_is_weak_as_often_as_it_says(name):
    task = TASKS[name]
    questions = draw_splits(task, {"val": 1, "sft": 200}, seed=0)["sft"]
    right = sum(score(name, a, q) for a, q in zip(demonstrations(task, questions, 0), questions, strict=True)) / 200
    assert 1 - task.slips - 0.1 < right < 1 - task.slips + 0.15


@pytest.mark.parametrize("name", sorted(CHECKERS))
def test_rows_are_what_verl_reads(name):
    task = TASKS[name]
    (row,) = rows(task, [task.draw(random.Random(1))], "val")
    question = row["prompt"][0]["content"]
    assert row["data_source"] == name and row["reward_model"]["ground_truth"] == question
    assert row["extra_info"] == {"index": 0, "split": "val", "valid_answers": COUNTS[name](question)}
    assert score(row["data_source"], task.answer(random.Random(2), question), row["reward_model"]["ground_truth"]) == 1


@pytest.mark.parametrize("name", ["countdown", "order"])
def test_questions_have_several_valid_answers(name):
    rng = random.Random(5)
    assert min(COUNTS[name](TASKS[name].draw(rng)) for _ in range(20)) >= (3 if name == "countdown" else 2)
