"""Which checkpoint a run goes on from, and whether it is one of its own kind: decided before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import SOURCES
from soup_verl.records.settings import TABLE, flatten, setting_of
from soup_verl.stack import checkpoint

logger = logging.getLogger(__name__)

_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
"""What makes two models the same to a checkpoint, as transformers names it."""


def checkpoint_to_resume(trainer: DictConfig) -> Path | None:
    """The checkpoint that `trainer.resume_mode` asks for; None to start anew. Damaged ones are refused by path.

    Raises:
        TornCheckpoint: `trainer.resume_from_path` is damaged.
        OtherFormat: another version of this project wrote it.
        ValueError: there are checkpoints, and none is intact.
    """
    if trainer.resume_mode == "resume_path":
        folder = Path(trainer.resume_from_path).absolute()
        if not folder.is_dir():
            raise ConfigError("trainer.resume_from_path", trainer.resume_from_path, "a folder global_step_N")
        if (folder / checkpoint.FOLDER).exists():
            checkpoint.verify(folder)
        return folder
    if trainer.resume_mode != "auto":
        return None
    root = Path(trainer.default_local_dir).absolute()
    newest, refused = checkpoint.newest_intact(root)
    for error in refused:
        logger.warning("checkpoint refused: %s", error)
    if newest is None and (root / checkpoint.NEWEST).exists():
        raise ValueError(f"no intact checkpoint under {root}; newest: {refused[0] if refused else 'none'}")
    return newest


@contextmanager
def settings_for_verl(section: DictConfig, **settings: Any) -> Iterator[None]:
    """Settings of `section` as verl is to find them in one call; afterwards they are as they were asked for."""
    asked = {key: section.get(key) for key in settings}
    with open_dict(section):
        section.update(settings)
        try:
            yield
        finally:
            section.update(asked)


def only_from(folder: Path | None, trainer: DictConfig) -> AbstractContextManager[None]:
    """verl's resume settings for one call: exactly this checkpoint, or none."""
    mode, path = ("resume_path", str(folder)) if folder else ("disable", None)
    return settings_for_verl(trainer, resume_mode=mode, resume_from_path=path)


def check_weights(folder: Path, config: DictConfig) -> None:
    """The checkpoint's weights are those of this model, for this number of ranks.

    Raises:
        ConfigError: names the setting, what the checkpoint has, and its path.
    """
    model = config.actor_rollout_ref.model
    if other := _other_shape(folder / "actor" / "huggingface" / "config.json", model):
        raise ConfigError("actor_rollout_ref.model.path", model.path, f"a model with {other}, as in {folder}", _NEW)
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    files = (re.match(r"model_world_size_(\d+)_", file.name) for file in (folder / "actor").glob("model_*"))
    saved = {int(match[1]) for match in files if match}
    if saved and ranks not in saved:
        key, expected = "trainer.nnodes*trainer.n_gpus_per_node", f"{min(saved)} ranks, as in {folder}"
        raise ConfigError(key, ranks, expected, _NEW)


def _other_shape(file: Path, model: DictConfig) -> str:
    """What the saved configuration has and that of `model.path` has not; "" if nothing, or if nothing was saved."""
    if not file.is_file():
        return ""
    from transformers import AutoConfig

    saved = json.loads(file.read_text())
    given = AutoConfig.from_pretrained(model.path, trust_remote_code=model.get("trust_remote_code", False)).to_dict()
    differing = [key for key in _SHAPE if key in saved and key in given and saved[key] != given[key]]
    return " and ".join(f"{key}={saved[key]} (it has {given[key]})" for key in differing)


_NEW = "Keep it, or start a new run in another trainer.default_local_dir."


def run_settings(soup: SoupConfig, config: DictConfig) -> dict[str, Any]:
    """The settings that make a run what it is, by their full keys, as JSON has them."""
    of_verl = {key: _of_verl(config, key) for key in TABLE if _is_trained(key) and not key.startswith("soup.")}
    given = asdict(soup)
    if not soup.mixing:
        ours = {"mixed_fraction": 0} | {k: v for k, v in given.items() if setting_of(f"soup.{k}").without_mixing}
        if soup.down_sampling.train_on is not None:
            ours["seed"] = soup.seed  # draws between equal rewards
        return of_verl | flatten({"soup": ours})
    others = set(SOURCES) - {soup.source}
    ours = {key: value for key, value in given.items() if _is_trained(f"soup.{key}") and key not in others}
    if soup.source == "lookahead":
        ours["lookahead"] = {"age": soup.lookahead.ages}  # one age is a list of one
    return json.loads(json.dumps(of_verl | flatten({"soup": ours})))


def _is_trained(key: str) -> bool:
    return setting_of(key).kind == "method"


def _of_verl(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if not setting_of(key).by_content or value is None:
        return value
    return [_content(str(file)) for file in (value if isinstance(value, list) else [value])]


def _content(file: str) -> str:
    """A hash of the file, which may be elsewhere by now; the name of what is no local file (`hdfs://`, `pkg://`)."""
    path = Path(file).expanduser()
    if not path.is_file():
        return file
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"


def mixes(settings: Mapping[str, Any]) -> bool:
    """Whether these are the `run_settings` of a run that has history."""
    return "soup.source" in settings


def check_settings(folder: Path, stored: Mapping[str, Any], present: Mapping[str, Any], *, history_only: bool) -> None:
    """The checkpoint is one that these settings would have made, as far as it tells: a setting that was not compared
    yet when it was written is not compared with it.

    Args:
        history_only: look at nothing but what the stored history depends on.

    Raises:
        ConfigError: names the setting, the checkpoint's value and its path.
    """
    first = ("soup.mixed_fraction", "soup.source")  # what other keys there are depends on them
    for key in (*first, *sorted(stored)):
        if history_only and not setting_of(key).of_history:
            continue
        if stored.get(key) != present.get(key):
            raise ConfigError(key, present.get(key), f"{stored.get(key)!r}, as in {folder}", _NEW)
