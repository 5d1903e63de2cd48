"""Prompts with images: engine and trainer saw the same ones, for prefix and continuation alike. transformers itself, on
the image in the data set, is the judge. Learning rate 0, so that all policies are one."""

import pytest
import torch

from tests.e2e import vision

RUNS = ("images_lookahead", "images_snapshot", "images_replay")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.runs(name)) for name in RUNS])
def finished(request, run):
    found = run(request.param)
    assert found.code == 0, found.output[-3000:]
    return found


@pytest.fixture
def rows(finished):
    found = finished.rows(2) + finished.rows(3)
    assert sum(bool(row["prefix_mask"].any()) for row in found) > 10
    return found


@pytest.fixture
def log_probs(finished):
    """(response length,) of a row's response in nats, by transformers' own model, after an image of the data."""
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = finished.folder.parent / "assets" / vision.MODEL
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def of(row, index):
        ids = torch.cat([row["prompts"], row["responses"]])[None]
        inputs = pixels(images=[vision.image(index)], return_tensors="pt")
        with torch.no_grad():
            logits = model(
                input_ids=ids, mm_token_type_ids=(ids == model.config.image_token_id).int(), **inputs
            ).logits[0]
        return logits[len(row["prompts"]) - 1 : -1].log_softmax(-1).gather(1, row["responses"][:, None])[:, 0]

    return of


def test_engine_and_trainer_agree_on_every_token(rows):
    for row in rows:
        torch.testing.assert_close(row["rollout_log_probs"], row["recomputed_log_probs"], atol=1e-4, rtol=0)


def test_every_token_was_sampled_after_the_rows_own_image(rows, log_probs):
    for row in rows:
        own, other = (log_probs(row, index) for index in (row["index"], row["index"] ^ 1))  # of the same text
        torch.testing.assert_close(row["rollout_log_probs"], own, atol=1e-4, rtol=0)
        prefix = row["prefix_mask"].bool()
        for part in (prefix, ~prefix):
            assert not part.any() or (own - other)[part].abs().max() > 1e-3, "another image would not be seen"


@pytest.mark.runs("images_replay")
def test_replayed_prefixes_are_of_responses_to_the_same_image(run):
    finished = run("images_replay")
    earlier = {}
    for step in (1, 2, 3):
        for row in finished.rows(step):
            prefix = row["responses"][row["prefix_mask"].bool()].tolist()
            if prefix:
                assert any(said[: len(prefix)] == prefix for said in earlier[row["index"]])
        for row in finished.rows(step):
            if not row["prefix_mask"].any():
                earlier.setdefault(row["index"], []).append(row["responses"].tolist())
