"""Numbers of a small evaluation by hand, the table they are shown in, and the figure."""

import io

import pytest
from rich.console import Console

from soup_verl.evaluation.figure import plot_pass_at_k
from soup_verl.evaluation.results import as_table, summarize


def row(file="a.parquet", index=0, session=0, correct=True, **fields):
    given = {
        "file": file,
        "index": index,
        "session": session,
        "correct": correct,
        "score": float(correct),
        "response_length": 10,
        "finish_reason": "stop",
        "prefix_wanted": 0,
        "prefix_length": 0,
    }
    return given | fields


ROWS = [
    row(index=0, session=0, correct=True, pred="7", response_length=4),
    row(index=0, session=1, correct=False, pred="3", response_length=8, finish_reason="length"),
    row(index=1, session=0, correct=False, pred="", response_length=6),
    row(index=1, session=1, correct=False, pred="5", response_length=6),
]


def means(result):
    return {name: metric["mean"] for name, metric in result["metrics"].items()}


def test_a_response_without_an_answer_abstains():
    """One of two samples of a problem has no `pred`: its majority is that of the other."""
    rows = [row(session=0, correct=True, pred="7"), row(session=1, correct=False, pred=None)]
    found = means(summarize(rows, ks=[1, 2], seed=0)["a.parquet"])
    assert (found["maj@1"], found["maj@2"], found["distinct_answers"]) == (0.5, 1.0, 1)
    (without,) = summarize([row(pred=None), row(session=1)], ks=[1], seed=0).values()
    assert not [name for name in means(without) if name.startswith(("maj", "distinct"))]


@pytest.mark.parametrize("format", [None, "boxed"])
def test_what_is_no_number_for_every_sample_has_no_mean(format):
    rows = [row(session=0, format=1.0, timeout=False), row(session=1, format=format, timeout=True)]
    found = means(summarize(rows, ks=[1], seed=0)["a.parquet"])
    assert "format" not in found and found["timeout"] == 0.5


def test_numbers_by_hand():
    (result,) = summarize(ROWS, ks=[1, 2], seed=0).values()
    assert means(result) == pytest.approx(
        {
            "avg@2": 0.25,
            "pass@1": 0.25,
            "pass@2": 0.5,
            "maj@1": 0.25,
            "maj@2": 0.25,  # 7 and 3 tie; 5 is wrong
            "distinct_answers": 1.5,
            "distinct_correct_answers": 0.5,
            "score": 0.25,
            "response_length": 6.0,
            "truncated": 0.25,
        }
    )
    assert (result["problems"], result["samples_per_problem"], result["correct"]) == (2, 2, [1, 0])
    assert (result["response_tokens_total"], result["response_length_quantiles"]["max"]) == (24, 8)
    # Two problems, .5 and 0: a resample is both the first, both the second, or one of each.
    assert (result["metrics"]["pass@1"]["low"], result["metrics"]["pass@1"]["high"]) == (0.0, 0.5)


def test_order_of_samples_does_not_matter():
    assert summarize(ROWS[::-1], ks=[1, 2], seed=0) == summarize(ROWS, ks=[1, 2], seed=0)


def test_several_files_are_also_taken_together_each_problem_once():
    other = [row(file="b.parquet", session=s, pred="1") for s in range(2)]
    results = summarize([*ROWS, *other], ks=[1], seed=0)
    assert list(results) == ["a.parquet", "b.parquet", "all"]
    assert means(results["all"])["pass@1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert results["all"]["correct"] == [1, 0, 2]


def test_without_answers_there_is_no_majority():
    for fields in ({}, {"pred": None}):
        (result,) = summarize([row(session=s, **fields) for s in range(2)], ks=[1, 2], seed=0).values()
        assert not any(name.startswith(("maj", "distinct")) for name in result["metrics"])
        assert "pass@2" in result["metrics"]


def test_prefixes_and_what_the_reward_reports_are_summarized():
    rows = [row(session=s, prefix_wanted=4, prefix_length=3 * s, format=1.0, timeout=s) for s in range(2)]
    (result,) = summarize(rows, ks=[1], seed=0).values()
    found = means(result)
    assert (found["prefix_length"], found["format"], found["timeout"]) == (1.5, 1.0, 0.5)
    assert result["prefix_tokens_total"] == 3


def test_the_table_shows_every_metric_with_its_interval():
    results = summarize([*ROWS, row(file="b.parquet"), row(file="b.parquet", session=1)], ks=[1], seed=0)
    text = io.StringIO()
    Console(file=text, width=200).print(as_table(results))
    lines = {line.split("│")[1].strip(): line for line in text.getvalue().splitlines() if "│" in line}
    assert "0.250 [0.000, 0.500]" in lines["pass@1"]
    assert " 1.000 " in lines["pass@1"]  # one problem: no interval
    assert lines["maj@1"].split("│")[3].strip() == "-"  # b.parquet has no answers


def test_the_figure_is_a_picture_with_a_line_a_file(tmp_path):
    results = summarize([*ROWS, row(file="b.parquet"), row(file="b.parquet", session=1)], ks=[1, 2], seed=0)
    plot_pass_at_k(results, [1, 2], "title", tmp_path / "f.png")
    from matplotlib.image import imread

    pixels = imread(tmp_path / "f.png")[..., :3]
    for colour in ("0072B2", "D55E00", "009E73"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        assert (abs(pixels - wanted).max(axis=-1) < 0.01).sum() > 100, colour
