"""The files of an exported model: weights in bfloat16, configurations, tokenizer with chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from soup_verl.evaluation import checkpoints
from soup_verl.exporting import ExportError
from soup_verl.records.files import write_json

ADAPTER_CONFIG = "adapter_config.json"


def write_merged(folder: Path, actor: Path, what: str) -> None:
    """The whole model in an empty folder, an adapter added to its weights.

    Raises:
        EvaluationError: the checkpoint is not whole, or cannot be merged; begins with `what`.
    """
    if whole := checkpoints.whole_weights(actor):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        return
    checkpoints.merge_into(folder, actor, what)
    if (folder / checkpoints.ADAPTER).exists():
        checkpoints.add_adapter(folder)


def check_adapter(actor: Path, what: str) -> None:
    """Raises ExportError unless the checkpoint is one of a run with LoRA."""
    if not (actor / "lora_train_meta.json").is_file():  # which verl writes beside the shards
        raise ExportError(f"--adapter: {what} is of a run without LoRA. Leave --adapter out.")


def write_adapter(folder: Path, actor: Path, what: str, *, base: str) -> None:
    """The adapter in peft's format, in an empty folder, with tokenizer and chat template, without the model's weights.

    Args:
        base: name or folder of the model that it is to be added to.

    Raises:
        EvaluationError: as `write_merged`.
    """
    checkpoints.merge_into(folder, actor, what)
    for file in (*folder.glob("*.safetensors*"), folder / "config.json"):
        file.unlink()
    for file in (folder / checkpoints.ADAPTER).iterdir():
        file.rename(folder / file.name)
    (folder / checkpoints.ADAPTER).rmdir()
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    write_json(folder / ADAPTER_CONFIG, config | {"base_model_name_or_path": base})
