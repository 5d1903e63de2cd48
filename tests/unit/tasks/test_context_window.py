import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from soup_verl.tasks.chat_template import stop_token_ids
from soup_verl.tasks.context_window import extended_config, write_copy
from tests.unit.preflight_files import QWEN_7B, QWEN_TOKENIZER, SMALL, byte_tokenizer, write_model
from tests.unit.tokenizer_families import write_llama_like, write_qwen_math_like, write_r1_like

QWEN = {"model_type": "qwen2", "max_position_embeddings": 4096, "rope_theta": 10000, "hidden_size": 8}
LONGER = {"max_position_embeddings": 16384, "rope_theta": 40000.0}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
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
    assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 4096
    link = tmp_path / "copy/model.safetensors"
    assert link.is_symlink() and link.read_bytes() == b"weights"


def test_transformers_reads_both_settings_from_the_copy(tmp_path):
    from transformers import AutoConfig, Qwen2Config

    Qwen2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=4096
    ).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
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


def ends(folder):
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_every_token_that_ends_a_turn_ends_a_response_of_the_copy(tmp_path):
    model = write_qwen_math_like(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    both = sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert ends(model) == tokenizer.eos_token_id
    write_copy(model, tmp_path / "copy")
    assert ends(tmp_path / "copy") == both == sorted(stop_token_ids(str(tmp_path / "copy"), tokenizer))
    assert json.loads((tmp_path / "copy/config.json").read_text()) == json.loads((model / "config.json").read_text())


@pytest.mark.parametrize("write", [write_r1_like, write_llama_like])
def test_what_stops_already_stays_as_it_is(write, tmp_path):
    model = write(tmp_path / "model")
    before = ends(model)
    write_copy(model, tmp_path / "copy")
    assert ends(tmp_path / "copy") == sorted(before if isinstance(before, list) else [before])


@pytest.mark.skipif(not QWEN_TOKENIZER.is_dir(), reason=f"{QWEN_TOKENIZER} is not there")
def test_the_qwen_tokenizer_with_the_base_models_end_of_sequence(tmp_path):
    config = QWEN_7B | {"max_position_embeddings": 4096, "rope_theta": 10000, "eos_token_id": 151643}
    model = write_model(tmp_path / "model", config, tokenizer=QWEN_TOKENIZER)
    (model / "generation_config.json").write_text('{"eos_token_id": 151643, "bos_token_id": 151643}')
    write_copy(model, tmp_path / "copy", **LONGER)
    written = json.loads((tmp_path / "copy/generation_config.json").read_text())
    assert written == {"eos_token_id": [151643, 151645], "bos_token_id": 151643}


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(ValueError, match="exists; remove it or choose another"):
        write_copy(model, tmp_path / "copy", **LONGER)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    given = ["--model", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "soup_verl.tasks.context_window", *given]
    done = subprocess.run(
        [*command, "--max-position-embeddings", "8", "--rope-theta", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and not (tmp_path / "o").exists()
    assert done.stderr.startswith(f"context_window: {tmp_path}/empty/config.json: not a readable model configuration")
    assert done.stderr.count("\n") == 1


def test_a_template_that_takes_no_answer_is_refused_in_one_line(tmp_path):
    template = "{{ raise_exception('tools first') }}"
    model = write_model(tmp_path / "model", SMALL, tokenizer=byte_tokenizer(template=template))
    with pytest.raises(ValueError, match=r"model: a chat template that takes no question and answer \(tools first\)"):
        write_copy(model, tmp_path / "copy")
