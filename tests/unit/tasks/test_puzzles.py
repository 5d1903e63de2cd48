"""Puzzles of reasoning-gym: real scorers in real processes."""

import itertools
import json
import re

import pyarrow.parquet as pq
import pytest
from reasoning_gym.utils import extract_answer

from soup_verl.tasks import golds, puzzles
from soup_verl.tasks.data import puzzle_maker
from soup_verl.tasks.data.datasets import Problem
from soup_verl.tasks.data.puzzles import (
    REFUSED,
    check_family,
    drawn,
    families,
    gold_text,
    is_of_test,
    make,
    puzzle_spec,
    read_settings,
)
from soup_verl.tasks.domains import check_keywords
from soup_verl.tasks.grading.killable import PUZZLES, shared_pool
from soup_verl.tasks.prepare_data import main as prepare_data
from soup_verl.tasks.reward import compute_score

PUZZLE = {"domain": "puzzles"}


def gold(family="chain_sum", answer="12", *, config=None, **metadata):
    return json.dumps({"family": family, "config": config or {}, "answer": answer, "metadata": metadata})


def score(answer, row=None, **keywords):
    return compute_score("d", f"<answer>{answer}</answer>", row or gold(), PUZZLE, **keywords)


@pytest.fixture(scope="module", autouse=True)
def scorers_run():
    """The first check waits for reasoning-gym's import, which is not what the limits below are about."""
    score("12")
    yield
    shared_pool(PUZZLES).close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer> 12\n</answer>.", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", ""),
        ("<answer>12", None),
        ("12</answer>", None),
        (r"\boxed{12}", None),
    ],
)
def test_the_answer_is_what_reasoning_gym_would_take(text, answer):
    assert puzzles.last_answer(text) == answer == extract_answer(text)


def test_an_answer_within_an_answer_is_the_inner_one_and_found_in_linear_time():
    assert puzzles.last_answer("<answer>1<answer>2</answer>") == "2"
    assert puzzles.last_answer("<answer>" * 500_000) is None  # its own takes 10^11 steps


def test_scores_are_the_scorers_own():
    assert score("12") == {"score": 1.0, "acc": 1.0, "format": 1.0, "timeout": 0.0, "error": "", "pred": "12"}
    assert score("+12.0")["acc"] == 1.0  # signs and decimals are tolerated
    found = score("12 apples")  # the share of the text that is the answer
    assert found["score"] == pytest.approx(2 / 9) and found["acc"] == 0.0
    assert score("12 apples", partial_credit=False)["score"] == 0.0
    assert score("13")["score"] == 0.0


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("12", "no_answer"),
        ("<answer> </answer>", "no_answer"),
        ("<think><answer>12</answer>", "no_answer"),  # thoughts that never end
        ("<think><answer>12</answer></think>", "no_answer"),
        (f"<answer>{'1' * 10_001}</answer>", "too_long"),
    ],
)
def test_what_is_no_answer_scores_nothing(response, error):
    found = compute_score("d", response, gold(), PUZZLE)
    assert (found["score"], found["acc"], found["error"]) == (0.0, 0.0, error)


def test_thoughts_are_not_read():
    assert compute_score("d", "<think><answer>9</answer></think><answer>12</answer>", gold(), PUZZLE)["acc"] == 1.0


COUNTDOWN = gold("countdown", "9*(8-1)", numbers=[9, 8, 1], target=63)


def test_a_formula_is_as_right_as_the_one_that_is_known():
    assert score("(8 - 1) * 9", COUNTDOWN)["acc"] == 1.0
    assert score("9*8-1", COUNTDOWN)["score"] == 0.05  # its scorer's consolation
    assert score("63", COUNTDOWN)["acc"] == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').getpid()", "x.__class__", "().real", "'63'", '"63"', "lambda: 63", "open(63)", "eval(63)"),
        *("sympify(63)", "x[0]", "{63}", "63 if 1 else 2", "1e5", "0x3f", "63; 1", "63 # 1", "\u0660"),
        *("9" * 5000 + "!", "9+" * 500),
    ],
)  # fmt: skip
def test_nothing_but_a_formula_reaches_sympys_parser(text):
    found = score(text, COUNTDOWN)
    assert (found["error"], found["score"], found["format"]) == ("not_allowed", 0.0, 1.0)


