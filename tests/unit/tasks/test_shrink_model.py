import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from soup_verl.tasks.shrink_model import shrunk_config, write_shrunk
from tests.unit.preflight_files import QWEN_7B, ROOT, byte_tokenizer, write_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_the_layers_are_small_and_the_rest_is_the_models_own():
    assert shrunk_config(QWEN_7B | {"rope_theta": 10000}) == QWEN_7B | {
        "rope_theta": 10000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,  # 28 heads share 4: still grouped
    }


def test_heads_that_share_nothing_go_on_sharing_nothing():
    small = shrunk_config(LLAMA | {"num_key_value_heads": 32})
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (2, 2)
    assert "num_key_value_heads" not in shrunk_config(LLAMA)


def test_a_head_size_that_is_named_becomes_one_that_vllm_has_on_a_cpu():
    assert shrunk_config(QWEN3)["head_dim"] == 32


def test_each_kind_of_layer_is_kept():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    small = shrunk_config(LLAMA | {"num_hidden_layers": 6, "layer_types": kinds})
    assert small["layer_types"] == ["sliding_attention", "full_attention"]
    small = shrunk_config(LLAMA | {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6})
    assert small["layer_types"] == ["full_attention"] * 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 768}, "has no hidden_size"),
        (LLAMA | {"num_local_experts": 8}, "num_local_experts: a model with experts"),
        (LLAMA | {"auto_map": {"AutoModel": "x.y"}}, "auto_map: a model with code of its own"),
    ],
)
def test_what_cannot_be_shrunk_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        shrunk_config(config)


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_transformers_runs_the_copy_with_the_models_own_tokenizer(tmp_path, config):
    model = write_model(tmp_path / "model", config)
    counted = write_shrunk(model, tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(small).__name__ == config["architectures"][0]
    assert counted == sum(p.numel() for p in small.parameters())
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == bool(config.get("tie_word_embeddings"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    logits = small(**tokenizer("2+2=", return_tensors="pt")).logits
    assert logits.shape == (1, 4, 300) and torch.isfinite(logits).all()


def test_the_models_folder_may_be_read_only_and_is_not_touched(tmp_path):
    model = write_model(tmp_path / "a model", QWEN3)
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (model / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    (model / "model.safetensors.index.json").write_text("{}")
    before = files(model)
    for file in model.iterdir():
        file.chmod(0o444)
    model.chmod(0o555)
    write_shrunk(model, tmp_path / "out" / "small")
    model.chmod(0o755)
    assert files(model) == before
    copied = files(tmp_path / "out" / "small")
    assert copied.keys() == before.keys() - {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} | {
        "model.safetensors"
    }
    same = [name for name in before if copied.get(name) == before[name]]
    assert {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(same)
    assert all(file.stat().st_mode & 0o200 for file in (tmp_path / "out" / "small").iterdir())  # the copy can be
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "small"]


def test_the_weights_are_the_seeds(tmp_path):
    model = write_model(tmp_path / "model", LLAMA)
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        before = torch.get_rng_state()
        write_shrunk(model, tmp_path / name, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{tmp}/none", "neither a folder nor a model the hub gives us (no such folder, and not a name that the hub"),
        ("{tmp}", "not a readable model configuration"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, model, message):
    command = [sys.executable, "-m", "soup_verl.tasks.shrink_model", "--model", model.format(tmp=tmp_path)]
    done = subprocess.run([*command, "--out", tmp_path / "x"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("shrink_model: ") and message in done.stderr


def test_an_existing_copy_is_not_replaced(tmp_path):
    model = write_model(tmp_path / "model", LLAMA)
    (tmp_path / "small").mkdir()
    with pytest.raises(ValueError, match="exists"):
        write_shrunk(model, tmp_path / "small")
