"""Code data sets by their hubs' columns: what becomes of a row, and which rows are dropped or refused."""

import base64
import json
import zlib

import pyarrow.parquet as pq
import pytest

from soup_verl.tasks import golds, prepare_data
from soup_verl.tasks.code.rows import hidden_tests
from soup_verl.tasks.data.layouts import DataError
from soup_verl.tasks.reward import compute_score
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES

MBPP = {
    "task_id": 601,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\r\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SANITIZED = {
    "source_file": "x.ipynb",
    "task_id": 602,
    "prompt": "Write a function for the square root.",
    "code": "import math\ndef root(x): return math.sqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(root(2), math.sqrt(2), rel_tol=0.001)"],
}
MBPP_PLUS = SANITIZED | {
    "test": "import numpy as np\ninputs = [[4], [9]]\nresults = [2.0, 3.0]\n"
    "for inp, exp in zip(inputs, results):\n    assert np.allclose(root(*inp), exp)"
}
HUMAN_EVAL = {
    "task_id": "HumanEval/999",
    "prompt": "from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    '''The first: first([3]) is 3.'''\n",
    "canonical_solution": "    return xs[0]\n",
    "entry_point": "first",
    "test": "def check(candidate):\n    assert candidate([3, 4]) == 3\n    assert candidate(xs=[5]) == 5\n",
}
DEEP_CODER = {
    "problem": "Print twice the number.",
    "solutions": ["```python\nprint(2 * int(input()))\n```"],
    "tests": json.dumps([{"type": "stdin_stdout", "input": "4\n", "output": "8\n"}]),
}
DEEP_CODER_CALL = {
    "problem": "Twice the number.",
    "solutions": ["class Solution:\n    def twice(self, n):\n        return 2 * n"],
    "tests": json.dumps([{"type": "function_call", "fn_name": "twice", "input": [4], "output": 8}]),
}
PLAIN = {"id": "a", "question": "Print 7.", "tests": {"style": "stdin", "tests": [{"input": "", "output": "7"}]}}


def live_code_bench(private, **changes):
    return {
        "question_title": "Add",
        "question_content": "Add two numbers.",
        "platform": "leetcode",
        "question_id": "3000",
        "contest_date": "2025-01-01",
        "starter_code": "class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        ",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1\n[2, 3]", "output": "6", "testtype": "functional"}]),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": "add"}),
    } | changes


# What pickle.dumps(json.dumps([...])) gives for one hidden test, written out: no test of ours pickles.
HIDDEN = json.dumps([{"input": "0\n[1]", "output": "1", "testtype": "functional"}])
PICKLED = (
    b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00X" + len(HIDDEN).to_bytes(4, "little") + HIDDEN.encode() + b"\x94."
)
PACKED = base64.b64encode(zlib.compress(PICKLED)).decode()


def prepared(tmp_path, rows, dataset="mbpp", *options):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", dataset, "--from", str(file), "--out", str(tmp_path), "--template", "tiny", *options]
    assert prepare_data.main(arguments) == 0
    return pq.read_table(tmp_path / f"{dataset}.parquet").to_pylist()


@NEEDS_NAMESPACES
@pytest.mark.parametrize(
    ("dataset", "row", "asked"),
    [
        (
            "mbpp",
            MBPP,
            "add two numbers.\nYour code should pass this test:\nassert add(1, 2) == 3\nWrite Python between",
        ),
        ("mbpp", SANITIZED, "assert math.isclose"),
        ("mbpp-plus", MBPP_PLUS, "square root.\nYour code should pass this test:\nassert math.isclose"),
        ("humaneval-plus", HUMAN_EVAL, "Complete this function.\n```python\nfrom typing import List"),
        ("deepcoder", DEEP_CODER, "Print twice the number.\n\nRead standard input, write standard output."),
        ("deepcoder", DEEP_CODER_CALL, "Twice the number."),
    ],
)
def test_a_row_of_the_hub_is_solved_by_its_own_solution_and_by_no_other(tmp_path, dataset, row, asked):
    (found,) = prepared(tmp_path, [row], dataset)
    assert asked in found["prompt"][0]["content"] and found["extra_info"]["domain"] == found["ability"] == "code"
    gold = {"data_source": dataset, "gold": found["reward_model"]["ground_truth"], "extra": found["extra_info"]}
    assert golds.verdict(compute_score, gold, {}, ours=True) == (True, "")
    wrong = found["extra_info"] | {"solution": "def add(a, b): return 3\nroot = first = add\nprint(5)"}
    assert golds.verdict(compute_score, gold | {"extra": wrong}, {}, ours=True) == (False, "")


