"""verl's own agent loop, prompt builder and processor on prompts with images, under our worker with a fake engine."""

import asyncio
import inspect
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from verl.models.transformers import qwen2_vl
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.rollout.replica import TokenOutput

from soup_verl.launch.preflight import look_at_model
from soup_verl.launch.preflight.run_settings import MODEL
from soup_verl.method.history import GroupPrefixes
from soup_verl.method.history.prefixes import prompt_hash
from soup_verl.method.mixing import PrefixRequest
from soup_verl.stack import rollout
from soup_verl.stack.images import images_key
from soup_verl.stack.policy_engine import _actor_fields
from soup_verl.stack.session import FACTS
from tests.e2e import vision
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import by_name, run_with

pytestmark = pytest.mark.contract
RED, GREEN = (255, 0, 0), (0, 128, 0)


class Engine:
    """Says three tokens, or as many as it is asked for."""

    def __init__(self):
        self.requests = []

    async def generate(self, request_id, **request):
        self.requests.append(request)
        versions = dict.fromkeys(("global_steps", "min_global_steps", "max_global_steps"), 1)
        ids = [20, 21, 22][: request["sampling_params"].get("max_tokens", 3)]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="x", extra_fields=versions)


@pytest.fixture
def worker(vision_folder, monkeypatch):
    """A worker that is no Ray actor; what it stores, verl's fields, is in `stored`."""
    stored = []

    async def put(keys, fields, tags, partition_id):
        stored.append(fields)

    monkeypatch.setattr(inspect.getmodule(rollout._WorkerTQ), "tq", SimpleNamespace(async_kv_batch_put=put))
    monkeypatch.setattr(rollout.tq, "init", lambda: None)
    config = files.configure(
        platform="cpu",
        actor_rollout_ref__model__path=vision_folder / vision.MODEL,
        actor_rollout_ref__model__trust_remote_code=True,
        data__max_prompt_length=64,
        data__max_response_length=16,
        data__custom_cls__path=vision.__file__,
        data__custom_cls__name="ImageRows",
    )
    worker = rollout.SoupAgentLoopWorker(config, None)
    worker.llm_client.client = worker.engine = Engine()
    worker.stored = stored
    return worker


@pytest.fixture
def rows(vision_folder, worker):
    """The first two, whose prompts differ in their images alone."""
    path = str(vision_folder / vision.ROWS)
    data = vision.ImageRows([path], worker.tokenizer, worker.config.data, processor=worker.processor)
    return [data[i] for i in range(2)]


def session(worker, row, prefix=None):
    """What verl stores of a session."""
    trajectory = {"step": 6, "sample_index": 0, "rollout_n": 0, "validate": False}
    fields = {**row, "uid": "u", "session_id": 0, "global_steps": 6, "agent_name": "soup_agent"}
    fields[rollout.IMAGES] = images_key(row["raw_prompt"])
    if prefix is not None:
        fields[rollout.GROUP_PREFIXES] = GroupPrefixes("key", {0: prefix})
    asyncio.run(worker._run_agent_loop({"temperature": 1.0, "logprobs": True}, trajectory, **fields))
    return worker.stored.pop()[0]


def pixels(request):
    return [image.getpixel((0, 0)) for image in request["image_data"]]


def test_a_prefix_and_its_continuation_are_sampled_with_the_prompts_images(worker, rows):
    groups = asyncio.run(worker.sample_share(6, rows, [[PrefixRequest(0, 2)]] * 2, 0, [{}] * 2, False))
    asked = {pixels(request)[0]: request["prompt_ids"] for request in worker.engine.requests}
    assert asked.keys() == {RED, GREEN} and asked[RED] == asked[GREEN]
    stored = session(worker, rows[1], groups[1][0])
    continuation = worker.engine.requests[2]
    assert continuation["prompt_ids"] == [*asked[GREEN], 20, 21] and pixels(continuation) == [GREEN]
    assert stored["responses"].tolist() == [20, 21, 20, 21, 22]
    assert stored["prefix_mask"].tolist() == [1, 1, 0, 0, 0]
    assert stored["extra_fields"][FACTS]["images"] == images_key(rows[1]["raw_prompt"])


def test_stored_responses_are_found_by_the_images_too(worker, rows):
    ids = asyncio.run(worker.prompt_ids(6, rows))
    assert ids[0] == ids[1]
    keys = [rollout.token_key(7, i, images_key(row["raw_prompt"])) for i, row in zip(ids, rows, strict=True)]
    assert keys[0] != keys[1] and {key.rpartition(":")[2] for key in keys} == {prompt_hash(ids[0])}