@pytest.mark.parametrize(
    "row",
    [
        gold("complex_arithmetic", "1.0 + 2.0i", result=[1.0, 2.0]),
        gold("number_sorting", '["1.0", "2.0"]', direction="ascending"),
    ],
)
def test_no_number_is_not_every_number(row):
    answer = json.loads(row)["answer"]
    assert score(answer, row)["acc"] == 1.0
    for text in ("nan", "nan+nanj", "[NaN, NaN]", '["nan", "nan"]'):
        assert score(text, row)["score"] == 0.0


def test_a_hostile_formula_costs_its_limit_and_nothing_else():
    found = score("9**9**9**9", COUNTDOWN, time_limit_s=0.5)
    assert found["error"] in ("timeout", "memory") and found["score"] == 0.0
    assert found["timeout"] == float(found["error"] == "timeout")
    assert score("9*(8-1)", COUNTDOWN)["acc"] == 1.0


@pytest.mark.parametrize(
    "broken", ["", "12", None, "[]", '{"family": "chain_sum"}', gold(answer=12), gold().replace("{}", "3")]
)
def test_a_broken_row_is_an_error_that_says_what_writes_sound_ones(broken):
    for judge in (lambda: score("12", broken or "{}"), lambda: puzzles.check_row("d", broken, PUZZLE)):
        with pytest.raises(ValueError, match="expected JSON with family.*--dataset reasoning-gym:NAME"):
            judge()


@pytest.mark.parametrize("family", REFUSED)
def test_a_row_of_a_refused_family_is_never_scored(family):
    with pytest.raises(ValueError, match=f"ground_truth.family='{family}' of a row of data_source='d': refused, "):
        score("__import__('os')", gold(family))


def test_a_row_of_a_family_that_there_is_not_is_found_by_preflight():
    with pytest.raises(ValueError, match="ground_truth.family='chian_sum'.* Did you mean chain_sum"):
        puzzles.check_row("d", gold("chian_sum"), PUZZLE)


def test_preflight_asks_the_scorer_for_the_gold():
    row = {"data_source": "d", "gold": gold(), "extra": PUZZLE}
    assert golds.verdict(compute_score, row, {"partial_credit": False}, ours=True) == (True, "")
    other = row | {"gold": COUNTDOWN.replace('"target": 63', '"target": 64')}
    assert golds.verdict(compute_score, other, {}, ours=True) == (False, "")


