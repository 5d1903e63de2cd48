"""Packed sequences attended to one by one: the same numbers as transformers' own attention."""

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from soup_verl.stack.cpu import attention

pytestmark = pytest.mark.contract  # of transformers' interface for attention functions

OURS, THEIRS = "packed_sdpa", "their_sdpa"
AttentionInterface.register(OURS, attention.packed_sdpa)
AttentionInterface.register(THEIRS, sdpa_attention_forward)
for name in (OURS, THEIRS):
    AttentionMaskInterface.register(name, sdpa_mask)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "window of 4": MistralConfig(**SMALL, sliding_window=4),
}
LENGTHS = (5, 1, 9, 3)


@pytest.fixture(params=CONFIGS)
def models(request):
    """The same weights behind transformers' `sdpa` and behind ours."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation=THEIRS)
    ours = AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation=OURS)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def packed():
    ids = torch.randint(0, 50, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions, "attention_mask": None, "use_cache": False}


def padded():
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(6).expand(2, -1), "use_cache": False}


def test_a_training_process_uses_it_for_models_that_ask_for_sdpa():
    import soup_verl.stack.cpu.training  # noqa: F401

    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention.packed_sdpa


@pytest.mark.parametrize("batch", [packed, padded])
def test_logits_and_gradients_are_those_of_sdpa(models, batch):
    found = []
    for model in models:
        inputs = batch()
        real = 1 if inputs["attention_mask"] is None else inputs["attention_mask"][..., None]
        logits = model(**inputs).logits * real
        logits.square().sum().backward()
        found.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (expected, gradients), (logits, ours) = found
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=1e-3)


def test_a_packed_sequence_is_what_it_would_be_alone(models):
    _, ours = models
    inputs = packed()
    logits = ours(**inputs).logits[0]
    start = 0
    for length in LENGTHS:
        alone = ours(input_ids=inputs["input_ids"][:, start : start + length], use_cache=False).logits[0]
        torch.testing.assert_close(logits[start : start + length], alone, atol=1e-5, rtol=1e-4)
        start += length


def test_no_mask_over_all_sequences_is_used_where_they_fit_the_window(models, monkeypatch):
    """So that the tests above compare two ways of computing, not one with itself."""
    lengths = []
    real = attention.sdpa_attention_forward

    def seen(module, query, *others, **kwargs):
        lengths.append(query.shape[2])
        return real(module, query, *others, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", seen)
    models[1](**packed())
    fits = getattr(models[1].config, "sliding_window", None) is None
    assert lengths == (list(LENGTHS) * 2 if fits else [sum(LENGTHS)] * 2)


def test_bfloat16_comes_back_as_bfloat16(models):
    logits = models[1].to(torch.bfloat16)(**packed()).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
