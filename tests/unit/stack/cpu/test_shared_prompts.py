"""A prompt that stands once for all responses to it: the same log-probs, entropies and gradients as verl's layout."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional as verl_functional
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.engine.fsdp import transformer_impl

from soup_verl.stack.cpu import shared_prompts
from soup_verl.stack.cpu.training import CpuLanguageModelEngine

pytestmark = pytest.mark.contract  # of what verl's engine passes from its inputs to its outputs

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
A, B = [5, 6, 7], [8, 9]
SAMPLES = [(A, [1, 2]), (A, [3]), (A, []), (A, [4, 1, 2]), (B, []), (B, [2, 2]), (B, [3]), (A, [1])]


def nested(rows):
    return torch.nested.nested_tensor([torch.tensor(row, dtype=torch.long) for row in rows], layout=torch.jagged)


def test_layout_by_hand():
    samples = [(A, [1, 2]), (A, [3]), (B, [4])]
    layout = shared_prompts.share_prompts(nested([p + r for p, r in samples]), torch.tensor([3, 3, 2]))
    # packed:  0 1 2 | 3 4   5 6 7 | 8   9 10 | 11     with the prompts of samples 0, 1 and 2 left of each bar
    assert layout.tokens.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert layout.logits.tolist() == [2, 3, 2, 7]  # the prompt's last token predicts both first tokens
    assert layout.targets.tolist() == [2, 3, 7, 10]
    spread = layout.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert [row.tolist() for row in spread.unbind()] == [[0, 0, 1, 2, 0], [0, 0, 3, 0], [0, 4, 0]]


def test_a_prompt_that_comes_again_later_is_not_the_same_group():
    layout = shared_prompts.share_prompts(nested([[5, 1], [6, 1], [5, 2]]), torch.tensor([1, 1, 1]))
    assert layout.tokens.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_outputs_and_gradients_are_those_of_verls_layout(name, temperature):
    model = small_model({"llama": LlamaConfig(**SMALL), "qwen2": Qwen2Config(**SMALL)}[name])
    expected, gradients, all_tokens = forward_and_backward(model, share=False, temperature=temperature)
    found, ours, fewer_tokens = forward_and_backward(model, share=True, temperature=temperature)
    # prompts of 6 x 3 and 3 x 2 tokens; 2 groups of A, apart from each other, and one of B
    assert (all_tokens, fewer_tokens) == (21 + 10, 8 + 10)
    for key in ("log_probs", "entropy"):
        for row, other, (prompt, response) in zip(expected[key], found[key], SAMPLES, strict=True):
            at = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
            torch.testing.assert_close(other[at], row[at], atol=1e-5, rtol=1e-5)
            assert other[: at.start].abs().sum() == 0 and len(other) == len(row)
    for key, gradient in gradients.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "possible"),
    [
        (LlamaConfig(**SMALL), True),
        (Qwen2Config(**SMALL, sliding_window=4, use_sliding_window=False), True),
        (MistralConfig(**SMALL, sliding_window=4), False),
    ],
)
def test_a_window_rules_it_out(config, possible):
    assert shared_prompts.is_possible(small_model(config)) is possible


def test_images_rule_it_out():
    """Prompts with images of one size have the same tokens."""
    model = small_model(LlamaConfig(**SMALL))
    model.config.vision_config = LlamaConfig(**SMALL)
    assert not shared_prompts.is_possible(model)


def test_other_attention_rules_it_out():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL), attn_implementation="eager")
    assert not shared_prompts.is_possible(model)


def test_without_packing_verls_layout_stays():
    model = small_model(LlamaConfig(**SMALL))
    _, _, tokens = forward_and_backward(model, share=True, temperature=1.0, use_remove_padding=False)
    assert tokens == len(SAMPLES) * max(len(p) + len(r) for p, r in SAMPLES)


def test_verls_log_probs_position_by_position_are_not_asked_for(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("verl's own")

    monkeypatch.setattr(transformer_impl, "logprobs_from_logits", refuse)
    for use_remove_padding in (True, False):
        forward_and_backward(
            small_model(LlamaConfig(**SMALL)), share=True, temperature=1.0, use_remove_padding=use_remove_padding
        )


def small_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def forward_and_backward(model, *, share, temperature, use_remove_padding=True):
    """Log-probs and entropies as lists of rows, gradients by parameter, and how many tokens the model was given."""
    given = []

    def module(**inputs):
        given.append(inputs["input_ids"].numel())
        return model(**inputs)

    engine = object.__new__(CpuLanguageModelEngine)  # without FSDP: only what it does to a micro-batch
    engine.module, engine._may_share_prompts = module, share
    engine.use_ulysses_sp = engine.pad_to_length = False
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    engine.compute_entropy_from_logits = verl_functional.entropy_from_logits
    batch = micro_batch(temperature, use_remove_padding)
    inputs, output_args = engine.prepare_model_inputs(batch)
    outputs = engine.prepare_model_outputs(engine.module(**inputs, use_cache=False), output_args, batch, None)

    rows = {key: outputs[key].unbind() for key in ("log_probs", "entropy")}
    weights = iter(torch.linspace(-1, 1, 64).tolist())
    loss = sum(
        next(weights) * rows[key][i][len(prompt) - 1 + t]
        for key in rows
        for i, (prompt, response) in enumerate(SAMPLES)
        for t in range(len(response))
    )
    model.zero_grad()
    loss.backward()
    return rows, {name: p.grad.clone() for name, p in model.named_parameters()}, given[0]


def micro_batch(temperature, use_remove_padding):
    whole = nested([prompt + response for prompt, response in SAMPLES])
    batch = TensorDict(
        {
            "input_ids": whole,
            "position_ids": nested([list(range(len(p) + len(r))) for p, r in SAMPLES]),
            "responses": nested([response for _, response in SAMPLES]),
        },
        batch_size=[len(SAMPLES)],
    )
    tu.assign_non_tensor(
        batch,
        temperature=temperature,
        use_remove_padding=use_remove_padding,
        pad_mode=DatasetPadMode.NO_PADDING,
        calculate_entropy=True,
    )
    return batch


@pytest.mark.parametrize(("share", "use_remove_padding"), [(True, True), (False, True), (False, False)])
def test_a_bfloat16_model_gives_log_probs_in_float32(share, use_remove_padding):
    """As flash-attn's cross-entropy does; verl's fallback rounds them to bfloat16, by up to 0.8% (2 ** -7)."""
    model = small_model(LlamaConfig(**SMALL)).to(torch.bfloat16)
    rows, _, _ = forward_and_backward(model, share=share, temperature=1.0, use_remove_padding=use_remove_padding)
    for values in rows.values():
        assert values[0].dtype == torch.float32
        assert any((row != row.to(torch.bfloat16)).any() for row in values)