def test_keywords_are_checked():
    check_keywords({"partial_credit": False, "time_limit_s": 1})
    with pytest.raises(ValueError, match="reward_kwargs.partial_credit='no': expected true or false"):
        check_keywords({"partial_credit": "no"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reasoning-gym:chian_sum"], "'chian_sum': expected a task of reasoning-gym. Did you mean chain_sum or "),
        (["reasoning-gym:xyzzyx"], "expected a task of reasoning-gym, one of ab, acre, "),
        (["reasoning-gym:n_queens"], "'n_queens' is refused: its scorer gives answers to Python's eval"),
        (["reasoning-gym:puzzle24-test"], "'puzzle24' is refused: its scorer does not look"),
        (["reasoning-gym:chain_sum", "--set", "max_term=3"], "--set=max_term: expected .* Did you mean max_terms?"),
        (["reasoning-gym:chain_sum", "--set", "max_terms=0"], "chain_sum refuses .'max_terms': 0. .AssertionError"),
        (["reasoning-gym:chain_sum", "--set", "max_terms"], "--set='max_terms': expected NAME=VALUE"),
        (["reasoning-gym:chain_sum", "--size", "0"], "--size=0: expected a number of at least 1"),
        (["reasoning-gym:chain_sum", "--seed", "401"], "--seed=401: expected a whole number from 0 to 400"),
        (["reasoning-gym:chain_sum", "--from", "x.jsonl"], "--from=x.jsonl: expected no file"),
        (["gsm8k", "--size", "5"], "--size=5: expected with reasoning-gym:NAME alone"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_refused_in_one_line(arguments, told, tmp_path, capsys):
    assert prepare_data(["--out", str(tmp_path / "out"), "--dataset", *arguments]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(told.replace("?", r"\?"), line), line
    assert not (tmp_path / "out").exists()


def test_settings_are_json_where_they_are():
    given = ["a=3", "b=[1, 2]", "c=true", "d=hard", "e=x=y"]
    assert read_settings(given) == {"a": 3, "b": [1, 2], "c": True, "d": "hard", "e": "x=y"}


def test_every_question_is_of_one_half():
    halves = [is_of_test(f"{i} + {i}") for i in range(64)]
    assert sum(halves) == 27 and is_of_test("0 + 0") is False  # SHA-256 stays what it is


def test_a_puzzle_whose_scorer_tells_nothing_apart_is_dropped():
    problem = Problem(1, "1", "?", gold("polynomial_equations", ""))  # no solution: any text that is no number is right
    assert puzzles.fault(problem) == ("anything_is_right", "<answer>no such answer</answer>")
    assert puzzles.fault(Problem(1, "1", "?", COUNTDOWN.replace("63", "64"))) == ("gold_is_not_right", "9*(8-1)")
    assert puzzles.fault(Problem(1, "1", "?", gold())) is None


HOSTILE = [
    *("9**9**9**9", "(" * 3000, "[" * 5000, "9" * 9000, "1e999999999", "\x00\ud800",
      '{"a":' * 1000, "1," * 4000, "1/0"),
    *("F+999999999", "[1]*10**10", "nan", "-inf", json.dumps([[0] * 50] * 50)),
    *("x" + "*x" * 200, "exp(" * 90 + "x" + ")" * 90),
]  # fmt: skip


@pytest.mark.e2e  # a minute: every family makes puzzles and scores some texts
def test_every_family_takes_its_own_answer_and_no_other(tmp_path):
    """The gold is solved, a wrong answer and hostile texts are not and raise nothing; or the family is refused."""
    without_gold, found = set(), {}
    for family in sorted(set(families()) - set(REFUSED)):
        entries = list(itertools.islice(puzzle_maker.entries(family, 0, {}), 2))
        for row in (gold_text(family, {}, entry) for entry in entries):
            puzzles.check_row("d", row, PUZZLE)
            right = list(puzzles.right_answers(row, PUZZLE))
            without_gold |= set() if right else {family}
            solved = [compute_score("d", text, row, PUZZLE, time_limit_s=60)["acc"] for text in right]
            wrong = [text for text in ["no such answer", *HOSTILE] if score(text, row, time_limit_s=0.5)["acc"]]
            if 0.0 in solved or wrong:
                found[family] = solved, wrong
    assert found == {}
    assert without_gold == {"boxnet", "propositional_logic", "rush_hour"}


@pytest.mark.e2e  # starts reasoning-gym a few times
def test_the_same_arguments_give_the_same_rows_and_the_halves_share_none(tmp_path, monkeypatch):
    def prepared(name, hashes="1", **options):
        monkeypatch.setenv("PYTHONHASHSEED", hashes)  # of this process's children, which settle it themselves
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        given = [str(x) for key, value in options.items() for x in (f"--{key}", value)]
        assert prepare_data(["--dataset", f"reasoning-gym:{name}", "--out", str(out), *given]) == 0
        table = pq.read_table(out / f"reasoning-gym-{name}.parquet").to_pylist()
        return [(row["extra_info"]["question"], row["reward_model"]["ground_truth"]) for row in table]

    words = prepared("ransom_note", size=12, seed=3)  # its sets of letters have an order by their hashes
    assert prepared("ransom_note", hashes="2", size=12, seed=3) == words
    assert prepared("ransom_note", size=5, seed=3) == words[:5]
    assert not set(prepared("ransom_note", size=12, seed=4)) & set(words)
    few = prepared("coin_flip", size=60)
    test = prepared("coin_flip-test", size=60)
    assert len({q for q, _ in few}) == len({q for q, _ in test}) == 60
    assert not {q for q, _ in few} & {q for q, _ in test}
    assert json.loads(words[0][1])["family"] == "ransom_note"


@pytest.mark.e2e
def test_a_family_with_too_few_questions_says_how_many(tmp_path, capsys):
    few = ["--set", "min_trials=3", "max_trials=3", "--size", "200"]
    assert prepare_data(["--dataset", "reasoning-gym:coin_flip", "--out", str(tmp_path / "out"), *few]) == 1
    line = capsys.readouterr().err
    assert (
        line.startswith("error: --size=200: coin_flip gave ") and "expected at most " in line and line.count("\n") == 1
    )


@pytest.mark.e2e
def test_a_maker_that_ends_says_why_and_one_that_is_not_needed_any_more_is_ended():
    with pytest.raises(Exception, match="reasoning-gym could make no more of chain_sum .*min_terms must be positive"):
        list(drawn("chain_sum", {"min_terms": 0}, 0))
    assert check_family("chain_sum") is None
    rows = list(make("bf", {}, size=2, seed=0, is_test=False))  # which prints while it makes them
    assert [json.loads(row["answer"])["family"] for _, row in rows] == ["bf"] * 2
    assert puzzle_spec("reasoning-gym:chain_sum-test", size=1, seed=0, settings=[]).is_benchmark
