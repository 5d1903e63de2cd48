"""One reward for every domain: a row is judged by the domain that it names, whoever asks."""

import json
import sys
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from soup_verl.evaluation.scoring import DEFAULT, load_reward
from soup_verl.tasks import domains, golds, mathematics, prepare_data
from soup_verl.tasks.data.cleaning import RowRules
from soup_verl.tasks.data.datasets import DATASETS, DatasetSpec, Problem, to_problems
from soup_verl.tasks.data.layouts import Layout
from soup_verl.tasks.data.prompt_templates import TEMPLATES, Instruction
from soup_verl.tasks.domains import DOMAINS, FIELDS, check_keywords, domain_of, find_domain
from soup_verl.tasks.grade import main as grade
from soup_verl.tasks.reward import compute_score
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import look_at_rows

ECHO = {"domain": "echo"}
REWARD = {
    "reward.custom_reward_function.path": "pkg://soup_verl.reward",
    "reward.custom_reward_function.name": "compute_score",
}


def echo_domain() -> ModuleType:
    """Right is the gold itself, or in capitals where `loud`."""
    module = ModuleType("echo_domain")

    def score(data_source, response, gold, extra, *, loud=False):
        check_row(data_source, gold, extra)
        solved = float(response == (gold.upper() if loud else gold))
        return dict(zip(FIELDS, (solved, solved, 1.0, 0.0, "", response), strict=True))

    def check_row(data_source, gold, extra):
        if not gold:
            raise ValueError(f"ground_truth={gold!r}: expected a word")

    def right_answers(gold, extra):
        yield from ([] if extra.get("no_answer") else [gold])

    def check(given):
        if not isinstance(given.get("loud", True), bool):
            raise ValueError(f"reward_kwargs.loud={given['loud']!r}: expected true or false")

    def problems(spec, rows):
        for p in to_problems(spec, rows):
            yield Problem(p.row, p.id, p.question, p.gold, domain="echo", extra={"loudness": len(p.gold)})

    module.KEYWORDS, module.INSTRUCTION = ("loud",), Instruction("Repeat the word alone.", "")
    module.ROWS = RowRules(lambda p: ("two_words", p.gold) if " " in p.gold else None, {"two_words": "more than one"})
    module.score, module.check_row, module.right_answers = score, check_row, right_answers
    module.check_keywords, module.problems = check, problems
    return module


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setitem(sys.modules, "echo_domain", echo_domain())
    monkeypatch.setitem(domains.DOMAINS, "echo", "echo_domain")
    layout = Layout({"question": "word", "gold": "word"})
    monkeypatch.setitem(DATASETS, "echoes", DatasetSpec("echoes", "who/echoes", "train", "", layout, domain="echo"))


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_has_every_member(name):
    members = {*domains.Domain.__annotations__, *(n for n in vars(domains.Domain) if not n.startswith("_"))}
    assert members >= {"KEYWORDS", "score", "right_answers"} and all(hasattr(find_domain(name), m) for m in members)


@pytest.mark.parametrize("extra", [None, {}, {"domain": None}, {"domain": ""}, {"domain": float("nan")}])
def test_a_row_that_names_no_domain_is_mathematics(extra):
    assert domain_of(extra) is mathematics
    assert compute_score("d", r"\boxed{\frac{2}{4}}", "1/2", extra) == mathematics.score(
        "d", r"\boxed{\frac{2}{4}}", "1/2"
    )


def test_a_row_is_judged_by_its_domain_with_the_keywords_that_it_has(echo):
    assert compute_score("d", "one", "one", ECHO, boxes="row")["acc"] == 1.0
    assert compute_score("d", "one", "one", ECHO, loud=True)["acc"] == 0.0
    assert compute_score("d", "ONE", "one", ECHO, loud=True, reward_router_address="")["acc"] == 1.0
    assert set(compute_score("d", r"\boxed{1}", "1", loud=True)) == set(FIELDS)


