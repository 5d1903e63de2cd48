"""Instructions and summaries: rewards by hand, rows in the hub's columns."""

import json

import pyarrow.parquet as pq
import pytest

from soup_verl.tasks import golds
from soup_verl.tasks.domains import check_keywords
from soup_verl.tasks.prepare_data import main as prepare_data
from soup_verl.tasks.reward import compute_score

FOLLOW, SUM_UP = {"domain": "instructions"}, {"domain": "summaries"}


def gold(*asked):
    return json.dumps({"instruction_id_list": [name for name, _ in asked], "kwargs": [kwargs for _, kwargs in asked]})


THREE = gold(
    ("punctuation:no_comma", {}),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
    ("startend:quotation", None),
)


def test_the_reward_is_the_share_and_acc_is_all_of_them():
    found = compute_score("d", '"one two three"', THREE, FOLLOW)
    assert found == {"score": 1.0, "acc": 1.0, "format": 1.0, "timeout": 0.0, "error": "", "pred": ""}
    found = compute_score("d", "one two three", THREE, FOLLOW)
    assert (found["score"], found["acc"], found["pred"]) == (pytest.approx(2 / 3), 0.0, "startend:quotation")
    assert compute_score("d", "one two three", THREE, FOLLOW, partial_credit=False)["score"] == 0.0
    assert compute_score("d", '"one two three"', THREE, FOLLOW, partial_credit=False)["score"] == 1.0


def test_thoughts_are_not_judged_and_an_empty_text_follows_nothing():
    assert compute_score("d", '<think>So, well,</think>"one two three"', THREE, FOLLOW)["acc"] == 1.0
    for response in ("", " \n", '<think>"one two three"'):
        found = compute_score("d", response, THREE, FOLLOW)
        assert (found["score"], found["error"], found["format"]) == (0.0, "empty", 0.0)


@pytest.mark.parametrize("broken", ["", "x", "[]", '{"kwargs": []}', gold(), THREE.replace("[{}, ", "[")])
def test_a_broken_row_of_instructions(broken):
    with pytest.raises(ValueError, match="of a row of data_source='d': expected JSON with instruction_id_list"):
        compute_score("d", "one", broken, FOLLOW)


def test_preflight_checks_rows_that_have_no_answer_to_try():
    row = {"data_source": "d", "gold": THREE, "extra": FOLLOW}
    assert golds.verdict(compute_score, row, {}, ours=True) == (True, "")
    right, error = golds.verdict(compute_score, row | {"gold": gold(("no:such", {}))}, {}, ours=True)
    assert not right and error.startswith("ValueError: ground_truth: 'no:such': expected one of")


REFERENCE = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("summary", "kind", "f1"),
    [
        (REFERENCE, "rouge1", 1.0),
        (REFERENCE, "rougeL", 1.0),
        ("the cat sat", "rouge1", 2 / 3),  # 3 of 3 and 3 of 6 words
        ("the cat sat", "rouge2", 4 / 7),  # 2 of 2 and 2 of 5 pairs
        ("sat the cat", "rougeL", 4 / 9),  # "the cat": 2 of 3 and 2 of 6
        ("The cats, sitting.", "rouge1", 4 / 9),  # stems: the cat sit
        ("dogs bark", "rougeL", 0.0),
    ],
)
def test_rouge_by_hand(summary, kind, f1):
    found = compute_score("d", summary, REFERENCE, SUM_UP, rouge=kind)
    assert found["score"] == found["acc"] == pytest.approx(f1) and found["error"] == ""


def test_rouge_lsum_takes_lines_for_sentences():
    two, swapped = "the cat sat\nthe dog ran", "the dog ran\nthe cat sat"
    assert compute_score("d", swapped, two, SUM_UP, rouge="rougeLsum")["score"] == 1.0
    assert compute_score("d", swapped, two, SUM_UP)["score"] == pytest.approx(1 / 2)  # 3 of 6 words: the dog ran


@pytest.mark.parametrize(
    ("response", "error"), [("", "empty"), ("<think>the cat", "empty"), ("the " * 2501, "too_long"), ("狗", "")]
)
def test_what_is_no_summary_scores_nothing(response, error):
    found = compute_score("d", response, REFERENCE, SUM_UP)
    assert (found["score"], found["error"]) == (0.0, error)


@pytest.mark.parametrize("reference", ["", " .", "猫", "a" * 10_001, None, 3])
def test_a_reference_that_nothing_can_be_compared_with(reference):
    with pytest.raises(ValueError, match="of a row of data_source='d': expected a reference summary"):
        compute_score("d", "the cat", reference, SUM_UP)


def test_keywords_are_checked():
    check_keywords({"rouge": "rouge2", "partial_credit": True})
    with pytest.raises(
        ValueError, match="reward_kwargs.rouge='rouge3': expected one of rouge1, rouge2, rougeL, rougeLsum"
    ):
        check_keywords({"rouge": "rouge3"})


