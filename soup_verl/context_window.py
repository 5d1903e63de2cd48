"""A copy of a model whose configuration allows for longer sequences: python -m soup_verl.context_window.

    python -m soup_verl.context_window --model Qwen/Qwen2.5-Math-7B --out data/model_16k \
        --max-position-embeddings 16384 --rope-theta 40000

The copy's config.json is rewritten; every other file is a link to the model's own. The model's folder is not touched.
Qwen2.5-Math was made for 4096 tokens; LUFFY and Open-R1 train it with exactly these two settings changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

CONFIG = "config.json"
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


def write_copy(model: Path, out: Path, *, max_position_embeddings: int, rope_theta: float) -> None:
    """Make `out`: `model` by links, with another context window.

    Raises:
        ValueError: the model has no readable config.json, `out` exists, or see `extended_config`.
    """
    try:
        config = json.loads((model / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{model / CONFIG}: not a readable model configuration ({error})") from error
    changed = extended_config(config, max_position_embeddings=max_position_embeddings, rope_theta=rope_theta)
    if out.exists():
        raise ValueError(f"--out={out}: exists; remove it or choose another")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in model.iterdir():
        if file.name not in (CONFIG, TOKENIZER_CONFIG):
            (partial / file.name).symlink_to(file.resolve())
    (partial / CONFIG).write_text(json.dumps(changed, indent=2) + "\n")
    tokenizer = model / TOKENIZER_CONFIG
    if tokenizer.is_file():  # transformers warns of, and some tools cut at, the length named here
        settings = json.loads(tokenizer.read_text())
        if settings.get("model_max_length", max_position_embeddings) < max_position_embeddings:
            settings["model_max_length"] = max_position_embeddings
        (partial / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, out)


def local_model(model: str) -> Path:
    """The folder of a model given by path or by its name on the hub, downloaded if need be.

    Raises:
        ValueError: there is no such folder, and the hub cannot be asked or does not have it.
    """
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--model={model!r}: neither a folder nor a model the hub gives us ({reason})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a model's folder with another context window.")
    parser.add_argument("--model", required=True, help="folder, or name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--max-position-embeddings", type=int, required=True, help="tokens")
    parser.add_argument("--rope-theta", type=float, required=True, help="base of the rotary embedding")
    arguments = parser.parse_args()
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
