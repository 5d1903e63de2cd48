"""The images of prompts: what tells them apart, how they wait for their turn, and what the actor reads of them.

verl's data set opens an encoded image and leaves both in the message: `{"type": "image", "bytes": ..., "image": PIL}`.
Whoever pickles the PIL image or reads its pixels makes it hold them, often ten times as large, for as long as the
prompt waits; prompts that are read ahead wait for many steps. So an image is known by its encoded bytes, and is sent
opened anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

CARRIED = ("text", "image")
"""Kinds of parts of a message that prefixes are sampled with."""


def prompt_key(raw_prompt: Any) -> str:
    """A fingerprint of a prompt's chat messages, images by their content: the same in every process and run. Plans,
    gates and groups of prefixes know a prompt by it; stored responses, whose tokens must fit, by `rollout.token_key`.
    """
    return _hash([_with_parts(message, _encoded) for message in raw_prompt])


def images_key(raw_prompt: Any) -> str:
    """The same of its images alone, in their order, of which token ids say no more than their sizes; empty for text."""
    images = [_encoded(part) for part in _parts(raw_prompt) if part.get("type") == "image"]
    return _hash(images) if images else ""


def check_kinds(raw_prompt: Any) -> None:
    """Raises ValueError, with the kind, where a prompt holds more than text and images."""
    for part in _parts(raw_prompt):
        if (kind := part.get("type")) not in CARRIED:
            raise ValueError(f"a prompt holds {kind}: expected text and images. Set soup.mixed_fraction=0 for others.")


def to_send(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the data set with its encoded images opened anew: sending it leaves those of `row` undecoded."""
    return dict(row) | {"raw_prompt": [_with_parts(message, _opened) for message in row["raw_prompt"]]}


@dataclass(frozen=True)
class ActorPrompt:
    """What the actor's forward pass reads of a prompt.

    Args:
        token_ids: with as many placeholders as its images have tokens.
        position_ids: (tokens,), or (4, tokens) where the model has positions in time, height and width (M-RoPE), in the
            last three rows.
        multi_modal_inputs: as the model's processor made them, such as `pixel_values`; empty for a prompt of text.
    """

    token_ids: list[int]
    position_ids: Tensor
    multi_modal_inputs: dict[str, Tensor]

    @classmethod
    def of_text(cls, token_ids: Sequence[int]) -> ActorPrompt:
        """For a model of text."""
        return cls(list(token_ids), torch.arange(len(token_ids)), {})

    def positions_with(self, tokens: int) -> Tensor:
        """(tokens,) or (4, tokens) of the prompt and `tokens` of text after it: text counts on by one in every row."""
        last = self.position_ids[..., -1:]
        return torch.cat([self.position_ids, last + torch.arange(1, tokens + 1)], dim=-1)


def _parts(raw_prompt: Any) -> Iterator[Mapping[str, Any]]:
    return (part for message in raw_prompt if _has_parts(message) for part in message["content"])


def _with_parts(message: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    return dict(message) | ({"content": list(map(change, message["content"]))} if _has_parts(message) else {})


def _has_parts(message: Mapping[str, Any]) -> bool:
    return not isinstance(message.get("content"), (str, type(None)))


def _is_encoded(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "image" and isinstance(part.get("bytes"), bytes)


def _encoded(part: Mapping[str, Any]) -> dict[str, Any]:
    """Without the PIL image where its bytes are there."""
    return {name: value for name, value in part.items() if name != "image" or not _is_encoded(part)}


def _opened(part: Mapping[str, Any]) -> Mapping[str, Any]:
    from PIL import Image

    return dict(part) | {"image": Image.open(BytesIO(part["bytes"]))} if _is_encoded(part) else part


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_told_apart).encode()).hexdigest()[:16]


def _told_apart(value: Any) -> list[str]:
    """What tells an image, an array or bytes from another; its text may be an address in memory."""
    content = value if isinstance(value, bytes) else value.tobytes()  # of PIL and numpy alike
    form = (getattr(value, name, None) for name in ("mode", "size", "dtype", "shape"))
    return [*map(str, form), hashlib.sha256(content).hexdigest()]
