"""What is refused before anything is written, and what a refusal leaves: nothing. The merge itself is in tests/e2e."""

import inspect
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from soup_verl.evaluation import checkpoints
from soup_verl.exporting.__main__ import main
from tests.unit.exporting.folders import write_checkpoint, write_evaluation


@pytest.fixture(autouse=True)
def merger(monkeypatch):
    """In place of verl's process: a model of two files, with an adapter beside it if the run had LoRA."""

    def run(command, **_):
        target, actor = (Path(command[command.index(f"--{name}_dir") + 1]) for name in ("target", "local"))
        for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
            (target / name).write_text("{}")
        if (actor / "lora_train_meta.json").exists():
            (target / "lora_adapter").mkdir()
            (target / "lora_adapter" / "adapter_config.json").write_text('{"r": 4}')
            (target / "lora_adapter" / "adapter_model.safetensors").write_text("{}")
        return subprocess.CompletedProcess(command, run.code, "", "OSError: disk full\n")

    run.code = 0
    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    return run


@pytest.fixture
def token(monkeypatch):
    """A token, and a client that notes what it is asked for."""
    asked = []

    class Api:
        def create_repo(self, name, **how):
            inspect.signature(HfApi.create_repo).bind(self, name, **how)
            asked.append((name, how))

        def upload_folder(self, **how):
            inspect.signature(HfApi.upload_folder).bind(self, **how)
            if not asked:
                raise AssertionError("no repository yet")
            asked.append(how)
            return "https://hub/commit"

    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    Api.asked = asked
    return Api


def export(*arguments):
    return main(list(map(str, arguments)))


def refused(capsys, out, *arguments):
    """The one line of a refusal, which left nothing at `out`."""
    assert export(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists() and not out.with_name(f"{out.name}.partial").exists()
    return line


def test_a_merged_model_with_its_card(tmp_path, capsys):
    step = write_checkpoint(tmp_path / "run")
    assert export(step, "--out", tmp_path / "out") == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "tokenizer_config.json", "model.safetensors"}
    assert [folder.name for folder in tmp_path.iterdir() if "partial" in folder.name] == []


def test_a_link_such_as_best_is_its_checkpoint(tmp_path):
    step = write_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "best").symlink_to(step.name)
    assert export(tmp_path / "run" / "best", "--out", tmp_path / "out") == 0
    assert "after 2 steps" in (tmp_path / "out" / "README.md").read_text()


def test_whole_weights_beside_the_shards_are_taken_as_they_are(tmp_path, merger):
    merger.code = 1
    step = write_checkpoint(tmp_path / "run")
    (step / "actor" / "huggingface" / "model.safetensors").write_text("whole")
    assert export(step, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "model.safetensors").read_text() == "whole"


def test_an_adapter_goes_without_the_models_weights_and_names_that_model(tmp_path):
    step = write_checkpoint(tmp_path / "run", lora=True)
    merged = write_evaluation(tmp_path / "merged", model=step, fingerprint="of the merged model")
    assert export(step, "--out", tmp_path / "out", "--adapter", "--evaluation", merged) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "tokenizer_config.json", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config == {"r": 4, "base_model_name_or_path": "Qwen/Qwen2.5-Math-7B"}


def test_evaluations_of_these_weights_are_in_the_card_and_others_are_refused(tmp_path, capsys):
    step = write_checkpoint(tmp_path / "run")
    assert export(step, "--out", tmp_path / "first") == 0
    digest = checkpoints.fingerprint(checkpoints.model_files(tmp_path / "first"))
    own = write_evaluation(tmp_path / "own", model=step, fingerprint=digest)
    write_evaluation(tmp_path / "run" / "old", model=step, fingerprint="of older weights", mean=0.875)
    assert export(step, "--out", tmp_path / "second", "--evaluation", own) == 0
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| pass@8 | 0.5 [0.25, 0.75] |" in card and "0.875" not in card
    (result,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "pass@8", "value": 0.5}]
    capsys.readouterr()
    other = write_evaluation(tmp_path / "other", model=step, fingerprint="another")
    line = refused(capsys, tmp_path / "third", step, "--out", tmp_path / "third", "--evaluation", own, other)
    assert line == f"error: --evaluation={other}: of another model, or with prefixes of others"
    line = refused(capsys, tmp_path / "third", step, "--out", tmp_path / "third", "--evaluation", tmp_path)
    assert line == f"error: {tmp_path}: expected the folder of an evaluation, with results.json; there is none."


