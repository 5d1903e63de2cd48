"""Prompts with images as verl's data set makes them: the encoded bytes, and beside them an image that nobody read."""

import copy
import io

import pytest
import torch
from PIL import Image

from soup_verl.stack.images import ActorPrompt, check_kinds, images_key, prompt_key, to_send

CHAT = [{"role": "user", "content": "1+1?"}]


def test_prompt_key_is_the_same_in_every_process_and_for_any_order_of_keys():
    assert prompt_key(CHAT) == "f9321022f2fcaa8f"
    assert prompt_key([{"content": "1+1?", "role": "user"}]) == prompt_key(CHAT)


@pytest.mark.parametrize(
    "other",
    [[{"role": "user", "content": "1+2?"}], [{"role": "system", "content": "1+1?"}], CHAT * 2, []],
)
def test_prompt_key_tells_prompts_apart(other):
    assert prompt_key(other) != prompt_key(CHAT)


def of_parts(*images, text="1+1?"):
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def decoded(color, size=(2, 2), mode="RGB"):
    return {"type": "image", "image": Image.new(mode, size, color)}


def encoded(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return {"type": "image", "bytes": file.getvalue(), "path": None, "image": Image.open(io.BytesIO(file.getvalue()))}


def is_read(raw_prompt):
    """Whether somebody had the pixels of the first image, which it holds from then on."""
    return not raw_prompt[0]["content"][0]["image"].tile


@pytest.mark.parametrize("key", [prompt_key, images_key])
def test_an_image_is_known_by_its_content(key):
    assert key(of_parts(decoded("red"))) == key(of_parts(decoded("red")))
    others = [decoded("blue"), decoded("red", (4, 1)), decoded(0, mode="L"), encoded("red"), encoded("blue")]
    assert len({key(of_parts(part)) for part in (decoded("red"), *others)} | {key(CHAT)}) == 7
    pairs = [(encoded("red"), encoded("blue")), (encoded("blue"), encoded("red"))]
    assert len({key(of_parts(*pair)) for pair in pairs}) == 2
    waiting = of_parts(encoded("red"))
    assert key(waiting) == key(of_parts(encoded("red"))) and not is_read(waiting)


def test_the_images_key_is_of_images_alone():
    assert images_key(CHAT) == images_key(of_parts()) == ""
    assert images_key(of_parts(encoded("red"))) == images_key(of_parts(encoded("red"), text="2+2?"))


def test_what_is_sent_leaves_an_encoded_image_as_it_waits():
    row = {"raw_prompt": of_parts(encoded("red")), "index": 7}
    arrived = copy.deepcopy(to_send(row))  # reads an image as pickling does, for Ray
    assert arrived["index"] == 7 and not is_read(row["raw_prompt"])
    assert arrived["raw_prompt"][0]["content"][0]["image"].getpixel((5, 5)) == (255, 0, 0)
    assert prompt_key(arrived["raw_prompt"]) == prompt_key(row["raw_prompt"])
    copy.deepcopy(row)
    assert is_read(row["raw_prompt"]), "otherwise there is nothing to be careful of"
    assert to_send({"raw_prompt": CHAT, "index": 7}) == {"raw_prompt": CHAT, "index": 7}


def test_parts_that_prefixes_are_not_sampled_with_are_refused_by_their_kind():
    check_kinds(CHAT)
    check_kinds(of_parts(encoded("red")))
    for kind in ("video", "audio"):
        with pytest.raises(ValueError, match=f"^a prompt holds {kind}: expected text and images. Set soup"):
            check_kinds(of_parts({"type": kind, kind: "a.mp4"}))


def test_text_after_a_prompt_counts_on_in_every_row_of_its_positions():
    prompt = ActorPrompt.of_text([5, 6, 7])
    assert prompt.positions_with(2).tolist() == [0, 1, 2, 3, 4]
    # Two tokens of text, an image of two by two tokens, one of text: of all tokens, in time, in height, in width.
    rows = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]]
    prompt = ActorPrompt([5, 6, 9, 9, 9, 9, 7], torch.tensor(rows), {})
    assert prompt.positions_with(2)[:, 7:].tolist() == [[7, 8], [5, 6], [5, 6], [5, 6]]
    assert prompt.positions_with(0).tolist() == rows