@NEEDS_NAMESPACES
def test_a_program_of_human_eval_may_leave_out_what_its_prompt_gave(tmp_path):
    (row,) = prepared(tmp_path, [HUMAN_EVAL], "humaneval-plus")
    response = "```python\ndef first(xs: List[int]):\n    return xs[0]\n```"
    assert compute_score("d", response, row["reward_model"]["ground_truth"], row["extra_info"])["acc"] == 1.0


@NEEDS_NAMESPACES
@pytest.mark.parametrize("private", [HIDDEN, PACKED])
def test_live_code_bench_has_hidden_tests_packed_or_not(tmp_path, private):
    (row,) = prepared(tmp_path, [live_code_bench(private)], "livecodebench")
    assert "Use this beginning:\n```python\nclass Solution:" in row["prompt"][0]["content"]
    gold = row["reward_model"]["ground_truth"]
    program = "class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        return {}"
    for body, acc in (("a + sum(b)", 1.0), ("6", 0.0)):
        response = f"```python\n{program.format(body)}\n```"
        assert compute_score("d", response, gold, row["extra_info"])["acc"] == acc


@NEEDS_NAMESPACES
def test_live_code_bench_by_standard_input(tmp_path):
    public = json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}])
    row = live_code_bench("", metadata="{}", starter_code="", public_test_cases=public)
    (found,) = prepared(tmp_path, [row], "livecodebench")
    response = "```python\nprint(sum(map(int, input().split())))\n```"
    assert compute_score("d", response, found["reward_model"]["ground_truth"], found["extra_info"])["acc"] == 1.0


@pytest.mark.parametrize("text", ["no base 64", base64.b64encode(b"no zlib").decode(), "eJw="])
def test_hidden_tests_of_another_kind_are_refused(text):
    with pytest.raises(DataError, match="'private_test_cases' is .* expected LiveCodeBench's"):
        hidden_tests(text)


def test_nothing_in_a_pickle_is_called():
    call = b"\x80\x04cos\nsystem\nX\x07\x00\x00\x00echo [1\x85R."
    with pytest.raises(DataError):
        hidden_tests(base64.b64encode(zlib.compress(call)).decode())


def test_rows_without_tests_are_dropped_and_counted(tmp_path, capsys):
    empty = [MBPP | {"test_list": [], "text": "x"}, MBPP | {"test_list": None, "text": "y"}]
    rows = prepared(tmp_path, [MBPP, *empty, SANITIZED | {"text": "z"}])
    assert [row["extra_info"]["id"] for row in rows] == ["601", "602"]
    dropped = json.loads((tmp_path / "mbpp.report.json").read_text())["dropped"]["no_tests"]
    assert (dropped["rows"], dropped["first_row"]) == (2, 2) and "at least one test" in dropped["detail"]
    assert "no_tests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([MBPP | {"test_list": []}], [], "error: no row is left of 1 (1 no_tests, first: row 1, at least one test"),
        (
            [MBPP, MBPP | {"test_list": [], "text": "x"}],
            ["--strict"],
            "error: --strict: row 2: no_tests (at least one test",
        ),
        ([{"text": "x", "code": "y"}], [], "error: the columns are text, code: expected question_content, "),
        ([PLAIN | {"tests": "none"}], [], "error: no row is left of 1 (1 no_tests"),
    ],
)
def test_a_data_set_without_tests_is_refused_in_one_line(tmp_path, capsys, rows, options, told):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", "mbpp", "--from", f"{tmp_path}/rows.jsonl", "--out", str(tmp_path), *options]
    assert prepare_data.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(told) and error.count("\n") == 1 and not list(tmp_path.glob("*.parquet"))


@NEEDS_NAMESPACES
def test_rows_of_ones_own(tmp_path):
    (row,) = prepared(tmp_path, [PLAIN])
    assert (
        compute_score("d", "```\nprint(7)\n```", row["reward_model"]["ground_truth"], row["extra_info"])["acc"] == 1.0
    )


def test_texts_of_code_are_not_repaired_as_mathematics_is(tmp_path):
    (row,) = prepared(tmp_path, [PLAIN | {"question": "Print\n\tan $x$ or \n\times"}])
    assert "Print\n\tan $x$ or \n\times" in row["prompt"][0]["content"]
