"""What a response continues and where it ends, by the tokenizer at hand: verl's prompt builder, and stop tokens.

verl chooses its builder by `model_type` alone: a Qwen2 model gets one that demands `<|im_end|>`. The Qwen models that
were distilled from DeepSeek-R1 are of that type and have another tokenizer, without such a token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def fitting_model_type(model_type: str | None, tokenizer: Any) -> str | None:
    """The model type to choose verl's builder by: `model_type`, or None, which verl takes as its default builder, where
    the builder of that type refuses the tokenizer."""
    try:
        prompt_builder(tokenizer, model_type=model_type)
    except ValueError as refusal:
        logger.warning("verl's default prompt builder serves, not the one for model_type=%s: %s", model_type, refusal)
        return None
    return model_type


def prompt_builder(tokenizer: Any, *, model_type: str | None, template_args: Mapping[str, Any] | None = None) -> Any:
    """verl's builder of prompts; `build_initial_tokens(messages)` gives the token ids that a response continues.

    Args:
        tokenizer: one with a chat template.
        model_type: what `fitting_model_type` gave.
        template_args: `data.apply_chat_template_kwargs`.
    """
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    return create_continuous_token_builder(
        tokenizer, hf_model_type=model_type, chat_template_kwargs=dict(template_args or {})
    )


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that ends an assistant's turn in the chat template; None if none does."""
    text = _rendered(tokenizer, [_QUESTION, _ANSWER])
    after = tokenizer(text.rpartition(_ANSWER["content"])[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((i for i in after if i in special), None)


def opening_of_answer(tokenizer: Any) -> str:
    """What the chat template puts between a question and its answer when asked for a generation prompt."""
    return _rendered(tokenizer, [_QUESTION], add_generation_prompt=True).removeprefix(_rendered(tokenizer, [_QUESTION]))


def lacks_opening(tokenizer: Any) -> bool:
    """Whether the model has to write itself what opens an answer in the chat template, as no generation prompt does.
    A question that ends with the opening, such as Mistral's `[/INST]`, lacks nothing."""
    question, both = _rendered(tokenizer, [_QUESTION]), _rendered(tokenizer, [_QUESTION, _ANSWER])
    between = both.removeprefix(question).partition(_ANSWER["content"])[0]
    return not opening_of_answer(tokenizer) and bool(between.strip())


_QUESTION = {"role": "user", "content": "A question?"}
_ANSWER = {"role": "assistant", "content": "An answer."}


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **arguments: bool) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **arguments)
    except Exception:  # a template may refuse anything, the absence of a system prompt above all
        system = {"role": "system", "content": "A task."}
        return tokenizer.apply_chat_template([system, *turns], tokenize=False, **arguments)


def stop_token_ids(model: str, tokenizer: Any) -> frozenset[int]:
    """Token ids at which vLLM ends a response: the tokenizer's EOS, and those of the model's generation_config.json or,
    where there is none, of its config.json."""
    from transformers import AutoConfig, GenerationConfig

    try:
        of_model = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # there is none
        of_model = getattr(AutoConfig.from_pretrained(model), "eos_token_id", None)
    return with_eos(of_model, tokenizer)


def with_eos(of_model: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """`eos_token_id` of a configuration, which may be one, several or none, together with the tokenizer's."""
    ids = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
