"""Benchmarks of multiple choice: from rows as the hubs have them to verl's rows, and what is refused or dropped."""

import json
from string import ascii_uppercase

import pyarrow.parquet as pq
import pytest

from soup_verl.tasks import choice
from soup_verl.tasks.data.benchmark_index import BenchmarkIndex
from soup_verl.tasks.data.cleaning import Tally, clean
from soup_verl.tasks.data.datasets import DATASETS
from soup_verl.tasks.data.files import read_questions
from soup_verl.tasks.data.layouts import DataError
from soup_verl.tasks.prepare_data import main
from soup_verl.tasks.reward import compute_score
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import look_at_rows
from tests.unit.tasks.data.test_datasets import HUB_ROWS as HUB_ROWS_OF_MATHEMATICS
from tests.unit.tasks.data.test_datasets import MATHEMATICS

REWARD = {
    "reward.custom_reward_function.path": "pkg://soup_verl.reward",
    "reward.custom_reward_function.name": "compute_score",
}
QUESTION = "Which animal has six legs?"
GPQA = {
    "Record ID": "rec7",
    "Question": QUESTION,
    "Correct Answer": "ant",
    "Incorrect Answer 1": "cat",
    "Incorrect Answer 2": "crab",
    "Incorrect Answer 3": "hen\n",
    "High-level domain": "Biology",
    "Subdomain": "Genetics",
}
MMLU_PRO = {
    "question_id": 70,
    "question": QUESTION,
    "options": ["cat", "crab", "ant", "hen", "cow", "none of A to E"],
    "answer": "C",
    "answer_index": 2,
    "cot_content": "",
    "category": "biology",
    "src": "",
}
ARC = {
    "id": "Mercury_7",
    "question": QUESTION,
    "choices": {"text": ["cat", "ant", "crab"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
HUB_ROWS = {"gpqa-diamond": GPQA, "mmlu-pro": MMLU_PRO, "arc-c": ARC}
PLAIN = {"id": "legs/1", "question": QUESTION, "options": ["cat", "ant"], "answer": "B", "subject": "Zoology"}
CHOICES = [name for name, spec in DATASETS.items() if spec.domain == "choice"]


def problem_of(name: str, row: dict):
    (problem,) = choice.problems(DATASETS[name], [(1, row)])
    return problem


def prepared(tmp_path, name: str, rows: list[dict], *more: str) -> list[dict]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", name, "--from", f"{tmp_path}/rows.jsonl", "--out", str(tmp_path / "out"), *more]
    assert main(arguments) == 0
    return pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()


def refusal(tmp_path, capsys, name: str, rows: list[dict]) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--dataset", name, "--from", f"{tmp_path}/rows.jsonl", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not (tmp_path / "out").exists()
    return line


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("layout", ["hub", "plain"])
def test_the_gold_is_the_letter_of_the_right_text(name, layout):
    problem = problem_of(name, HUB_ROWS[name] if layout == "hub" else PLAIN)
    options = problem.extra["options"]
    assert options[ascii_uppercase.index(problem.gold)] == "ant"
    assert (problem.question, problem.domain) == (QUESTION, "choice")
    assert problem.id in ("rec7", "70", "Mercury_7", "legs/1")


def test_published_orders_stay():
    assert problem_of("mmlu-pro", MMLU_PRO).extra["options"] == MMLU_PRO["options"]
    assert problem_of("arc-c", ARC).extra["options"] == ["cat", "ant", "crab"]
    numbered = ARC | {
        "choices": {"text": ["cat", "crab", "hen", "ant"], "label": ["1", "2", "3", "4"]},
        "answerKey": "4",
    }
    assert problem_of("arc-c", numbered).gold == "D"


def test_gpqa_is_shuffled_by_the_rows_id_alone():
    rows = [GPQA | {"Record ID": f"rec{i}"} for i in range(400)]
    one, other = ([problem_of("gpqa-diamond", row) for row in some] for some in (rows, reversed(rows)))
    assert [(p.gold, p.extra) for p in one] == [(p.gold, p.extra) for p in reversed(other)]
    golds = [p.gold for p in one]
    # Of 400 fair draws from four letters each comes up 100 times, give or take 5 standard deviations of 8.7.
    assert all(57 <= golds.count(letter) <= 143 for letter in "ABCD")
    assert {tuple(sorted(p.extra["options"])) for p in one} == {("ant", "cat", "crab", "hen\n")}
    assert {p.extra["options"][ascii_uppercase.index(p.gold)] for p in one} == {"ant"}
    # Written down once: another order would make every number measured before another one.
    assert problem_of("gpqa-diamond", GPQA).extra["options"] == ["ant", "hen\n", "crab", "cat"]


def test_a_prepared_row_is_asked_with_letters_and_judged_by_them(tmp_path):
    (row,) = prepared(tmp_path, "mmlu-pro", [MMLU_PRO], "--template", "tiny")
    asked = (
        f"{QUESTION}\n\nA) cat\nB) crab\nC) ant\nD) hen\nE) cow\nF) none of A to E\n"
        r"Put the letter of the right option in \boxed{}."
    )
    assert row["prompt"] == [{"role": "user", "content": asked}]
    extra = row["extra_info"]
    assert (extra["domain"], extra["split"], extra["question"]) == ("choice", "test", QUESTION)
    assert (extra["options"], extra["subject"], extra["alt_answers"]) == (MMLU_PRO["options"], "biology", [])
    given = (row["data_source"], row["reward_model"]["ground_truth"], extra)
    assert given[:2] == ("mmlu-pro", "C")
    for box, right in (
        ("C", 1.0),
        ("ant", 1.0),
        ("C) ant", 1.0),
        ("B", 0.0),
        ("C) crab", 0.0),
        ("none of A to E", 0.0),
    ):
        assert compute_score(given[0], rf"\boxed{{{box}}}", given[1], given[2])["score"] == right


def test_texts_are_mended_in_the_options_too(tmp_path):
    row = PLAIN | {"options": [" 1 \n", "\frac{1}{2}"]}
    (mended,) = prepared(tmp_path, "arc-c", [row])
    assert mended["extra_info"]["options"] == ["1", r"\frac{1}{2}"]
    assert mended["prompt"][-1]["content"].endswith("A) 1\nB) \\frac{1}{2}")
    report = json.loads((tmp_path / "out" / "arc-c.report.json").read_text())
    assert report["repaired"]["latex_restored"]["rows"] == 1


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"question": " "}, "empty_question", ""),
        ({"answer": ""}, "empty_gold", ""),
        ({"answer": "C"}, "unclear_options", "ground_truth=\"no label 'C'\": expected the letter of an option, A to B"),
        ({"answer": "ant"}, "unclear_options", "no label 'ant'"),
        ({"options": ["cat"], "answer": "A"}, "unclear_options", "expected 2 to 26 texts, none empty"),
        ({"options": ["cat", " "]}, "unclear_options", "expected 2 to 26 texts, none empty"),
        ({"options": []}, "unclear_options", ""),
        ({"options": None}, "unclear_options", ""),
    ],
)
def test_rows_that_cannot_be_judged_are_dropped_with_their_reason(change, reason, detail):
    tally = Tally()
    kept = clean(
        choice.problems(DATASETS["mmlu-pro"], [(1, PLAIN), (2, PLAIN | change)]),
        tally,
        is_benchmark=True,
        rules=choice.ROWS,
    )
    assert [p.row for p in kept] == [1]
    finding = tally.dropped[reason]
    assert (finding.rows, finding.first_row) == (1, 2) and detail in finding.detail


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("other", MATHEMATICS)
def test_rows_of_mathematics_are_refused_in_one_line(tmp_path, capsys, name, other):
    line = refusal(tmp_path, capsys, name, [HUB_ROWS_OF_MATHEMATICS[other]])
    assert "row 1: the columns are" in line and "id, question, options, answer" in line


