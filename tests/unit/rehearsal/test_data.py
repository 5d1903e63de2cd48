import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from soup_verl.launch import preflight
from soup_verl.rehearsal.data import Places, Preparation, few_rows, longest_prompt, make, own_rows
from soup_verl.rehearsal.processes import StageFailed
from soup_verl.tasks.data.datasets import DATASETS
from soup_verl.tasks.domains import domain_of
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES
from tests.unit.preflight_files import SMALL, byte_tokenizer, configure, row, write_model, write_rows


@pytest.fixture
def places(tmp_path):
    model = write_model(tmp_path / "a model", SMALL)
    return Places("data/mine", tmp_path / "rehearsal", "Some/Model", model)


def prepare(name, folder="data/mine", *more):
    options = ["--out", folder, "--template", "tiny", "--tokenizer", "Some/Model", "--max-prompt-tokens", "500"]
    return Preparation(f"{folder}/{name}.parquet", ["soup_verl.prepare_data", "--dataset", name, *options, *more])


def test_only_what_is_under_the_scripts_data_folder_has_another_place(places, tmp_path):
    assert places.own("data/mine/x.parquet") == f"{tmp_path}/rehearsal/data/x.parquet"
    assert places.own("data/mine_too/x.parquet") == "data/mine_too/x.parquet"
    assert places.find("data/mine/x.parquet") == "data/mine/x.parquet"  # nobody made it
    assert places.find("Some/Model") == str(tmp_path / "a model")


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_can_be_made_from_our_rows(places, name):
    assert make(prepare(name), places)
    rows = pq.read_table(places.own(f"data/mine/{name}.parquet")).to_pylist()
    assert len(rows) == 12 and {r["data_source"] for r in rows} == {name}
    assert own_rows(name).stem.startswith(DATASETS[name].domain)  # no other's


@pytest.mark.parametrize(
    ("training", "benchmark"),
    [("dapo-math-17k", "math-500"), ("mbpp", "mbpp-test"), ("if-rlvr", "ifeval"), ("xsum", "xsum-validation")],
)
def test_our_training_rows_hold_no_benchmark_question(places, training, benchmark):
    make(prepare(benchmark, "data/mine/benchmarks"), places)
    make(prepare(training, "data/mine", "--benchmarks-from", f"data/mine/benchmarks/{benchmark}.parquet"), places)
    report = json.loads(Path(places.own(f"data/mine/{training}.report.json")).read_text())
    assert report["kept"] == 12
    assert report["benchmarks"] == {f"{benchmark}.parquet": {"questions": 12, "rows_dropped": 0}}


_OF_CODE = [pytest.param(name, marks=NEEDS_NAMESPACES) for name in ("mbpp", "mbpp-test")]


@pytest.mark.parametrize("name", ["gsm8k", "math-500", "arc-c", "xsum", "xsum-validation", *_OF_CODE])
def test_our_answers_are_of_a_form_that_the_recipes_reward_can_judge(places, name):
    from soup_verl.tasks.reward import compute_score

    make(prepare(name), places)
    for made in pq.read_table(places.own(f"data/mine/{name}.parquet")).to_pylist():
        gold, extra = made["reward_model"]["ground_truth"], made["extra_info"]
        (answer,) = domain_of(extra).right_answers(gold, extra)
        assert compute_score(name, answer, gold, extra)["score"] == 1, made


def test_a_file_that_is_there_is_left_alone(places, tmp_path):
    file = tmp_path / "mine.parquet"
    file.write_bytes(b"the user's")
    assert not make(Preparation(str(file), ["soup_verl.prepare_data"]), places)
    assert file.read_bytes() == b"the user's" and not (tmp_path / "rehearsal").exists()


def test_a_command_that_fails_says_what_it_said(places):
    with pytest.raises(StageFailed, match=r"prepare_data --dataset gsm8k .* --template='nope': expected one of"):
        make(Preparation("data/mine/x.parquet", ["soup_verl.prepare_data", "--dataset", "gsm8k", "--out", "data/mine",
                                                 "--template", "nope"]), places)  # fmt: skip


def test_a_few_short_rows_stand_for_a_file(tmp_path):
    file = write_rows(tmp_path / "train.parquet", [row("?" * length, i) for i, length in enumerate([9, 2, 7, 3])])
    before = file.read_bytes()
    (few,) = few_rows([str(file)], 2, tmp_path / "few")
    assert [r["extra_info"]["index"] for r in pq.read_table(few).to_pylist()] == [1, 3]
    assert few == f"{tmp_path}/few/train.parquet" and file.read_bytes() == before
    again = few_rows([str(file), str(file)], 9, tmp_path / "twice")  # evaluation tells files apart by their names
    assert again == [f"{tmp_path}/twice/train.parquet", f"{tmp_path}/twice/1_train.parquet"]
    assert few_rows(["rows.jsonl"], 2, tmp_path / "x") == ["rows.jsonl"]


def test_the_longest_prompt_is_counted_as_the_model_sees_it(tmp_path):
    train = write_rows(tmp_path / "t.parquet", [row("12345")])
    val = write_rows(tmp_path / "v.parquet", [row("123")])
    run = preflight.settings_of(configure(data__train_files=train, data__val_files=val))
    # <s> and </s> are tokens: <s>user:12345</s><s>assistant: is 1 + 5 + 5 + 1 + 1 + 10
    assert longest_prompt(run, preflight.Model(tokenizer=byte_tokenizer())) == 23
