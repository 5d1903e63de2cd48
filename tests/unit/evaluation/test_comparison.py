"""Paired differences by hand: over seeds, over problems, and what cannot be paired."""

import json
import math

import pytest

from soup_verl.evaluation.comparison import compare, main, read
from soup_verl.evaluation.results import summarize

SETTINGS = {"data": {"v.parquet": "digest"}, "temperature": 0.6, "n": 2}


def write(folder, correct, *, keep_samples=True, **settings):
    """An evaluation with two samples a problem; `correct`: how many of them are right."""
    folder.mkdir(parents=True)
    rows = [
        {"file": "v.parquet", "index": index, "session": session, "correct": session < right, "score": 0.0}
        | {"response_length": 4, "finish_reason": "stop", "prefix_length": 0, "prefix_wanted": 0, "response": "long"}
        for session in range(2)
        for index, right in enumerate(correct)
    ]
    results = {"settings": SETTINGS | settings, "k": [1, 2], "files": summarize(rows, ks=[1, 2], seed=0)}
    (folder / "results.json").write_text(json.dumps(results))
    if keep_samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def differences(first, second):
    found = compare(list(map(read, first)), list(map(read, second)))
    return {d.metric: d for d in found["v.parquet"]}


def test_over_seeds_by_hand(tmp_path):
    """pass@1 is .75, .5, .75 against .25, .25, .25: .5, .25, .5 apart, t with 2 degrees of freedom 4.303."""
    first = [write(tmp_path / f"a{i}", right, keep_samples=False) for i, right in enumerate(([2, 1], [1, 1], [1, 2]))]
    second = [write(tmp_path / f"b{i}", [1, 0], keep_samples=False, seed=i) for i in range(3)]
    found = differences(first, second)["pass@1"]
    assert (found.first, found.second) == (pytest.approx(2 / 3), 0.25)
    assert found.difference == pytest.approx(5 / 12)
    half = 4.303 * math.sqrt((2 * (1 / 12) ** 2 + (1 / 6) ** 2) / 2) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(found.difference - half), pytest.approx(found.difference + half))


def test_pairs_are_in_the_order_given(tmp_path):
    a = [write(tmp_path / f"a{i}", right) for i, right in enumerate(([0, 1], [2, 2]))]
    b = [write(tmp_path / f"b{i}", right) for i, right in enumerate(([0, 0], [2, 1]))]
    assert differences(a, b)["pass@1"].high - differences(a, b)["pass@1"].low == pytest.approx(0)
    assert differences(a, b[::-1])["pass@1"].high > 1


def test_one_pair_over_problems_is_paired(tmp_path):
    """Every problem has one right sample more: no problem that is drawn again can change the difference."""
    first, second = write(tmp_path / "a", [2, 1, 2, 1]), write(tmp_path / "b", [1, 0, 1, 0])
    found = differences([first], [second])
    one = found["pass@1"]
    assert (one.difference, one.low, one.high) == (0.5, 0.5, 0.5)
    two = found["pass@2"]  # 1, 1, 1, 1 against 1, 0, 1, 0
    assert two.difference == 0.5 and (two.low, two.high) == (0, 1)


def test_one_problem_of_one_pair_has_no_interval(tmp_path):
    found = differences([write(tmp_path / "a", [2])], [write(tmp_path / "b", [1])])["pass@1"]
    assert (found.difference, found.low, found.high) == (0.5, None, None)


def test_metrics_that_not_all_have_are_left_out(tmp_path):
    first, second = write(tmp_path / "a", [2, 1]), write(tmp_path / "b", [1, 0])
    results = json.loads((second / "results.json").read_text())
    del results["files"]["v.parquet"]["metrics"]["pass@2"]
    (second / "results.json").write_text(json.dumps(results))
    assert "pass@2" not in differences([first], [second]) and "pass@1" in differences([first], [second])


def run(*arguments):
    return main(list(map(str, arguments)))


def test_the_table_names_the_pairs_and_what_the_sides_differ_in(tmp_path, capsys):
    first, second = write(tmp_path / "a", [2, 1]), write(tmp_path / "run" / "evaluation", [1, 0], temperature=1.0)
    assert run(first, "--against", tmp_path / "run") == 0  # the one evaluation in a run's folder
    said = capsys.readouterr().out
    assert f"{first}  −  {second}" in said and "warning: temperature: 0.6 in the first, 1.0 in the second" in said
    assert "over problems" in said
    assert "│ pass@1 │ 0.7500 │ 0.2500 │ +0.5000 │ [+0.5000, +0.5000] │" in " ".join(said.split())


def refused(capsys, *arguments):
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_what_cannot_be_paired_is_refused(tmp_path, capsys):
    a, b, warm, other = (
        write(tmp_path / name, [1, 0], **settings)
        for name, settings in (("a", {}), ("b", {}), ("warm", {"temperature": 1.0}), ("other", {"data": {"v": "x"}}))
    )
    assert refused(capsys, a, b, "--against", a) == (
        "--against: 1 evaluations, expected 2, as many as before it: they are paired in the order given"
    )
    assert refused(capsys, a, "--against", other) == f"{other}: of other data than {a}"
    assert refused(capsys, a, warm, "--against", a, b) == f"{warm}: temperature=1.0: expected 0.6, as in {a}"
    assert refused(capsys, a, a, "--against", b, warm) == f"{warm}: temperature=1.0: expected 0.6, as in {b}"
    (b / "samples.jsonl").unlink()
    assert refused(capsys, a, "--against", b).startswith(f"{b / 'samples.jsonl'}: missing; a single pair is compared")


def test_what_is_no_evaluation_is_refused(tmp_path, capsys):
    a = write(tmp_path / "run" / "a", [1])
    none = tmp_path / "none"
    assert refused(capsys, none, "--against", a) == (
        f"{none}: expected one evaluation, with results.json: there is none"
    )
    b = write(tmp_path / "run" / "b", [1])
    assert refused(capsys, tmp_path / "run", "--against", a) == (
        f"{tmp_path / 'run'}: expected one evaluation, with results.json: {a}, {b}"
    )
    for text in ("{", "[]", "{}"):
        (a / "results.json").write_text(text)
        assert refused(capsys, a, "--against", b).startswith(f"{a / 'results.json'}: not the results of an evaluation")
