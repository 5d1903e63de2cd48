"""Our FSDP worker on rows with images and without: what it scores and unlearns is transformers' own, packed or not."""

from pathlib import Path

import pytest
import torch
from verl.utils import tensordict_utils as tu

from soup_verl.method import core_algos
from soup_verl.method.sections import ForgetConfig
from soup_verl.stack.actor_worker import FORGET
from soup_verl.stack.images import ActorPrompt
from soup_verl.stack.policy_engine import CURRENT, _actor_fields
from tests.contract.verl_worker import exported, worker_of, wrong_on
from tests.unit import preflight_files as files

pytestmark = [pytest.mark.contract, pytest.mark.e2e]  # workers that start verl
IMAGE, START, END = 300, 298, 297
GRIDS = ((4, 4), (4, 6), None)
"""Height and width of each prompt's image in patches, of which four are a token; the last prompt has none."""
RESPONSES = ([8, 9, 3, 4], [9, 2], [5, 3, 3])
SETTINGS = ForgetConfig(lr=0.05, steps=1)


def test_a_packed_batch_with_images_is_scored_and_unlearned_as_transformers_would(tmp_path, monkeypatch):
    assert wrong_on(1, _find, tmp_path, monkeypatch) == []


def _find(rank: int, ranks: int, folder: Path) -> list[str]:
    """Everything of transformers comes first: verl replaces the model's forward pass in this process."""
    plain = _model(folder / "qwen3_vl")
    prompts = [_prompt(plain, grid) for grid in GRIDS]
    with torch.no_grad():
        expected = [_log_probs(plain, *row) for row in zip(prompts, RESPONSES, strict=True)]
        red = [_log_probs(plain, _without_colour(p), r) for p, r in zip(prompts[:2], RESPONSES[:2], strict=True)]
    found = [f"images do not matter for row {i}" for i, r in enumerate(red) if (r - expected[i]).abs().max() < 1e-2]
    unlearned = _unlearned(plain, prompts, expected)
    worker = worker_of(
        "fsdp2",
        folder,
        f"actor_rollout_ref.model.path={folder}/qwen3_vl",
        "actor_rollout_ref.model.use_remove_padding=true",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=3",
    )
    before = exported(worker.actor.engine)
    worker.save_model_to_cpu(CURRENT)
    for packed in (True, False):
        scores = worker.compute_log_prob(_batch(prompts, expected, packed))["log_probs"].unbind()
        for i, (prompt, response) in enumerate(zip(prompts, RESPONSES, strict=True)):
            start = len(prompt.token_ids) - 1
            error = (scores[i][start : start + len(response)] - expected[i]).abs().max()
            found += [f"log-probs of row {i} are {error} apart ({packed=})"] if error > 1e-4 else []
        worker.unlearn(_batch(prompts, expected, packed))
        copy = exported(worker.actor.engine)
        found += [
            f"{name} is not the formula's ({packed=})"
            for name, weight in unlearned.items()
            if not torch.allclose(copy[name] - before[name], weight - before[name], rtol=1e-2, atol=1e-6)
        ]
        worker.restore_model_from_cpu(CURRENT)
    moved = max((unlearned[name] - before[name]).abs().max() for name in before if "visual" in name)
    return found + ([] if moved > 1e-4 else ["the images' encoder did not move"])


def _model(folder: Path):
    """Two layers, far from uniform."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "vocab_size": 301,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.15,
    }
    ids = {"image_token_id": IMAGE, "video_token_id": 299, "vision_start_token_id": START, "vision_end_token_id": END}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)).float()
    model.save_pretrained(folder)
    files.byte_tokenizer().save_pretrained(folder)
    return model


def _prompt(model, grid: tuple[int, int] | None) -> ActorPrompt:
    """As the worker makes it (test_images_contract.py)."""
    image = [] if grid is None else [START, *[IMAGE] * (grid[0] * grid[1] // 4), END]
    ids = torch.tensor([[7, *image, 5, 6]])
    inputs = {}
    if grid is not None:
        pixels = torch.randn(grid[0] * grid[1], 3 * 2 * 4 * 4)
        inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid]])}
    places, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=inputs.get("image_grid_thw")
    )
    return ActorPrompt(ids[0].tolist(), torch.cat([torch.arange(ids.shape[1])[None], places[:, 0]]), inputs)


def _without_colour(prompt: ActorPrompt) -> ActorPrompt:
    black = {"pixel_values": torch.zeros_like(prompt.multi_modal_inputs["pixel_values"])}
    return ActorPrompt(prompt.token_ids, prompt.position_ids, prompt.multi_modal_inputs | black)


def _log_probs(model, prompt: ActorPrompt, response) -> torch.Tensor:
    """(response length,) in nats."""
    ids = torch.tensor([[*prompt.token_ids, *response]])
    logits = model(ids, mm_token_type_ids=(ids == IMAGE).int(), **prompt.multi_modal_inputs).logits
    return logits[0, len(prompt.token_ids) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def _unlearned(model, prompts, old) -> dict[str, torch.Tensor]:
    """Weights after one step of the formula; `model` has them then."""
    rows = zip(prompts, RESPONSES, old, strict=True)
    losses = [core_algos.unlearning_loss(_log_probs(model, p, r), o, clip=SETTINGS.clip) for p, r, o in rows]
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= SETTINGS.lr * parameter.grad
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def _batch(prompts, old, packed: bool):
    fields = [
        _actor_fields(prompt, response) | {"old_log_probs": log_probs}
        for prompt, response, log_probs in zip(prompts, RESPONSES, old, strict=True)
    ]
    data = tu.list_of_dict_to_tensordict(fields)
    settings = {"temperature": 1.0, "calculate_entropy": False, "compute_loss": False, "use_remove_padding": packed}
    tu.assign_non_tensor(data, **settings, **{FORGET: SETTINGS})
    return data
