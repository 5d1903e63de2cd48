"""Where the runs of a sweep are, from what is in their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from soup_verl.launch.finished import FINISHED
from soup_verl.launch.preflight.provenance import CONFIG_FILE, RUN_FILE
from soup_verl.launch.run import ERROR_FILE
from soup_verl.method.checks import ConfigError
from soup_verl.records import run_log
from soup_verl.records.settings import flatten, setting_of
from soup_verl.reporting.runs import SafeLoader

COMPARED = ("method", "watching")
"""Kinds of settings that a finished run must have as the file asks: what is trained, how long, what validates it."""


def check_unchanged(configs: Mapping[str, DictConfig]) -> None:
    """What has finished was trained with these settings.

    Raises:
        ConfigError: names the setting, both values and the run.
    """
    for config in configs.values():
        folder = Path(config.trainer.default_local_dir)
        if (folder / FINISHED).exists() and (folder / CONFIG_FILE).exists():
            had, asked = (_compared(text) for text in ((folder / CONFIG_FILE).read_text(), _yaml(config)))
            for key in sorted(had.keys() & asked.keys()):
                if had[key] != asked[key]:
                    expected = f"{had[key]!r}, as in {folder}, which has finished"
                    raise ConfigError(key, asked[key], expected, "Rename the method, or give another out.")


def _yaml(config: DictConfig) -> str:
    return OmegaConf.to_yaml(config, resolve=True)


def _compared(text: str) -> dict[str, Any]:
    settings = flatten(yaml.load(text, Loader=SafeLoader))
    return {key: value for key, value in settings.items() if setting_of(key).kind in COMPARED}


def of(folder: Path) -> str:
    """What to say of a run that has not finished."""
    if not folder.is_dir():
        return "not begun"
    error, started = _written(folder / ERROR_FILE), _written(folder / RUN_FILE)
    if error and error >= started:
        kind, _, said = (folder / ERROR_FILE).read_text().strip().splitlines()[-1].partition(": ")
        return f"{kind.rpartition('.')[2]}: {said}"
    try:
        step = max(run_log.read(folder), default=0)
    except FileNotFoundError:
        step = 0
    return f"{step} steps made" if step else "no step made" if started else "not begun"


def errors(configs: Mapping[str, DictConfig]) -> dict[str, int]:
    """Run's name -> when it wrote down an error, in nanoseconds; 0 for never."""
    return {name: _written(Path(config.trainer.default_local_dir) / ERROR_FILE) for name, config in configs.items()}


def _written(file: Path) -> int:
    """In nanoseconds; 0 if there is no file."""
    return file.stat().st_mtime_ns if file.exists() else 0
