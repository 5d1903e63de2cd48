"""Attention over packed sequences (`use_remove_padding`), each by itself, or behind the prompt that it shares.

transformers' `sdpa` lets all sequences of a packed micro-batch attend through one dense mask, whose cost grows with the
square of the micro-batch; flash-attn, which reads where they end, needs a GPU. bfloat16 is attended to in float32:
torch's backward pass on a CPU is four times slower in bfloat16, while the products around it gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: what its `sdpa` computes, without the products that its mask hides.

    Args:
        module: the attention layer.
        query, key, value: (batch, heads, tokens, head_dim).
        attention_mask: used where the batch is not packed.
        position_ids: (1, tokens) where it is. A sequence that counts from 0 stands by itself; one that counts from p
            goes on from the first p tokens of the last one that counts from 0 (`shared_prompts.py`).

    Returns:
        (batch, tokens, heads, head_dim), and None for the weights.
    """
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    spans = _spans(position_ids, sliding_window=kwargs.get("sliding_window")) if len(query) == 1 else []
    if len(spans) < 2:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out.to(dtype), None
    # Pieces first: the gradient of a slice is as long as what it was cut from, that of a split is put together once.
    lengths = [own for own, _ in spans]
    pieces = list(zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True))
    parts = []
    first_keys, first_values = pieces[0][1:]
    for (queries, keys, values), (own, shared) in zip(pieces, spans, strict=True):
        mask = None
        if shared:
            keys = torch.cat([first_keys[:, :, :shared], keys], dim=2)
            values = torch.cat([first_values[:, :, :shared], values], dim=2)
            mask = keys.new_ones(own, shared + own, dtype=torch.bool).tril(shared)[None, None]
        else:
            first_keys, first_values = keys, values
        parts.append(sdpa_attention_forward(module, queries, keys, values, mask, **kwargs)[0])
    return torch.cat(parts, dim=1).to(dtype), None


def _spans(position_ids: Tensor | None, *, sliding_window: int | None) -> list[tuple[int, int]]:
    """For each packed sequence its tokens, and how many it shares, often 0; [] if none are packed or one is longer than
    the layer's window."""
    if position_ids is None or position_ids.dim() != 2 or len(position_ids) != 1:
        return []
    positions = position_ids[0]
    starts = [0, *((positions.diff() != 1).nonzero()[:, 0] + 1).tolist()]
    ends = [*starts[1:], len(positions)]
    spans = [(end - start, int(positions[start])) for start, end in zip(starts, ends, strict=True)]
    return [] if sliding_window and max(map(sum, spans)) > sliding_window else spans


def use_for_sdpa() -> None:
    """Have models of this process that ask for `sdpa` use it. A name of its own would stand in every checkpoint's
    config.json, and nobody else could load that."""
    AttentionInterface.register("sdpa", packed_sdpa)
