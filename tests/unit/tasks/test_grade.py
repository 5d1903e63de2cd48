"""`python -m soup_verl.grade`: one answer with its steps, a file of rows beside math-verify."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from soup_verl.tasks.grade import main

ROOT = Path(__file__).parents[3]
ROWS = [
    {"id": "a", "kind": "number", "gold": "1000", "pred": "1{,}000", "expected": 1},
    {"id": "b", "kind": "number", "gold": "7", "pred": r"7 \text{ tenths}", "expected": 0},
    {"id": "c", "kind": "name", "gold": "5", "response": r"So \boxed{AB = 5}.", "expected": 1},
    {"id": "d", "kind": "name", "ground_truth": "5", "prediction": r"\boxed{6}", "whole_response": True, "expected": 1},
    {"id": "e", "kind": "taste", "gold": "x > 2", "pred": r"(2,\infty)", "expected": 0, "debatable": True},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", encoding="utf-8")
    return str(path)


def test_one_answer_and_the_step_that_decided(capsys):
    assert main(["--gold", r"(1200, \frac12)", "--pred", "(1,200, 0.5)"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("right: ") and lines[0].endswith("decided by: tuple or set")
    assert lines[1:4] == [
        r"  tuple or set: (1200,\frac{1}{2}) | (1,200;0.5): same",
        "    same spelling: 1200 | 1200: same",
        r"    number: \frac{1}{2} | 0.5: same",
    ]
    assert lines[4].startswith("math-verify alone: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gold", "5", "--pred", "12=5"], "wrong: '5' expected, '12=5' given; decided by: relation"),
        (["--gold", "5", "--pred", r"5 \bmod 7"], "wrong: no verdict (not_allowed): '5' expected"),
        (["--gold", "5", "--response", "it is 5"], "wrong: the response gives no answer (no_box)"),
        (["--gold", "5", "--pred", "6", "--extra", '{"tolerance": 1}'], "right: '5' expected, '6' given"),
        (["--gold", "5", "--response", r"<think>\boxed{5}", "--set", "thoughts=count"], "right: '5' expected"),
    ],
)
def test_what_is_said_of_an_answer(arguments, said, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(said)


def test_rows_of_a_file_and_where_math_verify_says_otherwise(rows, capsys):
    assert main(["--file", rows]) == 0
    out = capsys.readouterr().out
    assert out.startswith("5 rows, 3 right; math-verify says otherwise of ")
    assert (
        "  b: wrong here (number): '7' expected, '7 \\\\text{ tenths}' given" in out
    )  # to math-verify tenths are a unit
    assert "other than `expected`: 2:\n  d: '5' expected, '6' given\n  e: " in out


def test_a_table_by_kind(rows, capsys):
    assert main(["--file", rows, "--table"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[2].startswith("| name | 2 | 1 |") and lines[3].startswith("| number | 1 | 1 |")
    assert lines[4].startswith("| **all that are not debatable** | 3 | 2 |")
    assert lines[5].startswith("| **all, debatable ones** | 0 | 0 | 0 | 1 | 0 |")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "rows.jsonl: row 1 is not JSON"),
        ("[]", "rows.jsonl: holds no rows"),
        ("[1]", "row 1 is a int, expected an object"),
        ('{"pred": "5"}', "row 1: expected a field 'gold' or 'ground_truth', found pred"),
        ('{"gold": "5"}', "row 1: expected a field 'response' or 'pred' or 'prediction', found gold"),
        ('{"gold": "", "pred": "5"}', "row 1: ground_truth=''"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, text, message, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert main(["--file", str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [("boxes=all", "reward_kwargs.boxes='all': expected 'last' or 'row'"), ("box=row", "expected one of relation_as")],
)
def test_a_keyword_that_is_none_is_named(setting, message, capsys):
    assert main(["--gold", "5", "--pred", "5", "--set", setting]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--gold", "5"], ["--gold", "5", "--pred", "5", "--response", "5"]])
def test_what_is_missing_is_told(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "expected --file, or --gold with --pred or with --response" in capsys.readouterr().err


def test_as_a_command():
    ended = subprocess.run(
        [sys.executable, "-m", "soup_verl.grade", "--gold", r"\sqrt{8}", "--pred", r"2\sqrt{2}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0 and "expression: \\sqrt{8} | 2\\sqrt{2}: same" in ended.stdout, ended.stderr
