"""Attention over packed sequences (`use_remove_padding`), each by itself.

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
        position_ids: (1, tokens) where it is; each sequence counts from 0.

    Returns:
        (batch, tokens, heads, head_dim), and None for the weights.
    """
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    ends = _ends(position_ids, sliding_window=kwargs.get("sliding_window")) if len(query) == 1 else []
    if len(ends) < 2:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out.to(dtype), None
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    sequences = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    parts = [sdpa_attention_forward(module, *sequence, None, **kwargs)[0] for sequence in sequences]
    return torch.cat(parts, dim=1).to(dtype), None


def _ends(position_ids: Tensor | None, *, sliding_window: int | None) -> list[int]:
    """Where the packed sequences end; [] if there are none, or one is longer than the layer's window."""
    if position_ids is None or position_ids.dim() != 2 or len(position_ids) != 1:
        return []
    starts = (position_ids[0].diff() != 1).nonzero()[:, 0] + 1
    ends = [*starts.tolist(), position_ids.shape[1]]
    longest = max(end - start for start, end in zip([0, *ends], ends, strict=False))
    return [] if sliding_window and longest > sliding_window else ends


def use_for_sdpa() -> None:
    """Have models of this process that ask for `sdpa` use it. A name of its own would stand in every checkpoint's
    config.json, and nobody else could load that."""
    AttentionInterface.register("sdpa", packed_sdpa)
