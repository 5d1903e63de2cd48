"""How much memory and disk a run takes: pure arithmetic, each result with the formula that gave it.

Plain Python, nothing is measured. Parameters, optimizer state, buffers and caches are exact products; `activations`
and `logits` are rough, and what an allocator, CUDA, NCCL or a process itself takes is in none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from soup_verl.method.history.response_store import TOKEN_BYTES

GIB = 1 << 30
GENERATION_BYTES = 2
"""Bytes of an element in the rollout engine's bfloat16."""
PENDING_TOKEN_BYTES = 72
"""A token of a pending prefix, in Python tuples: two references of 8 bytes, an int of 32 and a float of 24."""
LOGIT_BYTES = 8
"""A logit in training: bfloat16, its bfloat16 gradient, and one float32 copy for the softmax."""


@dataclass(frozen=True)
class Amount:
    """So many bytes: a sum of terms, each with its formula in words and numbers."""

    terms: tuple[tuple[int, str], ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.terms)

    @property
    def formula(self) -> str:
        """A line a term, with its size where there are several."""
        if len(self.terms) == 1:
            return self.terms[0][1]
        return "\n".join(f"{text} = {readable(size)}" for size, text in self.terms)

    def times(self, number: int, what: str) -> Amount:
        """`number` of it, term by term."""
        return Amount(tuple((size * number, f"{text} x {number} {what}") for size, text in self.terms))

    def __str__(self) -> str:
        return readable(self.bytes)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.terms + other.terms)


NOTHING = Amount()


@dataclass(frozen=True)
class ModelShape:
    """What of a model's configuration decides its sizes; `params` counts every parameter once."""

    params: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool


def readable(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):,.1f} MiB"


def product(what: str, *factors: tuple[float, str], over: tuple[int, str] | None = None) -> Amount:
    """Bytes as a product of named factors, divided by `over`; the formula is what was computed."""
    size = math.prod(value for value, _ in factors) / (over[0] if over else 1)
    text = " x ".join(f"{_number(value)} {name}" for value, name in factors)
    return Amount(((math.ceil(size), f"{what}: {text}" + (f" / {over[0]} {over[1]}" if over else "")),))


def _number(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.2f}e9"
    if value >= 1e6:
        return f"{value / 1e6:.2f}e6"
    return f"{value:g}" if value != int(value) else f"{int(value)}"


def shards(*, world_size: int, fsdp_size: int) -> int:
    """GPUs that share one copy of the weights, as verl builds its device mesh."""
    return world_size if fsdp_size < 0 or fsdp_size >= world_size else fsdp_size


def weights(what: str, params: int, *, element_bytes: int, copies: int = 1, shards: int) -> Amount:
    """One GPU's part of `copies` sharded copies of the weights (or of something as large)."""
    factors = [(params, "parameters"), (element_bytes, "bytes")]
    return product(what, *([(copies, "copies")] if copies != 1 else []), *factors, over=(shards, "shards"))


def gathered(shape: ModelShape, *, element_bytes: int) -> Amount:
    """Weights that FSDP has in full on each GPU: embedding and output layer, and one transformer layer at a time."""
    ends = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    layer = max(0, shape.params - ends) // shape.layers
    return product("gathered", (ends + layer, "parameters of both ends and one layer"), (element_bytes, "bytes"))


def activations(shape: ModelShape, tokens: int, *, element_bytes: int, checkpointing: bool) -> Amount:
    """Rough: what backward needs of `tokens` tokens on one GPU.

    A layer keeps about 8 vectors of the hidden and 3 of the intermediate size a token; with gradient checkpointing
    one layer does, and the others keep their input.
    """
    layer = 8 * shape.hidden + 3 * shape.intermediate
    elements = layer + shape.layers * shape.hidden if checkpointing else shape.layers * layer
    return product("activations", (tokens, "tokens"), (elements, "elements"), (element_bytes, "bytes"))


def logits(shape: ModelShape, tokens: int) -> Amount:
    """Rough: logits of `tokens` tokens on one GPU and what log-probs and entropy make of them."""
    return product("logits", (tokens, "tokens"), (shape.vocab, "words"), (LOGIT_BYTES, "bytes"))


def rollout_weights(shape: ModelShape, *, element_bytes: int, tensor_parallel: int) -> Amount:
    """The rollout engine's weights on one GPU."""
    return product(
        "rollout weights", (shape.params, "parameters"), (element_bytes, "bytes"), over=(tensor_parallel, "GPUs")
    )


def kv_token(shape: ModelShape, *, element_bytes: int, tensor_parallel: int) -> Amount:
    """Keys and values of one token on one GPU of a replica; fewer heads than GPUs are repeated."""
    heads = max(1, shape.kv_heads // tensor_parallel)
    return product(
        "KV cache a token",
        (2, "(K and V)"),
        (shape.layers, "layers"),
        (heads, "heads"),
        (shape.head_dim, "head size"),
        (element_bytes, "bytes"),
    )


def snapshot_buffer(
    params: int, *, capacity: int, element_bytes: int, laid_out_bytes: int, shards: int, gpus_per_node: int
) -> Amount:
    """Memory of the kept policies on one node, and of the one that serves, laid out where the actor's shards are: the
    measured peak where every weight changes between two policies (tests/contract/test_kept_weights_contract.py).

    Args:
        element_bytes: of a kept weight.
        laid_out_bytes: of a weight that serves; 0 where that is not in host memory.
    """
    kept = weights("kept policies, at most", params, element_bytes=element_bytes, copies=capacity, shards=shards)
    serving = weights("the one that serves", params, element_bytes=laid_out_bytes, shards=shards)
    return (kept + serving if laid_out_bytes else kept).times(gpus_per_node, "GPUs a node")


def replay_store(capacity_tokens: int) -> Amount:
    """Host memory of the response store, on the driver alone."""
    return product("replay store", (capacity_tokens, "tokens"), (TOKEN_BYTES, "bytes"))


def pending_prefixes(*, steps: int, prompts: int, mixed: int, longest: int) -> Amount:
    """Host memory of look-ahead prefixes that wait for their step, on the driver, all of the `longest` length."""
    return product(
        "pending prefixes",
        (steps, "steps"),
        (prompts, "prompts"),
        (mixed, "mixed responses"),
        (longest, "tokens"),
        (PENDING_TOKEN_BYTES, "bytes"),
    )
