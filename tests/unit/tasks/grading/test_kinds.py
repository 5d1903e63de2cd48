r"""Every kind of answer with both verdicts, through the reward and its real checker.

`kinds.txt` has the tables: `+ gold ~~ answer` is right, `- gold ~~ answer` is a near miss and wrong. Of the kind `box`
the answer is a whole response; of the others it stands in a box.
"""

import json
import os
from pathlib import Path

import pytest

from soup_verl.tasks.grading.answers import KINDS
from soup_verl.tasks.reward import compute_score

ROOT = Path(__file__).parents[4]
CASES = Path(os.environ.get("SOUP_TEST_CASES") or ROOT.parent / "shared" / "cases") / "reward.jsonl"


def read_tables():
    """kind -> (verdict, gold, answer) of its rows."""
    tables, kind = {}, ""
    for line in (Path(__file__).parent / "kinds.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("# "):
            kind = line[2:]
        elif line:
            gold, answer = line[2:].split(" ~~ ")
            tables.setdefault(kind, []).append((line[0] == "+", gold.replace(r"\n#", "\n#"), answer))
    return tables


TABLES = read_tables()


def score(gold, response, extra=None, **rules):
    return compute_score("kinds", response, gold, extra, time_limit_s=60, **rules)["score"]


def boxed(answer):
    return rf"The answer is $\boxed{{{answer}}}$."


@pytest.mark.parametrize("kind", TABLES)
def test_a_kind(kind):
    rows = TABLES[kind]
    unlike = [
        (right, gold, answer)
        for right, gold, answer in rows
        if score(gold, answer if kind == "box" or r"\boxed" in answer else boxed(answer)) != right
    ]
    assert unlike == []
    assert {right for right, _, _ in rows} == {True, False}  # a table without near misses shows nothing


@pytest.mark.e2e
def test_right_answers_stay_right_when_both_are_spelled_otherwise():
    """Braces, dollars, spaces and a full stop change no verdict of any kind."""
    changed = []
    for kind, rows in TABLES.items():
        for right, gold, answer in rows[:: 1 if kind == "name" else 4]:
            if kind == "box" or any(mark in gold + answer for mark in ("box", "$", "####", "nswer")):
                continue
            for g, a in ((f"{{{gold}}}", answer), (gold, f"{{{answer}}}"), (f"${gold}$", rf"\displaystyle {answer}.")):
                changed += [(g, a)] if score(g, boxed(a)) != right else []
    assert changed == []


@pytest.mark.parametrize(
    ("gold", "response", "rule", "default", "with_rule"),
    [
        (r"x > 2", r"\boxed{(2, \infty)}", {"relation_as_interval": False}, 1, 0),
        (r"x > 2", r"\boxed{2 < x}", {"relation_as_interval": False}, 1, 1),
        (r"5 \text{ cm}", r"\boxed{5}", {"unit_required": True}, 1, 0),
        (r"5\pi \text{ cm}", r"\boxed{5\pi}", {"unit_required": True}, 1, 0),
        (r"5 \text{ cm}", r"\boxed{50 \text{ mm}}", {"unit_required": True}, 1, 1),
        ("k=45, n=2", r"\boxed{k=45} and \boxed{n=2}", {"boxes": "row"}, 0, 1),
        ("1, 2", r"$\boxed{1}, \boxed{2}$", {"boxes": "row"}, 0, 1),
        ("2", r"\boxed{1}, so it cannot be; hence \boxed{2}", {"boxes": "row"}, 1, 1),
        ("0.333", r"\boxed{\frac{1}{3} \approx 0.333}", {"approximation": "either"}, 0, 1),
        ("7", r"\boxed{6 \approx 7}", {"approximation": "either"}, 0, 1),
        ("1000.99", r"\boxed{1.000,99}", {"decimal_comma": True}, 0, 1),
        ("1000.99", r"\boxed{1000,99}", {"decimal_comma": True}, 0, 1),
        ("1234567", r"\boxed{1.234.567}", {"decimal_comma": True}, 0, 1),
        ("5", r"<think>\boxed{5}</think> It is 6.", {"thoughts": "count"}, 0, 1),
        ("5", r"<think>\boxed{5}", {"thoughts": "count"}, 0, 1),
        ("5", r"\boxed{6}</think> It is \boxed{5}", {"thoughts": "count"}, 1, 1),
    ],
)
def test_what_users_decide(gold, response, rule, default, with_rule):
    assert score(gold, response) == default
    assert score(gold, response, **rule) == with_rule


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("boxes", "all", "'last' or 'row'"),
        ("unit_required", "yes", "True or False"),
        ("unit_required", 1, "True or False"),
        ("approximation", None, "'exact' or 'either'"),
    ],
)
def test_a_keyword_with_another_value_is_refused_by_name(name, value, expected):
    with pytest.raises(ValueError, match=rf"^reward_kwargs\.{name}={value!r}: expected {expected}$"):
        score("5", r"\boxed{5}", **{name: value})


@pytest.mark.parametrize(("pred", "right"), [("0.52, 10.1", 1), ("10.1, 0.52", 1), ("0.6, 10.1", 0), ("0.5, 10.3", 0)])
def test_a_tolerance_for_each_part(pred, right):
    assert score("0.5, 10", boxed(pred), {"tolerance": "0.05,0.2", "is_multiple_answer": True}) == right


def test_the_last_kind_takes_what_is_left():
    assert list(KINDS)[0] == "same spelling" and list(KINDS)[-1] == "expression"


def test_the_handed_cases():
    """Pairs from public bug reports that are not part of this repository."""
    if not CASES.exists():
        pytest.skip(f"no {CASES}: set SOUP_TEST_CASES to its folder")
    rows = [row for row in map(json.loads, CASES.open(encoding="utf-8")) if not row["debatable"]]
    wrong = {True: [], False: []}
    for row in rows:
        response = row["prediction"] if row["whole_response"] else boxed(row["prediction"])
        expected = bool(row["expected"])
        if score(row["gold"], response, row.get("extra")) != expected:
            wrong[expected].append(row["id"])
    assert wrong[False] == []
    assert len(wrong[True]) <= 0.02 * sum(row["expected"] for row in rows), wrong[True]
