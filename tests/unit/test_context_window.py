import json
import subprocess
import sys

import pytest

from soup_verl.context_window import extended_config, write_copy

QWEN = {"max_position_embeddings": 4096, "rope_theta": 10000, "hidden_size": 8}
LONGER = {"max_position_embeddings": 16384, "rope_theta": 40000.0}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 4096, "eos_token": "é"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_copy_is_longer_and_the_model_is_untouched(model, tmp_path):
    before = contents(model)
    write_copy(model, tmp_path / "copy", **LONGER)
    assert contents(model) == before
    assert json.loads((tmp_path / "copy/config.json").read_text()) == QWEN | LONGER
    assert json.loads((tmp_path / "copy/tokenizer_config.json").read_text())["model_max_length"] == 16384
    link = tmp_path / "copy/model.safetensors"
    assert link.is_symlink() and link.read_bytes() == b"weights"


def test_transformers_reads_both_settings_from_the_copy(tmp_path):
    from transformers import AutoConfig, Qwen2Config

    Qwen2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=4096
    ).save_pretrained(tmp_path / "model")
    write_copy(tmp_path / "model", tmp_path / "copy", **LONGER)
    config = AutoConfig.from_pretrained(tmp_path / "copy")
    assert config.max_position_embeddings == 16384
    assert config.rope_parameters["rope_theta"] == 40000.0


def test_the_section_of_newer_transformers_is_changed_in_place():
    config = {"max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    changed = extended_config(config, **LONGER)
    assert changed["rope_parameters"] == {"rope_theta": 40000.0, "rope_type": "default"}
    assert "rope_theta" not in changed and config["rope_parameters"]["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**QWEN, "max_position_embeddings": 32768}, "--max-position-embeddings=16384: expected at least"),
        ({"max_position_embeddings": 4096}, "no rope_theta"),
    ],
)
def test_what_cannot_be_stretched_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        extended_config(config, **LONGER)


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(ValueError, match="exists; remove it or choose another"):
        write_copy(model, tmp_path / "copy", **LONGER)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    given = ["--model", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "soup_verl.context_window", *given]
    done = subprocess.run(
        [*command, "--max-position-embeddings", "8", "--rope-theta", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and not (tmp_path / "o").exists()
    assert done.stderr.startswith(f"context_window: {tmp_path}/empty/config.json: not a readable model configuration")
    assert done.stderr.count("\n") == 1
