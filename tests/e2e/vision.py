"""A random Qwen2-VL of 120 thousand parameters, rows that differ only in images, and the data set that reads them.

Without torchvision transformers has an image processor for it (PIL's) and no video processor, so that the model comes
with a processor of its own that asks for none. Its tokens are single characters of ASCII: any of them, decoded and
tokenized again, are the same ones, which is what vLLM's backend for transformers' own modules does to a prompt.
"""

import io
import json
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

MODEL, ROWS = "vision_model", "images.parquet"
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ((16, 16), (24, 16))  # pixels; four and six tokens
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROCESSOR = '''"""Images without videos: their processor needs torchvision."""

from transformers import Qwen2VLProcessor as _WithVideos


class Qwen2VLProcessor(_WithVideos):
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)
'''


class ImageRows(RLHFDataset):
    """verl's data set, which takes images as they are: verl has them read by qwen_vl_utils, which needs torchvision."""

    @classmethod
    def _process_multi_modal_info(cls, messages, image_patch_size, config):
        return *cls.images_of(messages), None

    @staticmethod
    def images_of(messages):
        """Images and videos, as qwen_vl_utils."""
        parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
        return [p["image"].convert("RGB") for p in parts if p["type"] == "image"] or None, None


def make(folder: Path) -> None:
    """`vision_model/` and `images.parquet`: eight rows, of which every two have the same text, and images of the same
    size in other colours."""
    tokenizer = _tokenizer()
    _processor(tokenizer, folder / MODEL)
    _model(tokenizer).save_pretrained(folder / MODEL)
    pd.DataFrame([_row(i) for i in range(8)]).to_parquet(folder / ROWS)


def image(index: int) -> Image.Image:
    """That of a row."""
    return Image.new("RGB", SIZES[index // 4], COLOURS[index % 4])


def _row(index: int) -> dict:
    encoded = io.BytesIO()
    image(index).save(encoded, "PNG")
    return {
        "data_source": "varied",
        "prompt": [{"role": "user", "content": f"<image>{index // 2}?"}],
        "images": [{"bytes": encoded.getvalue(), "path": None}],
        "ability": "colours",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"index": index, "split": "train"},
    }


def _tokenizer():
    from transformers import Qwen2Tokenizer

    characters = [chr(i) for i in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ"]  # byte-level names of space and newline
    tokens = [PAD, START, END, *VISION, *characters]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, *VISION],
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _processor(tokenizer, folder: Path) -> None:
    """The files of tokenizer and processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    Qwen2VLImageProcessorPil(**sizes, min_pixels=64, max_pixels=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    code = "processing_images"
    (folder / f"{code}.py").write_text(PROCESSOR)
    own = {"processor_class": "Qwen2VLProcessor", "auto_map": {"AutoProcessor": f"{code}.Qwen2VLProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(own))


def _model(tokenizer):
    """Far from uniform, and sees its images: weights are large. The first of the hidden dimensions is large for every
    token, and the output layer has it to give the tokens that stand for images no chance: verl's engine never samples
    them, its actor knows nothing of that."""
    from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = dict(zip(VISION, tokenizer.convert_tokens_to_ids(list(VISION)), strict=True))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "initializer_range": 0.15,
    }
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )
    ).to(torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5)[:, 0] = 8.0
        head = model.lm_head.weight.mul_(3)
        head[:, 0] = 0.0
        head[list(ids.values())] = 0.0
        head[list(ids.values()), 0] = -20.0
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model
