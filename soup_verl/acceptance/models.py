"""Random models of the recipes' architecture, made here: no file and no network is needed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def small_qwen2(*, seed: int = 0, attention: str = "sdpa", **sizes: Any) -> Qwen2ForCausalLM:
    """A Qwen2 in float32, by default of two layers and grouped heads of 64; equal seeds and sizes give equal weights.

    Args:
        seed: of the weights.
        attention: transformers' `attn_implementation`.
        sizes: fields of Qwen2Config that are to be other than here.
    """
    defaults = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    config = Qwen2Config(**{**defaults, **heads, "tie_word_embeddings": False, **sizes})
    config._attn_implementation = attention
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).train()
