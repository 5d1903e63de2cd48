"""A model's tokenizer: where a turn begins and ends by its chat template, the tokens at which a response stops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def load_tokenizer(model: str, what: str, error: type[ValueError], *, needs_template: bool = True) -> Any:
    """The tokenizer of a folder, or of a name on the hub.

    Raises:
        error: it cannot be loaded, or has no chat template where it `needs_template`; one line that begins with `what`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as cause:
        remedy = "Give a folder with a tokenizer's files, or a model's name where the hub can be reached."
        raise error(f"{what}: its tokenizer cannot be loaded ({why_not_loaded(model, cause)}). {remedy}") from None
    if needs_template and not tokenizer.chat_template:
        remedy = "Give the model that is trained, with its chat_template."
        raise error(f"{what}: its tokenizer has no chat template, which prompts are made by. {remedy}")
    return tokenizer


def why_not_loaded(model: str, cause: Exception) -> str:
    """The cause in one line. Of a path that is not there the hub's libraries say how a name on the hub looks."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        if not Path(model).expanduser().exists():
            return "no such folder, and not a name that the hub could have"
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]


def is_text_message(message: Any) -> bool:
    """A chat message of text alone: a mapping with `role` and `content`."""
    return isinstance(message, Mapping) and all(isinstance(message.get(part), str) for part in ("role", "content"))


def has_parts(prompt: Any) -> bool:
    """Whether a message of the prompt is a list of parts, as those of models that also take images are."""
    return isinstance(prompt, list) and any(
        isinstance(m, Mapping) and isinstance(m.get("content"), list) for m in prompt
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
