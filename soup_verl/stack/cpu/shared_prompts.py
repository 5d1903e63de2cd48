"""Packed micro-batches in which a prompt stands once for the responses to it, and only response tokens get logits.

The responses of a group follow their prompt: `prompt, response 1, response 2, ...`. The positions of each go on from
the prompt's, which is how `cpu/attention.py` knows what a response continues. With 8 responses of 23 tokens to a prompt
of 70, 254 tokens go through the model instead of 744, and 184 through its head. On GPUs flash-attn reads a packed
batch, and has no such layout.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed micro-batch stand once its prompts are shared.

    Args:
        tokens: (kept,), indices into the packed micro-batch: what goes through the model.
        logits: (response tokens,), indices into `tokens`: the outputs that predict response tokens, in their order.
        targets: (response tokens,), indices into the packed micro-batch of the same outputs.
        offsets: (samples + 1,), where the samples of the micro-batch start and end.
    """

    tokens: Tensor
    logits: Tensor
    targets: Tensor
    offsets: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """(samples, tokens), nested, as verl's engine returns it, of values (response tokens,); 0 on prompt tokens."""
        whole = values.new_zeros(int(self.offsets[-1])).index_put((self.targets,), values)
        return torch.nested.nested_tensor_from_jagged(whole, self.offsets)


def share_prompts(input_ids: Any, prompt_lengths: Tensor) -> Layout:
    """Lay out a packed micro-batch; samples share a prompt where they stand next to each other and it is the same.

    Args:
        input_ids: (samples, tokens), nested: prompts with their responses.
        prompt_lengths: (samples,), each at least 1.
    """
    ids, offsets = input_ids.values(), input_ids.offsets()
    tokens, logits, targets = [], [], []
    kept = 0
    prompt, prompt_at = ids[:0], 0
    for start, end, length in zip(offsets[:-1].tolist(), offsets[1:].tolist(), prompt_lengths.tolist(), strict=True):
        own, responded = ids[start : start + length], end - start - length
        if not torch.equal(own, prompt):
            prompt, prompt_at = own, kept
            tokens.append(torch.arange(start, start + length))
            kept += length
        tokens.append(torch.arange(start + length, end))
        if responded:
            logits.append(torch.tensor([prompt_at + length - 1]))
            logits.append(torch.arange(kept, kept + responded - 1))
            targets.append(torch.arange(start + length - 1, end - 1))
        kept += responded
    nothing = torch.zeros(0, dtype=torch.long)  # where every response is empty
    return Layout(
        tokens=torch.cat(tokens),
        logits=torch.cat([nothing, *logits]),
        targets=torch.cat([nothing, *targets]),
        offsets=offsets,
    )


def is_possible(module: torch.nn.Module) -> bool:
    """Whether a transformers model sees nothing of other tokens but through this package's attention, without a window,
    can be asked for some logits only, and tells prompts apart by their tokens: those with images it does not."""
    config: Any = module.config
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config._attn_implementation == "sdpa"
        and getattr(config, "vision_config", None) is None
        and set(layers) == {"full_attention"}
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        and "logits_to_keep" in inspect.signature(module.forward).parameters
    )