def test_a_domain_that_there_is_not_is_refused_by_its_field():
    with pytest.raises(ValueError, match=r"extra_info.domain='maths': expected one of mathematics"):
        compute_score("d", "1", "1", {"domain": "maths"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"loudd": True}, r"reward_kwargs.loudd=True: expected no such key.* thoughts, .*Did you mean loud\?"),
        ({"loud": 1}, "reward_kwargs.loud=1: expected true or false"),
        ({"boxes": 1}, "reward_kwargs.boxes=1: expected 'last' or 'row'"),
    ],
)
def test_keywords_of_every_domain_are_known_and_checked(echo, given, told):
    check_keywords({"loud": True, "boxes": "row"})
    with pytest.raises(ValueError, match=told):
        check_keywords(given)


def test_preflight_asks_the_domain_for_right_answers(echo):
    row = {"data_source": "d", "gold": "one", "extra": ECHO}
    assert golds.verdict(compute_score, row, {}, ours=True) == (True, "")
    assert golds.verdict(compute_score, row, {"loud": True}, ours=True) == (False, "")
    silent = row | {"extra": ECHO | {"no_answer": True}}
    assert golds.verdict(compute_score, silent, {"loud": True}, ours=True) == (True, "")
    broken = golds.verdict(compute_score, silent | {"gold": ""}, {}, ours=True)
    assert broken == (False, "ValueError: ground_truth='': expected a word")


def test_preflight_refuses_a_row_that_its_domain_cannot_score(echo, tmp_path):
    empty = {"reward_model": {"style": "rule", "ground_truth": ""}}
    rows = [files.row(i=i) | {"extra_info": {"index": i, **ECHO}} for i in range(16)]
    rows[3] |= empty
    rows[5] |= empty
    _, found = look_at_rows(files.write_rows(tmp_path / "d.parquet", rows), files.byte_tokenizer(), REWARD)
    (refused,) = [str(f.error) for f in found.values() if f.verdict == "no" and "train" in f.name]
    assert "row 3 from 0 has ground_truth='': expected a word. So 2 of 16 rows" in refused


def test_data_preparation_is_the_domains(echo, tmp_path, capsys):
    words = ["one", "two words", "", "one", "One"]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"word": w}) + "\n" for w in words))
    assert prepare_data.main(["--dataset", "echoes", "--from", f"{tmp_path}/words.jsonl", "--out", str(tmp_path)]) == 0
    rows = pq.read_table(tmp_path / "echoes.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["one", "One"]
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Repeat the word alone."}
    assert (rows[0]["ability"], rows[0]["extra_info"]["domain"], rows[0]["extra_info"]["loudness"]) == ("echo",) * 2 + (
        3,
    )
    report = json.loads((tmp_path / "echoes.report.json").read_text())["dropped"]
    assert {reason: f["rows"] for reason, f in report.items() if f["rows"]} == {
        "empty_question": 1,
        "two_words": 1,
        "duplicate": 1,
    }
    assert "two_words" in capsys.readouterr().out


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_an_instruction_is_the_question_alone(name):
    assert TEMPLATES[name]("1+1?", Instruction("", "")) == [{"role": "user", "content": "1+1?"}]


def test_grade_shows_steps_of_mathematics_alone(echo, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"gold": "one", "pred": "one", "extra_info": ECHO}))
    assert grade(["--file", f"{tmp_path}/rows.jsonl"]) == 1
    assert "row 1: extra_info.domain='echo': expected mathematics" in capsys.readouterr().err


def test_an_evaluation_is_known_by_the_code_of_the_domains(tmp_path, monkeypatch):
    from soup_verl.evaluation import scoring

    seen = []
    monkeypatch.setattr(scoring, "fingerprint", lambda files: seen.append({f.name for f in files}) or "x")
    load_reward(DEFAULT, {})
    assert {"domains.py", "mathematics.py", "judge.py"} <= seen[0]