@pytest.mark.parametrize("name", ["aime26", "hmmt25-feb", "amc23", "gsm8k"])
@pytest.mark.parametrize("row", [GPQA, MMLU_PRO, ARC, PLAIN], ids=["gpqa", "mmlu-pro", "arc", "plain"])
def test_rows_of_choices_are_refused_by_mathematics(tmp_path, capsys, name, row):
    line = refusal(tmp_path, capsys, name, [row])
    if row is GPQA:
        assert "the columns are Record ID" in line
    else:
        assert "is one of multiple choice" in line and "gpqa-diamond, mmlu-pro, arc-c" in line


def test_one_benchmark_of_choices_given_for_another_is_refused(tmp_path, capsys):
    for name, row in (("gpqa-diamond", ARC), ("arc-c", MMLU_PRO), ("mmlu-pro", GPQA)):
        assert "row 1: the columns are" in refusal(tmp_path, capsys, name, [row])


def test_a_value_of_the_wrong_kind_names_its_column():
    with pytest.raises(DataError, match="row 1: column 'options' is dict"):
        problem_of("mmlu-pro", MMLU_PRO | {"options": [{"A": "cat"}]})
    with pytest.raises(DataError, match="row 1: column 'choices' is 'cat', expected a mapping with 'text'"):
        problem_of("arc-c", ARC | {"choices": "cat"})


def test_a_training_set_is_told_by_the_question_alone(tmp_path):
    long = "Which of these animals, all of them common in gardens, has exactly six legs?"
    prepared(tmp_path, "arc-c", [ARC | {"question": long}])
    (tmp_path / "gpqa.jsonl").write_text(json.dumps(GPQA | {"Question": long}))
    for file in (tmp_path / "out" / "arc-c.parquet", tmp_path / "gpqa.jsonl"):
        index = BenchmarkIndex()
        index.add(file.name, read_questions(file))
        assert index.find(f"Say it in words. {long}") == f"question 1 of {file.name}"


def test_preflight_warns_of_training_on_a_benchmark_and_refuses_a_row_without_its_option(tmp_path):
    rows = [files.row(i=i) | {"data_source": ("mmlu-pro", "sums")[i % 2]} for i in range(16)]
    for row in rows:
        row["reward_model"] = {"style": "rule", "ground_truth": "B"}
        row["extra_info"] = {"index": 0, "domain": "choice", "options": ["cat", "ant"]}
    path = files.write_rows(tmp_path / "d.parquet", rows)
    _, found = look_at_rows(path, files.byte_tokenizer(), REWARD)
    warned = found["train benchmarks"]
    assert (warned.verdict, warned.have) == ("warning", "mmlu-pro") and "data.val_files" in warned.how
    assert [name for name in found if "benchmarks" in name] == ["train benchmarks"]  # none of validation
    assert not any(finding.verdict == "no" for finding in found.values())

    rows[7]["extra_info"] = rows[7]["extra_info"] | {"options": ["ant"]}
    _, found = look_at_rows(files.write_rows(tmp_path / "d.parquet", rows), files.byte_tokenizer(), REWARD)
    (refused, _) = [str(f.error) for f in found.values() if f.verdict == "no"]
    assert "row 7 from 0 has extra_info.options=['ant']. So 1 of 16 rows" in refused
