import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.run_inputs import Assets

TOKENS = ["<end>", "a", "b"]
HIDDEN, HEADS, INNER = 16, 2, 24
QUESTIONS = ["ab:a<b", "ba:a<b", "ab:b<a", "ba:b<a"]


def tiny_weights():
    """A Qwen2 of one layer whose three tokens are about equally likely; prompts have tokens of their own, 3 and on."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (8, HIDDEN), "lm_head.weight": (3, HIDDEN)}
    at = "model.layers.0."
    shapes |= {f"{at}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
    shapes |= {f"{at}self_attn.{n}_proj.bias": (HIDDEN,) for n in "qkv"}
    shapes |= {f"{at}mlp.{n}_proj.weight": (INNER, HIDDEN) for n in ("gate", "up")}
    shapes |= {f"{at}mlp.down_proj.weight": (HIDDEN, INNER)}
    weights = {name: 0.3 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    weights["lm_head.weight"] *= 0.2
    norms = ("model.norm", f"{at}input_layernorm", f"{at}post_attention_layernorm")
    return weights | {f"{name}.weight": torch.ones(HIDDEN) for name in norms}


@pytest.fixture
def assets(tmp_path):
    """Four questions of `order` with two letters, as `benchmarks.prepare` would leave them."""
    folder = tmp_path / "assets"
    (folder / "model").mkdir(parents=True)
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 0,
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
    save_file(tiny_weights(), folder / "model" / "model.safetensors")
    rows = [{"question": q, "ids": [3 + i, 7, 3 + i][: 2 + i % 2]} for i, q in enumerate(QUESTIONS)]
    (folder / "tokens.json").write_text(json.dumps({"tokens": TOKENS, "train": rows, "val": rows}))
    report = {"settings": {"task": "order"}, "max_response_tokens": 5, "val": {"pass@1": 0.1}}
    (folder / "prepare.json").write_text(json.dumps(report))
    return Assets.read(folder)
