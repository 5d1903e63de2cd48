"""Programs judged by tests: what is right, what is wrong and why, what a row and a keyword must be."""

import json

import pytest

from soup_verl.tasks.code import check_keywords, last_block, right_answers, same_output
from soup_verl.tasks.code.gold import Suite, read_tests
from soup_verl.tasks.domains import FIELDS
from soup_verl.tasks.reward import compute_score
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES

pytestmark = NEEDS_NAMESPACES

SUM = Suite("stdin", (("1 2\n", "3\n"), ("20 22\n", "42\n"))).as_gold()
ADD = Suite("assert", ("assert add(1, 2) == 3", "assert add(20, 22) == 42"), "import math", "").as_gold()
RIGHT = {SUM: "print(sum(map(int, input().split())))", ADD: "def add(a, b):\n    return a + b"}


def judged(program, gold, **keywords):
    return compute_score("d", f"So:\n```python\n{program}\n```\nDone.", gold, {"domain": "code"}, **keywords)


@pytest.mark.parametrize("gold", [SUM, ADD])
def test_a_program_that_passes_all_tests_is_right(gold):
    found = judged(RIGHT[gold], gold)
    assert tuple(found) == FIELDS and found | {"pred": ""} == {
        "score": 1.0,
        "acc": 1.0,
        "format": 1.0,
        "timeout": 0.0,
        "error": "",
        "pred": "",
    }


@pytest.mark.parametrize(
    ("program", "gold", "share", "error"),
    [
        ("print(3)", SUM, 0.5, ""),
        ("print(42)", SUM, 0.5, ""),
        ("print(input())", SUM, 0.0, ""),
        ("print(3)\n1 / 0", SUM, 0.0, "crashed"),
        ("while True: pass", SUM, 0.0, "timeout"),
        ("while True: print('3')", SUM, 0.0, "output"),
        ("def add(a, b): return 3", ADD, 0.5, ""),
        ("def add(a, b): return 3 if a == 1 else exit()", ADD, 0.5, ""),
        ("import os\ndef add(a, b): return 3 if a == 1 else os._exit(0)", ADD, 0.5, ""),
        ("def add(a, b):\n    while True: pass", ADD, 0.0, "timeout"),
        ("def plus(a, b): return a + b", ADD, 0.0, ""),
        ("def add(a, b) return a + b", ADD, 0.0, "crashed"),
    ],
)
def test_the_share_of_tests_is_told_where_it_is_asked_for(program, gold, share, error):
    found = judged(program, gold, share_of_tests=True, test_time_limit_s=1)
    assert (found["score"], found["acc"], found["error"]) == (share, 0.0, error)
    assert found["timeout"] == (error == "timeout")


@pytest.mark.parametrize("gold", [SUM, ADD])
def test_the_first_failure_ends_it_and_costs_the_whole_reward(gold):
    assert judged(RIGHT[gold].replace("+ b", "- b").replace("sum", "max"), gold)["score"] == 0.0


def test_after_the_first_failure_no_further_test_is_run():
    program = "x = input()\nprint(0)\nif x != '1 2': 1 / 0"
    assert (judged(program, SUM)["error"], judged(program, SUM, share_of_tests=True)["error"]) == ("", "crashed")


def test_only_the_first_tests_count_up_to_the_limit():
    assert judged("print(3)", SUM, max_tests=1)["acc"] == 1.0


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("", "no_program"),
        ("print(3)", "no_program"),
        ("```python\nprint(3)", "no_program"),
        ("```\n\n```", "no_program"),
    ],
)
def test_a_response_without_a_whole_block_has_no_program(response, error):
    found = compute_score("d", response, SUM, {"domain": "code"})
    assert (found["score"], found["format"], found["error"]) == (0.0, 0.0, error)


def test_a_program_that_is_too_long_is_not_run():
    assert judged("#" * 100_001, SUM)["error"] == "too_long"


def test_the_last_block_after_the_thoughts_is_the_program():
    assert last_block("```python\na\n```\nor\n  ```py\n\nb\n  c\n  ```\nor `d`") == "b\n  c"
    assert last_block("<think>\n```\na\n```\n</think>\n```\nb\n```") == "b"
    assert last_block("<think>\n```\na\n```\n</think>\nnothing") == ""


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("3\n", "3", True),
        ("1  2 \n3\n\n", "1 2\n3", True),
        ("3.0\n", "3", True),
        ("1e1", "10", True),
        ("3.0000001", "3", False),
        ("1\n2", "1 2", False),
        ("", "0", False),
        ("yes", "YES", False),
        ("nan", "nan", True),
        ("9" * 500, "9" * 499, False),
    ],
)
def test_outputs_are_the_same_but_for_spaces_and_spellings_of_numbers(written, expected, same):
    assert same_output(written, expected) is same


# ---- assert style: what may pass between the tests and the program ----

FORMS = """
from collections import Counter, OrderedDict, namedtuple
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def total(self): return self.a + self.b
class Solution:
    def twice(self, xs): return [2 * x for x in xs]
Point = namedtuple("Point", "x y")
LIMIT = 7
def longest(pairs): return max(p.b for p in pairs)
def same(x): return x
def counted(s): return Counter(s)
def stream(n):
    for i in range(n): yield i
def refuse(x): raise ValueError("negative")
def custom(): raise type("Own", (Exception,), {})("mine")
def point(): return Point(1, 2)
"""


