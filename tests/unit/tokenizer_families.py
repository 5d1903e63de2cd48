"""Model folders without weights, with small tokenizers of the families that users bring: a token a byte, and their
special tokens, templates and ends of sequence as the originals have them."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}
QWEN2 = SIZES | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = SIZES | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NO_THOUGHT = "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
THINKING = CHATML.replace("assistant\n' }}", "assistant\n' }}" + _NO_THOUGHT)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
_SYSTEM_FIRST = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system prompt first') }}{% endif %}"
NEEDS_SYSTEM = _SYSTEM_FIRST + CHATML
NO_GENERATION_PROMPT = CHATML.partition("{% if add_generation_prompt %}")[0]


def write_family(
    folder: Path,
    config: dict,
    *,
    template: str,
    specials: tuple[str, ...],
    eos: str,
    pad: str | None = None,
    bos: str | None = None,
    stops: tuple[str, ...] = (),
    fields: dict | None = None,
) -> Path:
    """A folder with config.json and tokenizer, and a generation_config.json that names `stops`.

    Args:
        fields: of tokenizer_config.json.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"eos_token": eos, "pad_token": pad, "bos_token": bos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **{k: v for k, v in named.items() if v is not None})
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(stored | {"unk_token": None, **(fields or {})}))
    ids = tokenizer.convert_tokens_to_ids(list(stops or (eos,)))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": ids[0]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))
    return folder


def write_r1_like(folder: Path) -> Path:
    """DeepSeek-R1-Distill-Qwen: a Qwen2 model without `<|im_end|>`; padding is the end of sequence."""
    end = "<｜end▁of▁sentence｜>"
    specials = ("<｜begin▁of▁sentence｜>", end, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
    fields = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    return write_family(folder, QWEN2, template=R1, specials=specials, eos=end, pad=end, bos=specials[0], fields=fields)


def write_qwen_math_like(folder: Path) -> Path:
    """A base model whose own end of sequence is not the one that ends a turn."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return write_family(folder, QWEN2, template=CHATML, specials=specials, eos="<|endoftext|>", pad="<|endoftext|>")


def write_qwen3_like(folder: Path) -> Path:
    """Tied embeddings, a head size of its own, a template that can open with an empty thought."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    stops = ("<|im_end|>", "<|endoftext|>")
    return write_family(
        folder, QWEN3, template=THINKING, specials=specials, eos="<|im_end|>", pad="<|endoftext|>", stops=stops
    )


def write_llama_like(folder: Path) -> Path:
    """Llama 3: a beginning of sequence in the template, several ends, no padding token."""
    stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    specials = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", *stops)
    return write_family(
        folder, LLAMA, template=HEADERS, specials=specials, eos="<|eot_id|>", bos="<|begin_of_text|>", stops=stops
    )