FIELDS = ("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask")


def test_the_actor_scores_a_prefix_with_what_verl_stores_of_such_a_response(worker, rows):
    stored = session(worker, rows[1])
    (prompt,) = asyncio.run(worker.actor_prompts(6, rows[1:]))
    ours = _actor_fields(prompt, stored["responses"].tolist())
    for name in FIELDS:
        torch.testing.assert_close(ours[name], stored[name], rtol=0, atol=0)
    assert (
        ours["position_ids"].shape == (4, len(ours["input_ids"]))
        and ours["position_ids"][1].max() < len(ours["input_ids"]) - 1
    ), "positions in time count an image as few tokens"
    inputs = stored["multi_modal_inputs"]
    assert ours["multi_modal_inputs"].keys() == inputs.keys() >= {"pixel_values", "image_grid_thw"}
    for name, value in inputs.items():
        torch.testing.assert_close(ours["multi_modal_inputs"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("rope", ["in three dimensions", "in one"])
def test_the_actor_scores_a_prefix_of_text_as_verl_stores_it_too(worker, rows, monkeypatch, rope):
    """What a processor makes for each token, of text all zeros, verl pads with zeros: where the model has no M-RoPE (as
    Gemma4) it is there, and need not be as long as the sequence."""
    if rope == "in one":
        monkeypatch.delattr(worker.processor, "get_rope_index")
    row = rows[0] | {"raw_prompt": [{"role": "user", "content": "3?"}]}
    stored = session(worker, row)
    (prompt,) = asyncio.run(worker.actor_prompts(6, [row]))
    ours = _actor_fields(prompt, stored["responses"].tolist())
    for name in FIELDS:
        torch.testing.assert_close(ours[name], stored[name], rtol=0, atol=0)
    assert ours["position_ids"].dim() == (2 if rope == "in three dimensions" else 1)
    both = extract_multi_modal_inputs([ours["multi_modal_inputs"], stored["multi_modal_inputs"]])
    assert both.keys() == (set() if rope == "in three dimensions" else {"mm_token_type_ids"})
    assert all(len(values) == 2 and not values.any() for values in both.values())


def test_preflight_reads_such_a_model_and_says_why_a_processor_is_missing(vision_folder):
    settings = {f"{MODEL}.trust_remote_code": True, "trainer.device": "cpu", f"{MODEL}.use_remove_padding": True}
    given = {"actor_rollout_ref__model__path": vision_folder / vision.MODEL}
    model = look_at_model(run_with(settings, **given))
    found = by_name(model.findings)
    assert model.shape.params > 1e5 and model.model_type == "qwen2_vl" and found["processor"].have == "Qwen2VLProcessor"
    refused = [str(finding.error) for finding in model.findings if finding.error is not None]
    assert len(refused) == 1 and refused[0].startswith(f"{MODEL}.use_remove_padding=True: expected false on a CPU for")
    plain = look_at_model(run_with(**given))
    if find_spec("torchvision") is None:
        assert plain.processor is None and "orchvision" in by_name(plain.findings)["processor"].have


def test_verls_forward_pass_of_a_qwen2_vl_needs_an_image_in_every_micro_batch(vision_folder):
    """Why preflight refuses rows without one. Where this no longer fails, that refusal can go."""
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(vision_folder / vision.MODEL)
    with pytest.raises(AttributeError, match="mean"):
        qwen2_vl._get_input_embeds(model.model, torch.tensor([[20, 21]]))


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is there")
def test_verls_packed_attention_of_a_qwen2_vl_needs_flash_attn(vision_folder):
    """Why preflight refuses `use_remove_padding` of it on a CPU. Where this no longer fails, that refusal can go."""
    from transformers import Qwen2VLForConditionalGeneration

    text = Qwen2VLForConditionalGeneration.from_pretrained(vision_folder / vision.MODEL).model.language_model
    hidden, places = torch.zeros(1, 2, 64), torch.arange(2).expand(3, 1, 2)
    with pytest.raises(NameError, match="_flash"):
        qwen2_vl.qwen2_vl_attn_forward(
            text.layers[0].self_attn,
            hidden,
            position_ids=places[0],
            position_embeddings=text.rotary_emb(hidden, places),
        )
