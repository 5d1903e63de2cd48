"""The command: its arguments, its folder, its exit codes, and the table."""

import fcntl
import json
import os
import re
from importlib.metadata import PackageNotFoundError

import pytest

from soup_verl.rehearsal import __main__ as rehearse
from soup_verl.rehearsal.data import Preparation
from soup_verl.rehearsal.processes import StageFailed
from soup_verl.rehearsal.record import Record, show
from soup_verl.rehearsal.run_stages import surviving_steps, trained_steps
from tests.unit.preflight_files import NEEDS_VLLM_FOR_CPUS, SMALL, write_model


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mine"


def command(folder, *settings, model="none/such", extent="1"):
    return ["--out", str(folder), "--extent", extent, "--model", str(model), "--data-dir", "data/x", "--", *settings]


def test_a_command_line_with_and_without_preparations():
    head = ["--out", "a b", "--model", "m", "--data-dir", "d"]
    options, made, script = rehearse.parse_args(
        [*head, "--made", "f", "mod", "--x", "1", "--made", "g", "n", "--", "a=1"]
    )
    assert (str(options.out), options.extent) == ("a b", "1")
    assert made == [Preparation("f", ["mod", "--x", "1"]), Preparation("g", ["n"])]
    assert script == ["a=1"]
    assert rehearse.parse_args([*head, "--"])[1:] == ([], [])


@NEEDS_VLLM_FOR_CPUS
def test_a_typo_in_any_key_is_red(folder, capsys):
    assert rehearse.main(command(folder, "actor_rollout_ref.rollout.temprature=1.0")) == 1
    said = capsys.readouterr()
    assert said.err.startswith("rehearse: settings failed: Could not override 'actor_rollout_ref.rollout.temprature'")
    assert said.err.count("\n") == 1 and f"(log: {folder}/rehearsal.log)" in said.err
    stages = json.loads((folder / "rehearsal.json").read_text())["stages"]
    assert [s["verdict"] for s in stages] == ["FAILED"] + ["not reached"] * 10


@NEEDS_VLLM_FOR_CPUS
def test_a_model_that_nobody_has_is_one_line(folder, capsys, tmp_path):
    assert rehearse.main(command(folder, model=tmp_path / "none")) == 1
    assert "rehearse: model failed: --model=" in capsys.readouterr().err


@NEEDS_VLLM_FOR_CPUS
def test_a_tokenizer_without_a_chat_template_is_refused_before_anything_is_made(folder, capsys, tmp_path):
    from tests.unit.preflight_files import byte_tokenizer

    model = write_model(tmp_path / "model", SMALL, tokenizer=byte_tokenizer(template=None))
    lengths = ("data.max_prompt_length=100", "data.max_response_length=100")
    assert rehearse.main(command(folder, *lengths, f"actor_rollout_ref.model.path={model}", model=model)) == 1
    assert "rehearse: model failed: actor_rollout_ref.model.path=" in (said := capsys.readouterr().err)
    assert "chat template" in said and not (folder / "model").exists()


@NEEDS_VLLM_FOR_CPUS
def test_an_unknown_extent_and_a_folder_of_another_kind_are_refused(folder, capsys):
    assert rehearse.main(command(folder, extent="all")) == 2
    assert capsys.readouterr().err == "rehearse: REHEARSE=all: expected 1 or steps\n"
    (folder / "global_step_20").mkdir(parents=True)
    assert rehearse.main(command(folder)) == 2
    assert "expected an empty folder or one with rehearsal.json, not global_step_20" in capsys.readouterr().err
    assert (folder / "global_step_20").exists()


@pytest.mark.parametrize(
    ("installed", "message"),
    [("0.24.0", "the vLLM of .* \\(0.24.0\\) runs on GPUs alone"), (None, "vLLM is not installed for")],
)
def test_the_environment_for_gpus_is_refused(folder, capsys, monkeypatch, installed, message):
    def version(name):
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("importlib.metadata.version", version)
    assert rehearse.main(command(folder)) == 2
    assert re.match(f"rehearse: {message}.*scripts/install.sh .venv-cpu cpu,report", capsys.readouterr().err)
    assert not folder.exists()


@NEEDS_VLLM_FOR_CPUS
def test_an_earlier_rehearsal_is_replaced_and_one_under_way_is_not(folder, capsys):
    folder.mkdir()
    (folder / "rehearsal.json").write_text("{}")
    (folder / "old").write_text("")
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert rehearse.main(command(folder, "no.such=1")) == 2
    assert capsys.readouterr().err.endswith("a rehearsal is under way there\n") and (folder / "old").exists()
    os.close(lock)
    assert rehearse.main(command(folder, "no.such=1")) == 1
    assert "replacing the rehearsal that is there" in capsys.readouterr().out and not (folder / "old").exists()


def test_only_a_rehearsal_of_all_its_stages_is_complete(tmp_path, capsys):
    record = Record(tmp_path, ["a=1"], ("one", "two", "three"), ("one", "two"))
    with record.stage("one") as stage:
        print("chatter")
        stage.seen = "a thing"
    assert not record.complete
    with pytest.raises(StageFailed), record.stage("two"):
        raise StageFailed("no\nsign", tmp_path / "run.log")
    assert record.failed.seen == "no sign" and record.failed.log == str(tmp_path / "run.log")
    show(record)
    said = capsys.readouterr().out
    assert "chatter" not in said and record.log.read_text().startswith("chatter\nTraceback")
    for words in ("exercised: a thing\n", "FAILED: no sign\n", "not asked for", "Only a GPU shows:", "kernels"):
        assert words in said
    record.stages[1].verdict = "exercised"
    assert record.complete


def test_steps_of_a_killed_and_resumed_run(tmp_path):
    def log(name, *lines):
        (tmp_path / name).write_text("".join(json.dumps({"step": s, "data": d}) + "\n" for s, d in lines) + '{"st')

    trained = {"training/global_step": 0}
    log("metrics.0001.jsonl", (0, {"val": 1}), (1, trained), (2, trained), (3, trained))
    log("metrics.jsonl", (2, {"val": 1}), (3, trained), (4, trained))
    starts = trained_steps(tmp_path)
    assert starts == [[1, 2, 3], [3, 4]]
    assert surviving_steps(starts, kept=2) == [1, 2, 3, 4]  # step 3 was lost with the killed process
    assert surviving_steps(starts, kept=3) == [1, 2, 3, 3, 4]  # trained twice
