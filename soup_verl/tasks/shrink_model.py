"""A small copy of a model, to rehearse a run with: python -m soup_verl.tasks.shrink_model --model MODEL --out DIR

    config.json            the model's own, with two small layers; same architecture, vocabulary and context window
    model.safetensors      random weights from a fixed seed
    every other text file  the model's own: tokenizer, chat template, generation_config.json

The model's weights are not read: a folder with configuration and tokenizer is enough. Its folder is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.context_window import CONFIG, local_model

LAYERS, HEADS, HEAD_SIZE = 2, 2, 32  # 32 is the smallest head that vLLM computes attention with on a CPU
HIDDEN = HEADS * HEAD_SIZE
NEEDED = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
REFUSED = {
    "auto_map": "code of its own",
    "num_experts": "experts",
    "num_local_experts": "experts",
    "n_routed_experts": "experts",
    "kv_lora_rank": "latent attention",
    "text_config": "more than text",
    "quantization_config": "quantized weights",
}
"""Keys of config.json that stand for what cannot be shrunk here."""
TEXT = (".json", ".jinja", ".txt", ".model", ".tiktoken")
WEIGHTS = "model.safetensors"


def shrunk_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the small copy. Grouped-query attention stays grouped, tied embeddings stay tied.

    Raises:
        ValueError: names the key that is missing or cannot be shrunk.
    """
    for key in NEEDED:
        if not config.get(key):
            raise ValueError(f"{CONFIG} has no {key}, so the model cannot be made small; expected a causal LM's")
    for key, what in REFUSED.items():
        if config.get(key):
            raise ValueError(f"{CONFIG} has {key}: a model with {what} cannot be made small here")
    small: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1 if _is_grouped(config) else HEADS,
        "head_dim": HEAD_SIZE,
        "max_window_layers": LAYERS,
    }
    layers = config["num_hidden_layers"]
    a_layer = {k: _a_kind_each(v) for k, v in config.items() if isinstance(v, list) and len(v) == layers > 1}
    return {**config, **a_layer, **{key: value for key, value in small.items() if key in config}}


def _is_grouped(config: Mapping[str, Any]) -> bool:
    return config.get("num_key_value_heads", config["num_attention_heads"]) < config["num_attention_heads"]


def _a_kind_each(of_layers: list[Any]) -> list[Any]:
    """What the first layers of `LAYERS` different kinds have, such as sliding and full attention."""
    kinds = [value for i, value in enumerate(of_layers) if value not in of_layers[:i]]
    return (kinds + of_layers)[:LAYERS]


def write_shrunk(model: Path, out: Path, *, seed: int = 0) -> int:
    """Make the folder `out`; returns the number of parameters.

    Raises:
        ValueError: the model has no readable config.json, transformers cannot build it, `out` exists, or see
            `shrunk_config`.
    """
    try:
        config = json.loads((model / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{model / CONFIG}: not a readable model configuration ({error})") from error
    if out.exists():
        raise ValueError(f"--out={out}: exists; remove it or choose another")
    small = shrunk_config(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        partial = Path(scratch) / out.name
        partial.mkdir()
        for file in model.iterdir():
            if file.suffix in TEXT and not file.name.endswith(".index.json") and file.is_file():
                shutil.copyfile(file, partial / file.name)
        (partial / CONFIG).write_text(json.dumps(small, indent=2) + "\n")
        parameters = _write_weights(partial, Path(scratch) / "built", seed)
        os.replace(partial, out)
    return parameters


def _write_weights(folder: Path, scratch: Path, seed: int) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers raises about a configuration that is not ours
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"transformers builds no model from the small {CONFIG}: {reason}") from error
    built.save_pretrained(scratch)  # it knows which tensors are tied
    os.replace(scratch / WEIGHTS, folder / WEIGHTS)
    return sum(p.numel() for p in built.parameters())


def main() -> None:
    parser = Parser(
        prog="python -m soup_verl.tasks.shrink_model",
        description="Make a small copy of a model, with random weights.",
    )
    parser.add_argument("--model", required=True, help="folder, or name on the hub; its weights are not needed")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    arguments = parser.parse_args()
    try:
        parameters = write_shrunk(local_model(arguments.model, weights=False), arguments.out)
    except ValueError as error:
        sys.exit(f"shrink_model: {error}")
    sys.stdout.write(f"wrote {arguments.out}: {parameters:,} parameters\n")


if __name__ == "__main__":
    main()
