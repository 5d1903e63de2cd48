"""An evaluation of a file of choices and one of mathematics, and inspect's graders on its samples beside ours."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from soup_verl.evaluation import engine
from soup_verl.evaluation.__main__ import main as evaluate
from soup_verl.evaluation.engine import Response
from soup_verl.evaluation.inspect_scores import GRADERS, Verdict, as_table, disagreements
from soup_verl.evaluation.inspect_scores import main as inspect_scores
from soup_verl.tasks.prepare_data import main as prepare
from tests.unit.evaluation.test_evaluate import save_model

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="inspect-ai is not installed (extra `inspect`)"
)
CHOICES = [
    {"id": "a", "question": "Legs of an ant?", "options": ["4", "6", "8"], "answer": "B"},
    {"id": "b", "question": "A pet?", "options": ["cat", "crab"], "answer": "A"},
]
SUMS = [
    {"id": "1", "problem": "Add 1 and 1.", "answer": 2},
    {"id": "2", "problem": "Halve 1.", "answer": r"\frac{1}{2}"},
]
# What the model says: (file, row) -> its responses; word by word in the tokenizer's vocabulary.
SAID = {
    ("arc-c", 0): [r"\boxed{B}", r"\boxed{6}", r"\boxed{C}", r"\boxed{(B)}"],
    ("arc-c", 1): [r"\boxed{A}", r"\boxed{B}", r"\boxed{crab}", "no"],
    ("aime26", 0): [r"\boxed{2}", r"\boxed{3}", r"\boxed{2}", "no"],
    ("aime26", 1): [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{\frac{1}{3}}", r"\boxed{\text{half}}"],
}
WORDS = {"[UNK]": 0, "<end>": 1, "?": 2} | {w: 3 + i for i, w in enumerate(sorted({*sum(SAID.values(), []), "ask"}))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished evaluation and of its data; only the engine is made up."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, rows in (("arc-c", CHOICES), ("aime26", SUMS)):
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert prepare(["--dataset", name, "--from", f"{folder}/rows.jsonl", "--out", f"{folder}/data"]) == 0

    def speak(_, requests):
        for request in requests:
            file, row, session = request.key
            yield [Response(request.key, [WORDS[SAID[Path(file).stem, row][session]], 1], "stop")]

    model = save_model(folder, WORDS, "{% for m in messages %}ask {% endfor %}")
    arguments = ["--model", str(model), "--data", *data(folder), "--n", "4", "--max-tokens", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "sample", speak)
        patch.setattr("soup_verl.evaluation.__main__.plot_pass_at_k", lambda *_: None)
        assert evaluate([*arguments, "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture
def out(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here" / "out"


def data(folder: Path) -> list[str]:
    return [f"{folder}/data/arc-c.parquet", f"{folder}/data/aime26.parquet"]


def cells(table: str, file: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"│ {file}")]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_a_file_of_choices_is_evaluated_as_any_other(out):
    files = json.loads((out / "results.json").read_text())["files"]
    choices = files["arc-c.parquet"]
    assert choices["correct"] == [3, 1]
    assert choices["metrics"]["avg@4"]["mean"] == 0.5
    # B by letter and by text is one answer: 3 votes of 4. Of the second row A has one vote and B two.
    assert choices["metrics"]["maj@4"]["mean"] == 0.5
    assert choices["metrics"]["distinct_answers"]["mean"] == 2.0
    assert choices["metrics"]["format"]["mean"] == 7 / 8
    assert files["aime26.parquet"]["correct"] == [2, 3]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    first = {s["session"]: (s["pred"], s["error"]) for s in samples if (s["file"], s["index"]) == ("arc-c.parquet", 0)}
    assert first == {0: ("B", ""), 1: ("B", ""), 2: ("C", ""), 3: ("B", "")}


@needs_inspect
def test_inspects_verdicts_stand_beside_ours(out, capsys):
    assert inspect_scores([str(out), "--data", *data(out.parent)]) == 0
    said = capsys.readouterr().out
    assert cells(said, "arc-c.parquet") == ["8", "0.5000", "0.3750", "7", "1", "0", "0"]
    assert cells(said, "aime26.parquet") == ["8", "0.6250", "0.5000", "7", "1", "0", "0"]
    # The text of an option, and a number word: inspect's `choice` reads letters alone, its `math` no words.
    assert "arc-c.parquet, row 0, session 1: right to ours alone: 'B' expected, 'B' read" in said
    differ = [json.loads(line) for line in (out / "inspect" / "disagreements.jsonl").read_text().splitlines()]
    assert [(d["file"], d["index"], d["session"], d["ours"], d["theirs"]) for d in differ] == [
        ("arc-c.parquet", 0, 1, True, False),
        ("aime26.parquet", 1, 3, True, False),
    ]
    assert len(list((out / "inspect").glob("*.eval"))) == 2  # for `inspect view`


@needs_inspect
def test_other_data_than_was_evaluated_is_refused(out, capsys):
    data_file = out.parent / "data" / "arc-c.parquet"
    data_file.write_bytes(data_file.read_bytes() + b" ")
    assert inspect_scores([str(out), "--data", str(data_file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: --data={data_file}: {out} is of other data: expected a file as it was evaluated" in line


@needs_inspect
def test_an_evaluation_without_all_its_samples_is_refused(out, capsys):
    samples = (out / "samples.jsonl").read_text().splitlines()
    kept = [line for line in samples if (json.loads(line)["index"], json.loads(line)["session"]) != (1, 2)]
    (out / "samples.jsonl").write_text("\n".join(kept) + "\n")
    assert inspect_scores([str(out), "--data", *data(out.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "samples.jsonl: expected row 1 of arc-c.parquet, session 2: finish the evaluation first" in line


@needs_inspect
def test_a_domain_without_a_grader_of_inspects_is_said(out, capsys, monkeypatch):
    monkeypatch.delitem(GRADERS, "choice")
    assert inspect_scores([str(out), "--data", *data(out.parent)]) == 0
    said = capsys.readouterr().out
    assert "2 problems of the domain choice: inspect has no scorer for them" in said and "arc-c.parquet" not in said


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is not None, reason="inspect-ai is installed")
def test_without_inspect_one_line_says_how_to_get_it(tmp_path, capsys):
    assert inspect_scores([str(tmp_path), "--data", "none.parquet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: inspect-ai: not installed, expected this project's extra `inspect`")


def test_the_table_counts_who_is_alone_and_who_gave_no_verdict():
    def verdict(ours, theirs):
        return Verdict("d.parquet", 0, 0, "1", ours, theirs, "", "")

    verdicts = [verdict(True, True), verdict(True, False), verdict(False, True), verdict(False, False)]
    verdicts.append(verdict(True, None))
    assert disagreements(verdicts) == verdicts[1:3]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(as_table(verdicts))
    assert cells(capture.get(), "d.parquet") == ["5", "0.6000", "0.4000", "2", "1", "1", "1"]