def prepared(tmp_path, dataset, rows, *more):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--dataset", dataset, "--from", str(source), "--out", str(tmp_path / "out"), *more]
    return prepare_data(given), tmp_path / "out" / f"{dataset}.parquet"


def asked(key, name, **kwargs):
    every = {"num_words": None, "relation": None, "language": None}  # the hub's table has all columns in all rows
    return {"key": key, "prompt": f"Question {key}", "instruction_id_list": [name], "kwargs": [every | kwargs]}


def test_rows_of_ifeval_are_kept_or_dropped_by_the_name_of_what_they_ask(tmp_path):
    number = "length_constraints:number_words"
    rows = [
        asked(1, "punctuation:no_comma"),
        asked(2, number, num_words=30.0, relation="at least"),
        asked(3, number, num_words=30),
        asked(4, "count:conjunctions"),
        asked(5, "count:conjunctions"),
        asked(6, "format:emoji"),
    ]
    code, file = prepared(tmp_path, "ifeval", rows)
    assert code == 0
    kept = pq.read_table(file).to_pylist()
    assert [row["extra_info"]["id"] for row in kept] == ["1", "2"]
    assert kept[1]["prompt"] == [{"role": "user", "content": "Question 2"}]  # no instruction but its own
    assert kept[1]["extra_info"]["domain"] == "instructions" and kept[1]["data_source"] == "ifeval"
    text = " ".join(["word"] * 30)
    assert compute_score("d", text, kept[1]["reward_model"]["ground_truth"], kept[1]["extra_info"])["acc"] == 1.0
    report = json.loads(file.with_suffix(".report.json").read_text())
    assert {reason: found["rows"] for reason, found in report["dropped"].items() if found["rows"]} == {
        "broken_instruction": 1,
        "no check: count:conjunctions": 2,
        "no check: format:emoji": 1,
    }


def test_rows_of_if_rlvr_hold_python_in_a_text(tmp_path, capsys):
    truth = [{"instruction_id": ["startend:quotation"], "kwargs": [None]}]
    row = {"key": "a", "messages": [{"role": "user", "content": "Quote it."}], "ground_truth": repr(truth)}
    code, file = prepared(tmp_path, "if-rlvr", [row], "--template", "tiny")
    assert code == 0
    (kept,) = pq.read_table(file).to_pylist()
    assert kept["prompt"] == [{"role": "user", "content": "Quote it."}] and kept["extra_info"]["split"] == "train"
    assert compute_score("d", '"a"', kept["reward_model"]["ground_truth"], kept["extra_info"])["acc"] == 1.0
    for broken in ("__import__('os')", "[]", "{"):
        assert prepared(tmp_path, "if-rlvr", [row | {"ground_truth": broken}])[0] == 1
        line = capsys.readouterr().err
        assert line.startswith("error: row 1: column 'ground_truth' is ") and line.count("\n") == 1


def test_columns_that_are_not_there_are_named(tmp_path, capsys):
    assert prepared(tmp_path, "ifeval", [{"question": "?"}])[0] == 1
    line = capsys.readouterr().err
    assert line.startswith("error: row 1: the columns are question: expected prompt, instruction_id_list, kwargs")


def test_summaries_in_the_columns_of_the_hub(tmp_path):
    rows = [
        {"id": "7", "document": "A long text about a cat.", "summary": REFERENCE},
        {"id": "8", "document": "A text in Chinese.", "summary": "猫"},
        {"id": "9", "document": "An empty one.", "summary": ""},
    ]
    code, file = prepared(tmp_path, "xsum", rows)
    assert code == 0
    (kept,) = pq.read_table(file).to_pylist()
    assert kept["prompt"][0] == {"role": "system", "content": "Summarize the text. Answer with the summary alone."}
    assert kept["prompt"][1]["content"] == rows[0]["document"] and kept["reward_model"]["ground_truth"] == REFERENCE
    row = {"data_source": "xsum", "gold": REFERENCE, "extra": kept["extra_info"]}
    assert golds.verdict(compute_score, row, {"rouge": "rouge2"}, ours=True) == (True, "")
    dropped = json.loads(file.with_suffix(".report.json").read_text())["dropped"]
    assert dropped["unusable_reference"]["rows"] == dropped["empty_gold"]["rows"] == 1


@pytest.mark.parametrize("dataset", ["xsum", "xsum-validation", "cnn-dailymail"])
def test_rows_of_mathematics_are_refused_in_one_line(tmp_path, capsys, dataset):
    code, file = prepared(tmp_path, dataset, [{"id": "7", "question": "How many legs have 3 cats?", "answer": "12"}])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and not file.exists()
    assert line.startswith("error: row 1: the columns are id, question, answer: expected ") and "document, sum" in line


def test_the_news_of_cnn_may_have_either_columns(tmp_path):
    for document, summary in (("article", "highlights"), ("document", "summary")):
        code, file = prepared(tmp_path, "cnn-dailymail", [{document: "A long text about a cat.", summary: REFERENCE}])
        (kept,) = pq.read_table(file).to_pylist()
        assert (code, kept["reward_model"]["ground_truth"]) == (0, REFERENCE)
