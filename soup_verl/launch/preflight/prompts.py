"""Prompts as the model will see them: token ids by verl's own builder, images read by verl's own data set."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from soup_verl.launch.preflight.files import Split
from soup_verl.launch.preflight.images import counts, images_can_be_read, places
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.method.checks import ConfigError
from soup_verl.stack.prompt_builder import prompt_builder
from soup_verl.tasks.chat_template import has_parts, is_text_message

IMAGES_READ = {"train": 100, "val": 25}
"""Of a split. Where any of its sampled rows has an image, rows are drawn from these at random until so many images are
read: Qwen2-VL's processor takes 60 ms for one of 1024 x 1024 pixels."""


@dataclass(frozen=True)
class SampledPrompt:
    """What a response continues.

    Args:
        row: its number in the split.
        token_ids: those of its images with it, unless these cannot be read here.
        images: how many it has.
    """

    row: int
    token_ids: list[int]
    images: int = 0


def builder_of(run: RunSettings, tokenizer: Any, model_type: str | None, processor: Any) -> Any:
    """verl's builder of the run's prompts."""
    return prompt_builder(
        tokenizer,
        model_type=model_type,
        template_args=run.get("data.apply_chat_template_kwargs", {}),
        processor=processor,
        processor_args=run.get("data.mm_processor_kwargs", {}),
    )


def sampled_prompts(
    run: RunSettings, split: str, found: Split, builder: Any, processor: Any = None
) -> Iterator[SampledPrompt]:
    """Of the rows that are looked at, but for those whose messages are lists of parts.

    Args:
        builder: what `builder_of` gave.
        processor: verl's, of a model that takes images.

    Raises:
        ConfigError: a prompt is no list of messages of text, or template or processor refuse it; names the row.
    """
    images = counts(run, found, "image")
    others = [sum(row) for row in zip(counts(run, found, "video"), counts(run, found, "audio"), strict=True)]
    prompts = {row: prompt for row, prompt in found.prompts.items() if not has_parts(prompt)}
    rows = None
    if images_can_be_read(processor) and any(images[row] for row in prompts):
        rows = _rows_of_verl(run, found, builder.tokenizer, processor)
        prompts = {row: prompts[row] for row in _drawn(list(prompts), images, IMAGES_READ[split])}
    for row, prompt in prompts.items():
        if rows is not None and images[row] and images[row] == places(prompt) and not others[row]:
            ids = _token_ids_with_images(builder, run, split, rows, row)
        else:
            ids = token_ids(builder, run, split, row, prompt)
        yield SampledPrompt(row, ids, images[row])


def _drawn(rows: list[int], images: Sequence[int], most: int) -> list[int]:
    """Rows at random, in their order, until they have as many images as that."""
    drawn: list[int] = []
    for row in random.Random(0).sample(rows, len(rows)):
        if sum(images[i] for i in drawn) >= most:
            break
        drawn.append(row)
    return sorted(drawn)


def token_ids(builder: Any, run: RunSettings, split: str, row: int, prompt: Any) -> list[int]:
    """The tokens that a response to `prompt`, of text, continues.

    Raises:
        ConfigError: the prompt is no list of text messages, or the template refuses it; names the row.
    """
    key = f"data.{split}_files"
    if not (isinstance(prompt, list) and prompt and all(is_text_message(m) for m in prompt)):
        expected = f"a list of messages with role and text in every row, not {str(prompt)[:80]!r} in row {row}"
        raise ConfigError(key, run.get(key), expected)
    try:
        return builder.build_initial_tokens(prompt)
    except Exception as error:  # a template may refuse anything
        raise ConfigError(key, run.get(key), f"prompts that the chat template takes; row {row}: {error}") from error


def _token_ids_with_images(builder: Any, run: RunSettings, split: str, rows: Any, row: int) -> list[int]:
    """As verl's agent loops make them."""
    try:
        messages = rows[row]["raw_prompt"]
        images, _, _ = rows._process_multi_modal_info(messages, rows.image_patch_size, rows.config)
        return builder.build_initial_tokens(messages, images=images)
    except Exception as error:  # an image may be no image, or too small: processors say so as they like
        if run.get("data.filter_overlong_prompts", False):
            return [0] * (run.get("data.max_prompt_length", 0) + 1)  # verl, too, counts it as too long, and drops it
        key, said = f"data.{split}_files", " ".join(str(error).split())[:200]
        expected = f"images that the model's processor takes; row {row} from 0: {said or type(error).__name__}"
        raise ConfigError(key, run.get(key), expected) from error


def _rows_of_verl(run: RunSettings, found: Split, tokenizer: Any, processor: Any) -> Any:
    """verl's data set of rows that have been read."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    class Rows(RLHFDataset):
        def _download(self, use_origin_parquet: bool = False) -> None:
            """They are here."""

        def _read_files_and_tokenize(self) -> None:
            self.dataframe = found.table

    without_tools = {"tool_config_path": None, "function_tool_path": None}  # verl's data set would build them
    settings = OmegaConf.create(run.get("data", {}) | without_tools)
    return Rows([], tokenizer, settings, processor=processor)


def shown(prompt: SampledPrompt, builder: Any, processor: Any) -> str:
    """As text, with one placeholder for each image."""
    from verl.utils.tokenizer.tokenizer import get_processor_token_id

    image = get_processor_token_id(processor, "image")
    ids = [i for token, run in itertools.groupby(prompt.token_ids) for i in ([token] if token == image else run)]
    return builder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
