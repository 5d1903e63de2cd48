"""A small Qwen2 as functions of a dictionary of weights: what transformers computes, without its cost a call.

The prompt is run once a question and its keys and values are shared by all responses, in sampling and in training
alike. Names of the weights are transformers', so a saved model is read as it is and a trained one can be written back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
KeysValues = list[tuple[Tensor, Tensor]]
"""One pair a layer, each (rows, heads, length, head_dim)."""


@dataclass(frozen=True)
class Shape:
    """What the weights' own shapes do not say. `heads` are those of queries and of keys."""

    layers: int
    heads: int
    rope_theta: float
    epsilon: float
    end_token: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """From transformers' `config.json`.

        Raises:
            ValueError: the model is not one that this module computes.
        """
        config = json.loads((folder / "config.json").read_text())
        plain = config["model_type"] == "qwen2" and config["num_key_value_heads"] == config["num_attention_heads"]
        if not plain or config["tie_word_embeddings"]:
            raise ValueError(f"{folder}: expected a Qwen2 with as many key heads as query heads and untied embeddings")
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        return cls(
            config["num_hidden_layers"],
            config["num_attention_heads"],
            float(theta),
            config["rms_norm_eps"],
            config["eos_token_id"],
        )


def read_weights(folder: Path) -> Weights:
    """The weights of a model that transformers saved."""
    return load_file(folder / "model.safetensors")


def _norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), scale, epsilon)


def rotation(shape: Shape, head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary embeddings, each (rows, 1, length, head_dim)."""
    frequencies = shape.rope_theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = positions[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]


class Grown:
    """Keys and values that grow by concatenation: gradients flow through them."""

    def __init__(self, past: KeysValues | None = None):
        self._past = past
        self.present: KeysValues = []

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of `layer`, the new ones last."""
        if self._past is not None:
            keys = torch.cat([self._past[layer][0], keys], dim=2)
            values = torch.cat([self._past[layer][1], values], dim=2)
        self.present.append((keys, values))
        return keys, values


class Reserved:
    """Keys and values written in place into memory set aside for `room` more tokens: for sampling, no gradients."""

    def __init__(self, past: KeysValues, room: int):
        self._length = [keys.shape[2] for keys, _ in past]
        self._stored = [tuple(functional.pad(x, (0, 0, 0, room)) for x in pair) for pair in past]

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of `layer`, the new ones last."""
        start, end = self._length[layer], self._length[layer] + keys.shape[2]
        for stored, new in zip(self._stored[layer], (keys, values), strict=True):
            stored[:, :, start:end] = new
        self._length[layer] = end
        stored_keys, stored_values = self._stored[layer]
        return stored_keys[:, :, :end], stored_values[:, :, :end]


def hidden_states(
    weights: Weights, shape: Shape, ids: Tensor, positions: Tensor, visible: Tensor, cache: Grown | Reserved
) -> Tensor:
    """The last layer's normalised output.

    Args:
        weights, shape: the model.
        ids, positions: (rows, length) tokens and their places in their sequences.
        visible: boolean, (rows, 1, length, length with the past): what each token may attend to.
        cache: keys and values of the tokens before; takes those of `ids`.

    Returns:
        (rows, length, hidden).
    """
    x = functional.embedding(ids, weights["model.embed_tokens.weight"])
    head_dim = x.shape[-1] // shape.heads
    turn = rotation(shape, head_dim, positions)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        h = _norm(x, weights[at + "input_layernorm.weight"], shape.epsilon)
        q, k, v = (_heads(h, weights, f"{at}self_attn.{name}_proj", shape.heads) for name in "qkv")
        k, v = cache.add(layer, _rotated(k, turn), v)
        seen = functional.scaled_dot_product_attention(_rotated(q, turn), k, v, attn_mask=visible)
        x = x + functional.linear(seen.transpose(1, 2).flatten(2), weights[at + "self_attn.o_proj.weight"])
        h = _norm(x, weights[at + "post_attention_layernorm.weight"], shape.epsilon)
        gate, up = (functional.linear(h, weights[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + functional.linear(functional.silu(gate) * up, weights[at + "mlp.down_proj.weight"])
    return _norm(x, weights["model.norm.weight"], shape.epsilon)


def _heads(h: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    flat = functional.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])
    return flat.unflatten(-1, (heads, -1)).transpose(1, 2)


def logits_of(weights: Weights, hidden: Tensor) -> Tensor:
    """(..., hidden) -> (..., vocabulary)."""
    return functional.linear(hidden, weights["lm_head.weight"])


@dataclass(frozen=True)
class Prompts:
    """Questions as tokens, padded on the left.

    Args:
        ids: (prompts, length).
        mask: (prompts, length) boolean, true on tokens.
    """

    ids: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """(prompts,)."""
        return self.mask.sum(dim=-1)

    @property
    def positions(self) -> Tensor:
        """(prompts, length); padding stands at 0."""
        return (self.mask.cumsum(dim=-1) - 1).clamp(min=0)


def read_prompts(weights: Weights, shape: Shape, prompts: Prompts, *, copies: int) -> tuple[KeysValues, Tensor]:
    """Run every prompt once.

    Returns:
        Keys and values, and the hidden state of the last token (rows, 1, hidden), `copies` of each prompt.
    """
    causal = torch.ones(prompts.ids.shape[1], prompts.ids.shape[1], dtype=torch.bool).tril()
    itself = torch.eye(prompts.ids.shape[1], dtype=torch.bool)  # padding sees itself: a row of nothing would be NaN
    visible = (causal & prompts.mask[:, None, None, :]) | itself
    cache = Grown()
    hidden = hidden_states(weights, shape, prompts.ids, prompts.positions, visible, cache)
    keys_values = [tuple(x.repeat_interleave(copies, dim=0) for x in pair) for pair in cache.present]
    return keys_values, hidden[:, -1:].repeat_interleave(copies, dim=0)  # type: ignore[return-value]


def response_logits(weights: Weights, shape: Shape, prompts: Prompts, responses: Tensor, *, copies: int) -> Tensor:
    """Logits that every response token was drawn from, with gradients.

    Args:
        prompts: the questions.
        responses: (prompts x copies, response_length) tokens, the responses of a prompt next to each other.
        copies: responses a prompt.

    Returns:
        (prompts x copies, response_length, vocabulary).
    """
    past, last = read_prompts(weights, shape, prompts, copies=copies)
    rows, length = responses.shape
    mask = prompts.mask.repeat_interleave(copies, dim=0)
    positions = prompts.lengths.repeat_interleave(copies)[:, None] + torch.arange(length - 1)
    causal = torch.ones(length - 1, length - 1, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    visible = torch.cat([mask[:, None, None, :].expand(-1, 1, length - 1, -1), causal], dim=-1)
    hidden = hidden_states(weights, shape, responses[:, :-1], positions, visible, Grown(past))
    return logits_of(weights, torch.cat([last, hidden], dim=1))