@pytest.mark.parametrize(
    "test",
    [
        "x = [1, (2.5, 'x'), {3}, {'k': None}, b'y', True, 1j, frozenset()]\nassert same(x) == x and same(x) is not x",
        "assert type(same((1,))) is tuple and type(same(True)) is bool and same(2**200) == 2**200",
        "assert math.isnan(same(float('nan'))) and same(float('-inf')) == -math.inf and same('\\ud800') == '\\ud800'",
        "assert longest([Pair(5, 24), Pair(15, 25)]) == 25",
        "assert Pair(1, 2).total() == 3 and Pair(1, 2).a == 1",
        "p = Pair(1, 2)\np.a = 10\nassert p.total() == 12",
        "assert Solution().twice([1, 2]) == [2, 4]",
        "assert counted('aab') == {'a': 2, 'b': 1} and point() == (1, 2)",
        "assert list(stream(3)) == [0, 1, 2]",
        "try:\n    refuse(1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'",
        "try:\n    custom()\n    assert False\nexcept RuntimeError:\n    pass",
        "def check(candidate):\n    assert candidate(x=3) == 3\ncheck(same)",
        "import numpy as np\nassert np.allclose(same([1.0]), 1.0)",
    ],
)
def test_plain_data_and_objects_of_the_programs_own_pass_between_program_and_tests(test):
    gold = Suite("assert", (test,), "import math").as_gold()
    assert judged(FORMS, gold)["acc"] == 1.0


@pytest.mark.parametrize("test", ["assert same(Pair(1, 2))", "assert Pair(1, 2) == Pair(1, 2)", "assert LIMIT"])
def test_an_object_of_the_programs_own_is_neither_true_nor_equal_to_anything(test):
    assert judged(FORMS, Suite("assert", (test,)).as_gold())["acc"] == 0.0


def test_the_prelude_stands_before_the_program():
    gold = Suite("assert", ("assert f([1]) == 1",), "", "from typing import List").as_gold()
    assert judged("def f(x: List[int]): return x[0]", gold)["acc"] == 1.0


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys\nprint(sys.stdin.read(), end='')\nsys.exit()", "1 2\n"),
        ("if __name__ == '__main__':\n    print(__name__)\n    quit()", "__main__"),
        ("import threading\nt = threading.Thread(target=lambda: print(input()))\nt.start()", "1 2"),
        ("import atexit\natexit.register(print, 'last')", "last"),
        ("import sys\nsys.setrecursionlimit(10**6)\ng = lambda n: n and g(n - 1)\nprint(g(50_000))", "0"),
        ("import random, heapq, collections, numpy\nprint(numpy.arange(3).sum())", "3"),
        ("open('note', 'w').write('kept')\nprint(open('note').read())", "kept"),
        (
            "import os\nprint(sorted(os.environ), os.getcwd())",
            "['LANG', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED'] /work",
        ),
        ("print('é')", "é"),
    ],
)
def test_ordinary_programs_run_as_python_runs_them(program, expected):
    assert judged(program, Suite("stdin", (("1 2\n", expected),)).as_gold()) | {"pred": ""} == judged(
        "print(3)", Suite("stdin", (("", "3"),)).as_gold()
    ) | {"pred": ""}


# ---- rows and keywords ----


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        ("5", "expected JSON text with a style of stdin or assert"),
        (None, "expected JSON text"),
        (json.dumps({"style": "pytest", "tests": ["x"]}), "style of stdin or assert"),
        (json.dumps({"style": "assert", "tests": []}), "at least one test: a program without tests cannot be judged"),
        (json.dumps({"style": "assert", "tests": [3]}), "Python text"),
        (json.dumps({"style": "stdin", "tests": [{"input": "1"}]}), "an input and an output"),
    ],
)
def test_a_row_without_tests_is_refused_by_its_field(gold, told):
    with pytest.raises(ValueError, match=f"^ground_truth=.*{told}"):
        compute_score("d", "", gold, {"domain": "code"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"isolation": "none"}, "isolation='none': expected 'required' or 'limits'"),
        ({"test_time_limit_s": 0.5}, "test_time_limit_s=0.5: expected a whole number of at least 1"),
        ({"max_tests": 0}, "max_tests=0: expected a whole number"),
        ({"share_of_tests": "yes"}, "share_of_tests='yes': expected true or false"),
    ],
)
def test_a_keyword_of_another_kind_is_refused(given, told):
    check_keywords({"isolation": "limits", "max_tests": 3, "share_of_tests": True})
    with pytest.raises(ValueError, match=f"reward_kwargs.{told}"):
        check_keywords(given)


def test_a_rows_own_solution_is_its_right_answer():
    (answer,) = right_answers(SUM, {"solution": RIGHT[SUM]})
    assert compute_score("d", answer, SUM, {"domain": "code"})["acc"] == 1.0
    assert list(right_answers(SUM, {"solution": None})) == [] and read_tests(SUM).style == "stdin"
