"""A copy of a model made ready to be trained: python -m soup_verl.tasks.context_window.

    python -m soup_verl.tasks.context_window --model Qwen/Qwen2.5-Math-7B --out data/model_16k \
        --max-position-embeddings 16384 --rope-theta 40000

Every token that ends a turn in the chat template ends a response of the copy: generation_config.json names them all.
Qwen2.5-Math's own names `<|endoftext|>` alone, as far as we know, while its template ends a turn with `<|im_end|>`.
With the two options the copy also allows for longer sequences: Qwen2.5-Math was made for 4096 tokens; LUFFY and Open-R1
train it with exactly these two settings changed. Every other file is a link to the model's own, whose folder is not
touched.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from soup_verl.records.files import new_folder
from soup_verl.tasks.chat_template import end_of_turn, load_tokenizer, stop_token_ids, why_not_loaded
from soup_verl.tasks.command_line import Parser

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def extended_config(config: dict[str, Any], *, max_position_embeddings: int, rope_theta: float) -> dict[str, Any]:
    """A model's config.json with another context window.

    Raises:
        ValueError: the window would shrink, or the model has no rotary embedding to stretch.
    """
    present = config.get("max_position_embeddings")
    if not isinstance(present, int) or max_position_embeddings < present:
        raise ValueError(
            f"--max-position-embeddings={max_position_embeddings}: expected at least the model's own {present}"
        )
    holder = _holder_of_rope_theta(config)
    changed = json.loads(json.dumps(config)) | {"max_position_embeddings": max_position_embeddings}
    target = changed if holder is None else changed[holder]
    target["rope_theta"] = rope_theta
    return changed


def _holder_of_rope_theta(config: dict[str, Any]) -> str | None:
    """Where `rope_theta` stands: at the top (None), or in the section that newer transformers write."""
    if "rope_theta" in config:
        return None
    if "rope_theta" in (config.get("rope_parameters") or {}):
        return "rope_parameters"
    raise ValueError(f"{CONFIG} has no rope_theta: only models with rotary embeddings can be stretched")


def stopping_config(model: Path) -> dict[str, Any]:
    """The model's generation_config.json, with `eos_token_id` for every token that ends a response or a turn.

    Raises:
        ValueError: the tokenizer cannot be read, has no end of sequence, or a chat template that takes no answer.
    """
    tokenizer = load_tokenizer(str(model), str(model), ValueError, needs_template=False)
    try:
        end = end_of_turn(tokenizer) if tokenizer.chat_template else None
    except Exception as error:  # a template may refuse anything
        raise ValueError(f"{model}: a chat template that takes no question and answer ({error})") from None
    ends = {*stop_token_ids(str(model), tokenizer), *([] if end is None else [end])}
    if not ends:
        raise ValueError(f"{model}: neither the model nor its tokenizer names a token that ends a response")
    file = model / GENERATION_CONFIG
    return (json.loads(file.read_text()) if file.is_file() else {}) | {"eos_token_id": sorted(ends)}


def write_copy(
    model: Path, out: Path, *, max_position_embeddings: int | None = None, rope_theta: float | None = None
) -> None:
    """Make `out`: `model` by links, with every stop token, and another context window if one is given.

    Raises:
        ValueError: the model's files cannot be read, `out` exists, or see `extended_config` and `stopping_config`.
    """
    try:
        config = json.loads((model / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{model / CONFIG}: not a readable model configuration ({error})") from error
    if max_position_embeddings is not None:
        assert rope_theta is not None
        config = extended_config(config, max_position_embeddings=max_position_embeddings, rope_theta=rope_theta)
    if out.exists():
        raise ValueError(f"--out={out}: exists; remove it or choose another")
    generation = stopping_config(model)
    tokenizer = json.loads((model / TOKENIZER_CONFIG).read_text()) if (model / TOKENIZER_CONFIG).is_file() else {}
    if tokenizer.get("model_max_length", math.inf) < (max_position_embeddings or 0):
        tokenizer["model_max_length"] = max_position_embeddings  # transformers warns of it, and some tools cut there
    ours = {CONFIG: config, GENERATION_CONFIG: generation, TOKENIZER_CONFIG: tokenizer}
    with new_folder(out) as folder:
        for file in model.iterdir():
            if file.name not in ours:
                (folder / file.name).symlink_to(file.resolve())
        for name, content in ours.items():
            if content:
                (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")


def local_model(model: str, *, weights: bool = True) -> Path:
    """The folder of a model given by path or by its name on the hub, downloaded if need be; its weights too if asked.

    Raises:
        ValueError: there is no such folder, and the hub cannot be asked or does not have it.
    """
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=None if weights else list(WEIGHTS)))
    except (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = why_not_loaded(model, error)
        raise ValueError(f"--model={model!r}: neither a folder nor a model the hub gives us ({reason})") from None


def main() -> None:
    parser = Parser(
        prog="python -m soup_verl.tasks.context_window",
        description="Copy a model's folder with every stop token, and with another context window if one is given.",
    )
    parser.add_argument("--model", required=True, help="folder, or name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--max-position-embeddings", type=int, help="tokens; needs --rope-theta")
    parser.add_argument("--rope-theta", type=float, help="base of the rotary embedding")
    arguments = parser.parse_args()
    if (arguments.max_position_embeddings is None) != (arguments.rope_theta is None):
        parser.error("--max-position-embeddings and --rope-theta go together")
    try:
        write_copy(
            local_model(arguments.model),
            arguments.out,
            max_position_embeddings=arguments.max_position_embeddings,
            rope_theta=arguments.rope_theta,
        )
    except ValueError as error:
        sys.exit(f"context_window: {error}")
    sys.stdout.write(f"wrote {arguments.out}\n")


if __name__ == "__main__":
    main()
