"""What a response continues, by the tokenizer at hand: verl's prompt builder, of the type that fits.

verl chooses its builder by `model_type` alone: a Qwen2 model gets one that demands `<|im_end|>`. The Qwen models that
were distilled from DeepSeek-R1 are of that type and have another tokenizer, without such a token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def fitting_model_type(model_type: str | None, tokenizer: Any, processor: Any = None) -> str | None:
    """The model type to choose verl's builder by: `model_type`, or None, which verl takes as its default builder, where
    the builder of that type refuses the tokenizer."""
    try:
        prompt_builder(tokenizer, model_type=model_type, processor=processor)
    except ValueError as refusal:
        logger.warning("verl's default prompt builder serves, not the one for model_type=%s: %s", model_type, refusal)
        return None
    return model_type


def prompt_builder(
    tokenizer: Any,
    *,
    model_type: str | None,
    template_args: Mapping[str, Any] | None = None,
    processor: Any = None,
    processor_args: Mapping[str, Any] | None = None,
) -> Any:
    """verl's builder of prompts; `build_initial_tokens(messages)` gives the token ids that a response continues.

    Args:
        tokenizer: one with a chat template.
        model_type: what `fitting_model_type` gave.
        template_args: `data.apply_chat_template_kwargs`.
        processor: verl's, of a model that takes images.
        processor_args: `data.mm_processor_kwargs`.
    """
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    return create_continuous_token_builder(
        tokenizer,
        hf_model_type=model_type,
        chat_template_kwargs=dict(template_args or {}),
        mm_processor_kwargs=dict(processor_args or {}),
        processor=processor,
    )
