"""Rows with images: what mixing takes of them, and what verl needs to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from soup_verl.launch.preflight.files import Split
from soup_verl.launch.preflight.report import Finding, judged, refused
from soup_verl.launch.preflight.run_settings import MODEL, ROLLOUT, RunSettings
from soup_verl.tasks.chat_template import has_parts

TOPIC = "data"
NEED_AN_IMAGE = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
"""Processors of models of which verl's forward pass with transformers 5 fails on a micro-batch without an image."""
PLACEHOLDER = "<image>"


def media_findings(run: RunSettings, found: Split, processor: Any) -> Iterator[Finding]:
    """Of the training rows.

    Args:
        processor: verl's, of a model that takes images.
    """
    column, images = run.get("data.image_key", "images"), counts(run, found, "image")
    if run.soup.mixing:
        yield from _not_carried(run, found)
    if any(images) and run.soup.planned:
        yield from _unreadable(run, processor)
        yield from _misplaced(run, found, column, images)
        yield _read_ahead(run, found, column)
    in_parts = _of_parts(found, run.get("data.prompt_key", "prompt"))  # which may have images of their own
    if type(processor).__name__ in NEED_AN_IMAGE and 0 in images and not in_parts:
        expected = f"an image in every row; {images.count(0)} of {found.rows} have none"
        remedy = "verl's forward pass of this model fails on a micro-batch without an image: leave these rows out."
        yield refused(TOPIC, "train rows without images", "data.image_key", column, expected, remedy)


def counts(run: RunSettings, found: Split, kind: str) -> list[int]:
    """How many images, videos or audio tracks (`kind`: image, video, audio) each row has, without reading them."""
    column = run.get(f"data.{kind}_key", f"{kind}s")
    return _counts(found, column) if column in found.columns else [0] * found.rows


def images_can_be_read(processor: Any) -> bool:
    """Whether verl's data set can read them here, for this processor of its own."""
    return processor is not None and find_spec("qwen_vl_utils") is not None


def places(prompt: Any) -> int:
    """How many images the text of a prompt has places for."""
    messages = prompt if isinstance(prompt, list) else []
    texts = (m.get("content") for m in messages if isinstance(m, Mapping))
    return sum(text.count(PLACEHOLDER) for text in texts if isinstance(text, str))


def _not_carried(run: RunSettings, found: Split) -> Iterator[Finding]:
    """Rows of more than text and images, with which nothing is mixed, and ways of mixing that are for text alone."""
    carries = "Prefixes are sampled with text and images alone"
    untried = "Nothing but text has been tried with soup.source=inflight"
    for name, default, rows, what in (
        *([("image_key", "images", _with_some, "any")] if run.soup.interrupted else []),
        ("video_key", "videos", _with_some, "any"),
        ("audio_key", "audios", _with_some, "any"),
        ("prompt_key", "prompt", _of_parts, f"messages that are lists of parts, instead of text with {PLACEHOLDER}"),
    ):
        column = run.get(f"data.{name}", default)
        if column in found.columns and (some := rows(found, column)):
            expected = (
                f"a column without {what} with soup.mixed_fraction above 0; {some} of {found.rows} rows have some"
            )
            why = untried if run.soup.interrupted else carries
            remedy = f"{why}: set soup.mixed_fraction=0, or leave these rows out."
            yield refused(TOPIC, f"train {default}", f"data.{name}", column, expected, remedy)


def _unreadable(run: RunSettings, processor: Any) -> Iterator[Finding]:
    """What of the run cannot do with images."""
    if processor is None:
        expected = "a model whose processor verl can load: rows have images"
        yield refused(TOPIC, "processor of images", f"{MODEL}.path", run.get(f"{MODEL}.path"), expected)
    if find_spec("qwen_vl_utils") is None:
        expected = "the package qwen-vl-utils, by which verl's data set reads images"
        remedy = "Install it with torchvision, or give a data.custom_cls that reads them itself."
        yield refused(
            TOPIC, "reader of images", "data.image_key", run.get("data.image_key", "images"), expected, remedy
        )
    key = f"{ROLLOUT}.engine_kwargs.vllm.model_impl"
    if (implementation := run.get(key)) == "transformers":
        expected = (
            "vLLM's own implementation of the model: the other one makes text of a prompt with images, and tokens of it"
        )
        yield refused(TOPIC, "engine with images", key, implementation, expected, "A prefix would not be the same one.")


def _misplaced(run: RunSettings, found: Split, column: str, images: list[int]) -> Iterator[Finding]:
    """Rows with more images than places for them, or fewer: verl stops where it reads the first."""
    prompts = found.table.select_columns([run.get("data.prompt_key", "prompt")]).with_format("arrow")
    wanted = [places(prompt) for prompt in prompts[run.get("data.prompt_key", "prompt")].to_pylist()]
    if wrong := [i for i, (has, wants) in enumerate(zip(images, wanted, strict=True)) if has != wants]:
        first = wrong[0]
        expected = (
            f"as many images as the prompt has {PLACEHOLDER}; row {first} from 0 has {images[first]} and "
            f"{wanted[first]}, so {len(wrong)} of {found.rows} rows"
        )
        yield refused(TOPIC, "train images", "data.image_key", column, expected)


def _read_ahead(run: RunSettings, found: Split, column: str) -> Finding:
    """Prompts wait encoded, as they are in the file, from when their prefixes are asked for until their turn."""
    ahead = max(run.soup.lookahead.ages) if run.soup.source == "lookahead" else 1
    each = found.table.with_format("arrow")[column].nbytes / found.rows
    have = f"{ahead * run.prompts * each / 2**30:.2f} GiB: {ahead} x {run.prompts} prompts of {each / 2**10:.0f} KiB"
    how = "in the trainer's process, nothing of it in checkpoints"
    return judged(
        TOPIC, "images read ahead", True, need="host memory for the images of prompts to come", have=have, how=how
    )


def _counts(found: Split, column: str) -> list[int]:
    """How many a row has, without reading them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = found.table.with_format("arrow")[column]
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return pc.fill_null(pc.list_value_length(values), 0).to_pylist()
    return [int(bool(value)) for value in values.to_pylist()]


def _with_some(found: Split, column: str) -> int:
    return sum(map(bool, _counts(found, column)))


def _of_parts(found: Split, column: str) -> int:
    """How many prompts have messages that are lists of parts; the column's type tells where all are text."""
    message = getattr(found.table.features[column], "feature", None)
    of_text = isinstance(message, Mapping) and getattr(message.get("content"), "dtype", "") in (
        "string",
        "large_string",
    )
    return 0 if of_text else sum(map(has_parts, found.table[column]))
