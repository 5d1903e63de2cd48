"""From what a user calls a model to a folder that vLLM can load; verl's FSDP checkpoints are merged once.

verl's merger writes bfloat16, whatever precision the checkpoint has: what rollout on a GPU samples from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from soup_verl.evaluation import EvaluationError
from soup_verl.records.files import new_folder
from soup_verl.tasks.context_window import local_model

_PIECE = 1 << 20  # bytes
ADAPTER = "lora_adapter"
"""Where verl's merger puts the adapter of a run with LoRA."""
_MODEL = ("*.safetensors", "*.bin", "*.pt", "*.json", "*.jinja", "*.model", "*.txt")


def resolve(name: str, *, option: str, merged: Path, announce: Callable[[str], None]) -> Path:
    """The model folder of a HF folder, a hub name, or a verl checkpoint `global_step_N` or `global_step_N/actor`.

    Args:
        name: what the user gave.
        option: whose value it is, for messages.
        merged: folder of merged checkpoints; made when the first is needed.
        announce: is told of a merge before it begins: it may take minutes.

    Raises:
        EvaluationError: there is no such model, or the checkpoint is incomplete or cannot be merged.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            return local_model(name)
        except ValueError as error:
            raise EvaluationError(f"{option}={str(error).removeprefix('--model=')}") from None
    if (folder / "config.json").is_file():
        return folder
    actor = actor_of(folder, f"{option}={name}", expected="a model folder with config.json, or ")
    return whole_weights(actor) or _merged(actor, f"{option}={name}", merged, announce)


def actor_of(folder: Path, what: str, *, expected: str = "") -> Path:
    """The actor's folder of a verl checkpoint: `global_step_N`, `global_step_N/actor`, or a link to either.

    Args:
        expected: what else could be given.

    Raises:
        EvaluationError: it is no FSDP checkpoint; begins with `what`.
    """
    folder = folder.resolve()
    actor = folder / "actor" if (folder / "actor").is_dir() else folder
    if not (actor / "fsdp_config.json").is_file():
        found = "" if folder.is_dir() else "no such folder; "
        raise EvaluationError(
            f"{what}: {found}expected {expected}an FSDP checkpoint of verl (global_step_N with actor/fsdp_config.json)"
        )
    return actor


def whole_weights(actor: Path) -> Path | None:
    """Where verl saved whole weights beside the shards; None if it did not."""
    return actor / "huggingface" if any((actor / "huggingface").glob("*.safetensors")) else None


def fingerprint(files: Iterable[Path]) -> str:
    """A digest of names, sizes and the first, middle and last MiB of each file, in 16 digits.

    Training changes every part of a model, so that much tells two checkpoints apart without reading gigabytes.
    """
    sha = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        sha.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _PIECE)):
                file.seek(start)
                sha.update(file.read(_PIECE))
    return sha.hexdigest()[:16]


def model_files(folder: Path) -> list[Path]:
    """The files that decide what a model is asked and says: weights, configuration, tokenizer and chat template."""
    return [path for pattern in _MODEL for path in folder.glob(pattern)]


def _merged(actor: Path, what: str, merged: Path, announce: Callable[[str], None]) -> Path:
    """The merged model; made on first use, found again by the checkpoint's content."""
    shards = _shards(actor, what)
    run, step = actor.parent.parent.name, actor.parent.name
    target = merged / f"{run}-{step}-{fingerprint([*shards, *model_files(actor / 'huggingface')])}"
    if target.is_dir():
        return target
    merged.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = os.open(merged, os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)  # another evaluation may be merging just this
        if not target.is_dir():
            announce(f"merging {actor} into {target}")
            _merge(actor, what, target, lock)
    return target


def _merge(actor: Path, what: str, target: Path, lock: int) -> None:
    """The merger holds the lock too: it may outlive this process."""
    with new_folder(target) as partial:
        merge_into(partial, actor, what, pass_fds=(lock,))
        if (partial / ADAPTER).exists():
            add_adapter(partial)


def merge_into(folder: Path, actor: Path, what: str, *, pass_fds: Sequence[int] = ()) -> None:
    """The model of an FSDP checkpoint in an empty folder; of a run with LoRA the weights that it was trained on, and
    beside them `ADAPTER`.

    Args:
        pass_fds: descriptors that the merger is to hold.

    Raises:
        EvaluationError: verl's merger failed, or a shard is missing; begins with `what`.
    """
    _shards(actor, what)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
    done = subprocess.run(
        [*command, "--target_dir", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=pass_fds,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EvaluationError(f"{what}: verl's model_merger failed with exit code {done.returncode}: {last}")


def add_adapter(model: Path) -> None:
    """Add the adapter in `ADAPTER` to the model's weights, in bfloat16 as the merger wrote them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, model / ADAPTER).merge_and_unload()
    for old in model.glob("*.safetensors*"):
        old.unlink()
    merged.save_pretrained(model)
    shutil.rmtree(model / ADAPTER)


def _shards(actor: Path, what: str) -> list[Path]:
    try:
        world = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(f"{what}: {actor / 'fsdp_config.json'} names no world_size") from None
    shards = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    for path in [*shards, actor / "huggingface" / "config.json"]:
        if not path.is_file():
            raise EvaluationError(f"{what}: {path} is missing, so the checkpoint is not whole. Give another step.")
    return shards


def check_window(model: Path, longest: int, what: str) -> None:
    """Refuse sequences of `longest` tokens in a model that was made for fewer.

    A model with stretched positions (YaRN and the like) is left to vLLM, which knows its true window.

    Raises:
        EvaluationError: names `what`, the option.
    """
    config = json.loads((model / "config.json").read_text())
    config = config.get("text_config", config)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    window = config.get("max_position_embeddings")
    if rope.get("rope_type", "default") == "default" and window is not None and longest > window:
        raise EvaluationError(
            f"{what}: with the longest prompt that is {longest} tokens, and {model} was made for {window}. "
            "Expected fewer, or a copy with a wider window (soup_verl.tasks.context_window)."
        )
