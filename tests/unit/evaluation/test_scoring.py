"""Reward functions as verl loads and calls them, and what is wrong with some."""

import json

import numpy as np
import pytest

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.problems import Problem
from soup_verl.evaluation.scoring import DEFAULT, load_reward, score

PROBLEM = Problem("a.parquet", 3, [], "sums", "1/2", {"tolerance": None})


def test_the_default_is_ours():
    reward, identity = load_reward(DEFAULT, {})
    assert identity.startswith(f"{DEFAULT}:")
    found = score(reward, PROBLEM, r"so \boxed{\frac{1}{2}}")
    assert (found["score"], found["acc"], found["correct"], found["pred"]) == (1.0, 1.0, True, "1/2")


def test_a_module_is_known_by_its_content_and_that_of_the_folders_it_takes_from(tmp_path, monkeypatch):
    grading = tmp_path / "graders" / "parts"
    grading.mkdir(parents=True)
    (tmp_path / "graders" / "__init__.py").write_text("")
    (tmp_path / "graders" / "entry.py").write_text("from graders.parts.one import f")
    (tmp_path / "graders" / "unrelated.py").write_text("")
    (grading / "__init__.py").write_text("")
    (grading / "one.py").write_text("def f(**given): return 1.0")
    (grading / "run_as_a_script.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = [load_reward("pkg://graders.entry:f", {})[1]]
    for changed in ("entry.py", "parts/run_as_a_script.py", "unrelated.py"):
        with (tmp_path / "graders" / changed).open("a") as file:
            file.write("\n")
        found.append(load_reward("pkg://graders.entry:f", {})[1])
    assert len(set(found)) == 3 and found[2] == found[3]


def test_a_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def f(data_source, solution_str, ground_truth, extra_info): return len(solution_str)")
    reward, identity = load_reward(f"{file}:f", {})
    assert score(reward, PROBLEM, "abc") == {"acc": 3.0, "score": 3.0, "correct": True}
    file.write_text(file.read_text() + " + 1")
    assert load_reward(f"{file}:f", {})[1] != identity


def test_the_function_is_compute_score_where_none_is_named_as_in_verl(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def compute_score(**given): return 0.25")
    reward, identity = load_reward(str(file), {})
    assert score(reward, PROBLEM, "")["score"] == 0.25 and identity == load_reward(f"{file}:compute_score", {})[1]
    assert load_reward("pkg://soup_verl.reward", {})[1] == load_reward(DEFAULT, {})[1]


@pytest.mark.parametrize(
    ("result", "correct"),
    [
        (0.0, False),
        (-1.0, False),
        (0.1, True),
        ({"score": 1.0, "acc": 0.0}, False),
        ({"score": -1.0, "acc": True}, True),
    ],
)
def test_right_is_acc_or_else_a_positive_score(result, correct):
    assert score(lambda **_: result, PROBLEM, "")["correct"] is correct


def test_what_the_function_reports_can_be_written_down():
    fields = {"score": np.float32(1), "acc": np.bool_(True), "extra": float("nan"), "list": [1], "pred": None}
    found = score(lambda **_: fields, PROBLEM, "")
    assert json.loads(json.dumps(found)) == {
        "score": 1.0,
        "acc": True,
        "extra": None,
        "list": "[1]",
        "pred": None,
        "correct": True,
    }


@pytest.mark.parametrize("result", [{"acc": 1.0}, "right", None, {"score": float("nan")}, float("inf")])
def test_no_finite_score_is_an_error_that_names_the_problem(result):
    with pytest.raises(EvaluationError, match=r"reward function, problem 3 of a.parquet: "):
        score(lambda **_: result, PROBLEM, "")


def test_what_a_function_raises_is_named():
    with pytest.raises(EvaluationError, match=r"problem 3 of a.parquet: ZeroDivisionError: division"):
        score(lambda **_: 1 / 0, PROBLEM, "")


@pytest.mark.parametrize(
    ("text", "spec", "reason"),
    [
        ("", "absent.py:f", "FileNotFoundError"),
        ("", "mine.py:f", "expected f to be a function"),
        ("f = 1", "mine.py:f", "expected f to be a function"),
        ("async def f(): pass", "mine.py:f", "not a coroutine"),
        ("import nothing_of_that_name", "mine.py:f", "ModuleNotFoundError"),
        ("", "mine.py", "expected compute_score to be a function"),
        ("", "mine.py:", "Expected FILE.py or pkg://MODULE"),
        ("", "mine", "Expected FILE.py or pkg://MODULE"),
        ("", "pkg://soup_verl.absent:f", "ModuleNotFoundError"),
    ],
)
def test_no_function_no_evaluation(tmp_path, monkeypatch, text, spec, reason):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError, match=reason):
        load_reward(spec, {})


def test_keywords_reach_the_function(tmp_path):
    reward, _ = load_reward(DEFAULT, {"boxes": "row"})
    row = Problem("a.parquet", 3, [], "sums", "1, 2", {})
    assert score(reward, row, r"\boxed{1}, \boxed{2}")["correct"]
    assert not score(load_reward(DEFAULT, {})[0], row, r"\boxed{1}, \boxed{2}")["correct"]
    (tmp_path / "mine.py").write_text("def f(bonus, **given): return bonus")
    assert score(load_reward(f"{tmp_path}/mine.py:f", {"bonus": 2.5})[0], PROBLEM, "")["score"] == 2.5


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"box": "row"}, "--reward-kwargs: reward_kwargs.box='row': expected no such key, but one of "),
        ({"thoughts": "keep"}, "--reward-kwargs: reward_kwargs.thoughts='keep': expected 'ignore' or 'count'"),
    ],
)
def test_a_keyword_that_our_reward_does_not_have_is_refused(keywords, told):
    with pytest.raises(EvaluationError, match=told):
        load_reward(DEFAULT, keywords)
