"""What counts as a model, and what is wrong with a checkpoint that does not. The merge itself is an end-to-end test."""

import fcntl
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from soup_verl.evaluation import EvaluationError, checkpoints
from soup_verl.evaluation.checkpoints import check_window, fingerprint, resolve
from tests.unit.preflight_files import SMALL

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def checkpoint(tmp_path):
    actor = tmp_path / "run" / "global_step_3" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 2}))
    for rank in range(2):
        (actor / f"model_world_size_2_rank_{rank}.pt").write_bytes(bytes([rank]) * 100)
    return actor.parent


@pytest.fixture
def merger(monkeypatch):
    """In place of verl's process: a folder with a config.json, or exit code 1. Holds the commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        target = command[command.index("--target_dir") + 1]
        with open(f"{target}/config.json", "w") as file:
            file.write("{}")
        return subprocess.CompletedProcess(command, run.code, "", "Traceback\nOSError: disk full\n")

    run.code = 0
    run.commands = commands
    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    return run


def find(name, tmp_path):
    return resolve(str(name), option="--model", merged=tmp_path / "merged", announce=print)


def test_a_model_folder_is_used_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path, tmp_path) == tmp_path


def test_a_checkpoint_is_merged_once_and_found_by_its_content(tmp_path, checkpoint, merger, capsys):
    folder = find(checkpoint, tmp_path)
    assert capsys.readouterr().out == f"merging {checkpoint / 'actor'} into {folder}\n"
    assert folder.name.startswith("run-global_step_3-")
    assert find(checkpoint / "actor", tmp_path) == folder
    (command,) = merger.commands
    assert command[command.index("--local_dir") + 1] == str(checkpoint / "actor")
    (checkpoint / "actor" / "model_world_size_2_rank_1.pt").write_bytes(b"2" * 100)
    assert find(checkpoint, tmp_path) != folder
    assert len(list((tmp_path / "merged").iterdir())) == 2


def test_a_link_such_as_best_is_the_checkpoint_that_it_leads_to(tmp_path, checkpoint, merger):
    (checkpoint.parent / "best").symlink_to(checkpoint.name)
    folder = find(checkpoint.parent / "best", tmp_path)
    assert folder.name.startswith("run-global_step_3-") and find(checkpoint, tmp_path) == folder
    assert len(merger.commands) == 1


def test_a_mended_tokenizer_or_configuration_is_another_checkpoint(tmp_path, checkpoint, merger):
    folder = find(checkpoint, tmp_path)
    (checkpoint / "actor" / "huggingface" / "chat_template.jinja").write_text("{{ messages }}")
    assert find(checkpoint, tmp_path) != folder


def test_an_adapter_is_added_to_the_weights_that_it_was_trained_on(tmp_path, checkpoint, monkeypatch):
    """W + alpha / r * B A, rounded to bfloat16; the folder is then a model like any other."""
    torch.manual_seed(0)
    config = Qwen2Config(**{key: value for key, value in SMALL.items() if key != "architectures"})
    base = Qwen2ForCausalLM(config).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)

    def run(command, **_):  # as verl's merger leaves it
        target = Path(command[command.index("--target_dir") + 1])
        base.save_pretrained(target)
        model = get_peft_model(base, lora)
        model.save_pretrained(target / "lora_adapter")
        run.adapter = {name: weight.float() for name, weight in model.state_dict().items() if "lora_" in name}
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    folder = find(checkpoint, tmp_path)
    assert not (folder / "lora_adapter").exists()
    found = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    a, b = (run.adapter[f"base_model.model.{LAYER}.lora_{side}.default.weight"] for side in "AB")
    expected = before[f"{LAYER}.weight"].float() + 3 * b @ a
    torch.testing.assert_close(found[f"{LAYER}.weight"].float(), expected, atol=2e-3, rtol=1e-2)
    assert (expected - before[f"{LAYER}.weight"].float()).abs().max() > 0.1
    assert all(torch.equal(found[name], before[name]) for name in before if "q_proj.weight" not in name)


def test_a_failed_merge_leaves_nothing_that_could_be_taken_for_a_model(tmp_path, checkpoint, merger):
    merger.code = 1
    with pytest.raises(EvaluationError, match=r"model_merger failed with exit code 1: OSError: disk full"):
        find(checkpoint, tmp_path)
    assert list((tmp_path / "merged").iterdir()) == []


def test_what_a_killed_merge_left_is_cleared_away(tmp_path, checkpoint, merger):
    folder = find(checkpoint, tmp_path)
    left = folder.rename(folder.with_name(f"{folder.name}.partial"))
    (left / "half.safetensors").touch()
    assert find(checkpoint, tmp_path) == folder and len(merger.commands) == 2
    assert list((tmp_path / "merged").iterdir()) == [folder] and not (folder / "half.safetensors").exists()


def test_a_merge_waits_for_another_and_takes_what_it_made(tmp_path, checkpoint, merger):
    folder = find(checkpoint, tmp_path)
    made = folder.rename(tmp_path / "made")
    other = os.open(tmp_path / "merged", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(find, checkpoint, tmp_path)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        made.rename(folder)
        os.close(other)
        assert waiting.result(timeout=60) == folder
    assert len(merger.commands) == 1


def test_whole_weights_beside_the_shards_are_used(tmp_path, checkpoint):
    (checkpoint / "actor" / "huggingface" / "model.safetensors").write_bytes(b"")
    assert find(checkpoint, tmp_path) == checkpoint / "actor" / "huggingface"


@pytest.mark.parametrize("name", ["model_world_size_2_rank_1.pt", "huggingface/config.json"])
def test_a_checkpoint_with_a_hole_is_refused(tmp_path, checkpoint, name):
    (checkpoint / "actor" / name).unlink()
    with pytest.raises(EvaluationError, match=rf"--model=.*{name} is missing"):
        find(checkpoint, tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"world_size": null}'])
def test_a_broken_fsdp_config_is_refused(tmp_path, checkpoint, text):
    (checkpoint / "actor" / "fsdp_config.json").write_text(text)
    with pytest.raises(EvaluationError, match="fsdp_config.json names no world_size"):
        find(checkpoint, tmp_path)


def test_another_folder_is_no_model(tmp_path):
    with pytest.raises(EvaluationError, match=r"--model=.*: expected a model folder with config.json, or an FSDP"):
        find(tmp_path, tmp_path)


def test_a_name_that_is_nowhere_is_refused_with_its_option(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=r"^--historical='no such folder': neither a folder nor"):
        resolve("no such folder", option="--historical", merged=tmp_path, announce=print)


@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_the_fingerprint_sees_a_change_at_the_start_the_middle_and_the_end(tmp_path, place):
    file = tmp_path / "w"
    data = bytearray(3_000_000)
    file.write_bytes(data)
    before = fingerprint([file])
    data[place] = 1
    file.write_bytes(data)
    assert fingerprint([file]) != before


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_response_must_fit_the_models_window(tmp_path):
    model = write_config(tmp_path, max_position_embeddings=64, rope_parameters={"rope_type": "default"})
    check_window(model, 64, "--max-tokens=60")
    with pytest.raises(EvaluationError, match=r"--max-tokens=61: with the longest prompt that is 65 tokens"):
        check_window(model, 65, "--max-tokens=61")


def test_a_stretched_window_is_left_to_vllm(tmp_path):
    check_window(write_config(tmp_path, max_position_embeddings=64, rope_scaling={"rope_type": "yarn"}), 65, "")
