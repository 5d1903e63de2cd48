"""Rows with images: taken where anything can be mixed with them, refused in one line where not."""

import pytest

from soup_verl.launch.preflight import images as preflight_images
from soup_verl.launch.preflight import look_at_data
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import by_name, run_with

OURS = {
    "reward.custom_reward_function.path": "pkg://soup_verl.reward",
    "reward.custom_reward_function.name": "compute_score",
}
IMAGE = {"bytes": b"x" * 1024, "path": None}


class SomeProcessor:
    """Of a model that takes images."""


SOME = SomeProcessor()


class Qwen2VLProcessor:
    """verl has it by its name."""


def rows(count=16, text="<image>2+2=", images=(IMAGE,)):
    return [files.row(text, i=i) | {"images": list(images)} for i in range(count)]


@pytest.fixture
def look(tmp_path, monkeypatch):
    """What preflight finds in such rows: the refusals, and all of it by name."""
    monkeypatch.setattr(preflight_images, "find_spec", lambda name: "installed")

    def look(found, changes=None, processor=SOME, name="d.parquet"):
        path = files.write_rows(tmp_path / name, found)
        run = run_with(OURS | (changes or {}), data__train_files=path, data__val_files=path)
        data = look_at_data(run, files.byte_tokenizer(), processor=processor)
        return [str(f.error) for f in data.findings if f.verdict == "no"], by_name(data.findings)

    monkeypatch.setattr("soup_verl.launch.preflight.prompts.prompt_builder", _without_processor)
    monkeypatch.setattr("soup_verl.launch.preflight.prompts.images_can_be_read", lambda processor: False)
    return look


def _without_processor(tokenizer, *, processor, **how):
    """verl's builder of text: the rows' text is what is measured (with images:
    tests/contract/test_image_prompts_contract.py)."""
    from soup_verl.stack.prompt_builder import prompt_builder

    return prompt_builder(tokenizer, **how)


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
def test_rows_with_images_are_taken(look, name):
    images = (IMAGE,) if name == "d.parquet" else ("a.png",)
    assert look(rows(images=images), name=name)[0] == []


def test_how_much_waits_in_host_memory_is_said(look):
    """16 prompts a step; with lookahead those of the step t + age."""
    for settings, ahead in (({"soup.lookahead.age": 3}, 3), ({"soup.source": "replay"}, 1)):
        found = look(rows(), settings)[1]["images read ahead"]
        assert f": {ahead} x 16 prompts of 1 KiB" in found.have and found.verdict == "ok"


def test_without_mixing_images_are_verls_own(look):
    wrong = rows(text="2+2=")
    assert look(wrong, {"soup.mixed_fraction": 0}, processor=None)[0] == []


def test_images_and_their_places_are_as_many(look):
    found = [
        *rows(3),
        *rows(1, text="2+2="),
        *rows(2),
        *rows(1, images=[]),
        *rows(9, text="<image><image>", images=[IMAGE] * 2),
    ]
    (refused,) = look(found)[0]
    assert refused == (
        "data.image_key='images': expected as many images as the prompt has <image>; row 3 from 0 has 1 and 0, so 2 of "
        "16 rows."
    )


@pytest.mark.parametrize(
    ("changes", "processor", "installed", "told"),
    [
        ({}, None, True, "actor_rollout_ref.model.path=None: expected a model whose processor verl can load"),
        ({}, SOME, False, "data.image_key='images': expected the package qwen-vl-utils"),
        (
            {"actor_rollout_ref.rollout.engine_kwargs.vllm.model_impl": "transformers"},
            SOME,
            True,
            "actor_rollout_ref.rollout.engine_kwargs.vllm.model_impl='transformers': expected vLLM's own",
        ),
    ],
)
def test_what_cannot_do_with_images_is_refused(look, monkeypatch, changes, processor, installed, told):
    monkeypatch.setattr(preflight_images, "find_spec", lambda name: "installed" if installed else None)
    (refused,) = look(rows(), changes, processor)[0]
    assert refused.startswith(told)
    text = [files.row(i=i) for i in range(16)]
    assert look(text, changes, processor)[0] == []


def test_a_qwen2_vl_has_an_image_in_every_row(look):
    found = [*rows(13), *rows(3, text="2+2=", images=[])]
    (refused,) = look(found, processor=Qwen2VLProcessor())[0]
    assert refused.startswith(
        "data.image_key='images': expected an image in every row; 3 of 16 have none. verl's forward"
    )
    assert look(rows(), processor=Qwen2VLProcessor())[0] == [] and look(found)[0] == []