def test_an_export_folder_that_exists_is_refused_and_left(tmp_path, capsys):
    step = write_checkpoint(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert export(step, "--out", out) == 1
    assert capsys.readouterr().err == f"error: --out={out}: exists. Remove it, or choose another folder.\n"
    assert [file.name for file in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("actor/model_world_size_1_rank_0.pt", b"weight", "6 bytes, 7 were written"),
        ("actor/model_world_size_1_rank_0.pt", b"weighty", "its checksum is not the one that was written"),
        ("soup/manifest.json", None, "missing, so the checkpoint was not written to its end"),
    ],
)
def test_a_torn_checkpoint_is_refused(tmp_path, capsys, file, content, said):
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    (step / file).unlink() if content is None else (step / file).write_bytes(content)
    assert refused(capsys, out, step, "--out", out) == f"error: {step / file}: {said}"


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/my model", "me/", "/mine", "me/a--b"])
def test_a_name_of_another_form_is_refused(tmp_path, capsys, token, name):
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    line = refused(capsys, out, step, "--out", out, f"--push={name}")
    assert line == f"error: --push={name}: expected OWNER/NAME, of letters, digits, '-', '_' and '.'"


def test_a_push_without_a_token_is_refused_before_the_merge(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    line = refused(capsys, out, step, "--out", out, "--push", "me/mine")
    assert line == "error: --push=me/mine: no token of the hub. Set HF_TOKEN, or run `hf auth login`."


def test_a_push_where_the_hub_is_switched_off_is_refused(tmp_path, capsys, token, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    assert "HF_HUB_OFFLINE is set" in refused(capsys, out, step, "--out", out, "--push", "me/mine")


def test_a_push_makes_a_private_repository_and_one_commit(tmp_path, capsys, token):
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    assert export(step, "--out", out, "--push", "me/mine") == 0
    assert capsys.readouterr().out.endswith("pushed to https://hub/commit\n")
    made, uploaded = token.asked
    assert made == ("me/mine", {"private": True, "exist_ok": True})
    assert uploaded == {"repo_id": "me/mine", "folder_path": out, "commit_message": "Export of out"}


def test_a_hub_that_cannot_be_reached_costs_nothing_that_was_written(tmp_path, capsys, token, monkeypatch):
    def refuse(self, name, **_):
        raise RuntimeError("no route to host\nmore")

    monkeypatch.setattr(token, "create_repo", refuse)
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    assert export(step, "--out", out, "--push", "me/mine") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --push=me/mine: no route to host. {out} is whole: hf upload me/mine {out}"
    assert (out / "README.md").exists()


def test_the_hubs_client_takes_what_we_give_it():
    import inspect

    from huggingface_hub import HfApi

    assert {"private", "exist_ok"} <= inspect.signature(HfApi.create_repo).parameters.keys()
    assert {"repo_id", "folder_path", "commit_message"} <= inspect.signature(HfApi.upload_folder).parameters.keys()


def test_an_adapter_of_a_run_without_lora_is_refused(tmp_path, capsys):
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    line = refused(capsys, out, step, "--out", out, "--adapter")
    assert line == f"error: --adapter: CKPT={step} is of a run without LoRA. Leave --adapter out."


def test_an_adapter_is_not_pushed_with_a_folder_of_this_machine_for_its_model(tmp_path, capsys, token):
    step, out = write_checkpoint(tmp_path / "run", lora=True, base=str(tmp_path)), tmp_path / "out"
    line = refused(capsys, out, step, "--out", out, "--adapter", "--push", "me/mine")
    assert line.startswith(f"error: --base-model: expected the hub's name of {tmp_path}")
    assert token.asked == []
    assert export(step, "--out", out, "--adapter", "--push", "me/mine", "--base-model", "its/name") == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "its/name"


def test_what_is_no_checkpoint_of_a_run_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    line = refused(capsys, out, tmp_path / "model", "--out", out)
    assert line.startswith(f"error: CKPT={tmp_path / 'model'}: expected an FSDP checkpoint of verl (global_step_N with")
    line = refused(capsys, out, tmp_path / "none", "--out", out)
    assert line.startswith(f"error: CKPT={tmp_path / 'none'}: no such folder; expected an FSDP checkpoint of verl")
    step = write_checkpoint(tmp_path / "run")
    for name in ("run.json", "metrics.jsonl", "config.yaml"):
        (tmp_path / "run" / name).unlink()
    assert "expected the folder of a run" in refused(capsys, out, step, "--out", out)


def test_a_command_line_that_cannot_be_read_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        export(tmp_path)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --out (--help lists the options)\n"


def test_a_merge_that_fails_leaves_nothing(tmp_path, capsys, merger):
    merger.code = 1
    step, out = write_checkpoint(tmp_path / "run"), tmp_path / "out"
    line = refused(capsys, out, step, "--out", out)
    assert line == f"error: CKPT={step}: verl's model_merger failed with exit code 1: OSError: disk full"
