"""Preflight measures prompts with the tokens of their images, by verl's own data set and the model's own processor."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from verl.utils.tokenizer import hf_processor, hf_tokenizer

from soup_verl.launch.preflight import images, look_at_data, prompts
from tests.e2e import vision
from tests.unit.preflight_settings import by_name, run_with

pytestmark = pytest.mark.contract
TEXT = len("user\n" + "0?" + "\n" + "assistant\n") + 3 + 2
"""Tokens of a row but for those of its image, a character each: three that open or end a turn, two around the image."""
SMALL, LARGE = TEXT + 4, TEXT + 6


@pytest.fixture
def look(vision_folder, tmp_path, monkeypatch):
    """What preflight finds in rows: by name, and the prompts that it shows. qwen-vl-utils may not be installed."""
    reader = SimpleNamespace(process_vision_info=lambda messages, **_: vision.ImageRows.images_of(messages))
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", reader)
    monkeypatch.setattr(images, "find_spec", lambda name: "installed")
    path = str(vision_folder / vision.MODEL)
    tokenizer, processor = hf_tokenizer(path), hf_processor(path, trust_remote_code=True)

    def look(rows, **changes):
        rows.to_parquet(tmp_path / "rows.parquet")
        files = {f"data__{split}_files": tmp_path / "rows.parquet" for split in ("train", "val")}
        run = run_with({"data.train_batch_size": 2} | {f"data.{k}": v for k, v in changes.items()}, **files)
        data = look_at_data(run, tokenizer, "qwen2_vl", processor)
        return by_name(data.findings), data.prompts

    return look


@pytest.fixture
def rows(vision_folder):
    """Four with a small image, four with a large one."""
    return pd.read_parquet(vision_folder / vision.ROWS)


def test_the_tokens_of_images_count(look, rows):
    found, shown = look(rows, max_prompt_length=LARGE)
    assert found["train prompt length"].have == f"longest {LARGE}, median {LARGE}; 0.0% over"
    assert "of 8 of 8 rows" in found["train prompt length"].how
    assert shown[0] == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>0?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_longer_one_is_refused_where_verl_would_end_the_run(look, rows):
    refused = look(rows, max_prompt_length=SMALL)[0]["train images' tokens"]
    assert str(refused.error).startswith(
        f"data.max_prompt_length={SMALL}: expected at least {LARGE}, the tokens of train row 4 from 0 with its images."
    )


def test_what_verl_would_drop_is_estimated(look, rows):
    found, _ = look(rows, max_prompt_length=SMALL, filter_overlong_prompts=True)
    assert "50.0% over" in found["train prompt length"].have and "train images' tokens" not in found
    assert found["batches"].have.startswith("2 batches an epoch")  # four of eight rows, two a batch


def test_an_image_that_is_none_is_refused_with_its_row(look, rows):
    rows.at[5, "images"] = [{"bytes": b"no image", "path": None}]
    error = str(look(rows)[0]["train prompts"].error)
    assert error.startswith("data.train_files=") and "processor takes; row 5 from 0: cannot identify" in error


def test_few_images_are_read(look, rows, monkeypatch):
    monkeypatch.setattr(prompts, "IMAGES_READ", {"train": 3, "val": 2})
    found, _ = look(rows)
    assert "of 3 of 8 rows" in found["train prompt length"].how
    assert "of 2 of 8 rows" in found["val prompt length"].how
    for i in rows.index:
        rows.at[i, "prompt"] = [{"role": "user", "content": "<image>" * 2}]
        rows.at[i, "images"] = [*rows.at[i, "images"]] * 2
    assert "of 2 of 8 rows" in look(rows, max_prompt_length=64)[0]["train prompt length"].how  # four images


def test_an_image_that_is_none_is_dropped_where_verl_filters(look, rows):
    rows.at[1, "images"] = [{"bytes": b"no image", "path": None}]
    found, shown = look(rows, max_prompt_length=LARGE, filter_overlong_prompts=True)
    assert "12.5% over" in found["train prompt length"].have and "train prompts" not in found
    assert found["batches"].have.startswith("3 batches an epoch")  # seven of eight rows, two a batch
    assert "0?" in shown[0] and "1?" in shown[1]  # of rows 0 and 2


def test_too_few_rows_by_an_estimate_are_no_refusal(look, rows, monkeypatch):
    wanted = {"max_prompt_length": SMALL, "filter_overlong_prompts": True, "train_batch_size": 5}
    refused = look(rows, **wanted)[0]["batches"]
    assert str(refused.error).startswith("data.train_batch_size=5: expected at most the 4 training prompts")
    monkeypatch.setattr(prompts, "IMAGES_READ", {"train": 4, "val": 4})
    estimated = look(rows, **wanted)[0]["batches"]
    assert estimated.error is None and estimated.have.startswith("0 batches an epoch")
