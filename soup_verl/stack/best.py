"""The best checkpoint of a run by a metric of its validation (`soup.keep_best`), kept beside the newest ones.

`best.json` in the run's folder holds what every checkpoint was judged by, and the link `best` leads to the best one. A
checkpoint is judged by the validation of its own step. Of equals the earlier stays.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from soup_verl.method.checks import ConfigError
from soup_verl.records.files import write_json
from soup_verl.stack import checkpoint

FILE, LINK = "best.json", "best"


class BestCheckpoint:
    """The best so far.

    Args:
        root: the run's folder.
        setting: `soup.keep_best`: the metric's name, a minus before it where less is better.
        step: that the run goes on from, 0 for a new one; checkpoints of later steps are of another history.
    """

    def __init__(self, root: Path, setting: str, step: int):
        self._root, self._setting = root, setting
        self._metric, self._sign = setting.removeprefix("-"), -1 if setting.startswith("-") else 1
        self._values = {s: value for s, value in self._stored().items() if s <= step}
        self._step = self._best()
        self._write()

    @property
    def folder(self) -> Path | None:
        """The best checkpoint; None where there is none yet."""
        return None if self._step is None else self._folder(self._step)

    def judge(self, metrics: Mapping[str, float], step: int) -> None:
        """Take note of a validation, if there is a checkpoint of its step.

        Raises:
            ConfigError: the validation has no such metric.
        """
        if self._metric not in metrics:
            there = sorted(metrics, key=lambda name: (name.startswith("val-aux"), name))  # what people name comes first
            raise ConfigError("soup.keep_best", self._setting, f"one of {', '.join(there)}")
        if not (self._is_there(step) and math.isfinite(metrics[self._metric])):
            return
        self._values[step] = float(metrics[self._metric])
        self._step = self._best()
        self._write()

    def _best(self) -> int | None:
        return max((step for step in self._values if self._is_there(step)), key=self._rank, default=None)

    def _rank(self, step: int) -> tuple[float, int]:
        return self._sign * self._values[step], -step

    def _folder(self, step: int) -> Path:
        return self._root / f"global_step_{step}"

    def _is_there(self, step: int) -> bool:
        """Whether it was written to its end, and verl has not removed it."""
        folder = self._folder(step)
        return (folder / checkpoint.FOLDER / checkpoint.MANIFEST).exists() and (folder / "actor").exists()

    def _stored(self) -> dict[int, float]:
        """What checkpoints were judged by, if by this setting."""
        file = self._root / FILE
        said = json.loads(file.read_text()) if file.exists() else {}
        return {int(s): v for s, v in said["values"].items()} if said.get("keep_best") == self._setting else {}

    def _write(self) -> None:
        if self._step is None:
            for name in (FILE, LINK):
                (self._root / name).unlink(missing_ok=True)
            return
        write_json(self._root / FILE, {"keep_best": self._setting, "step": self._step, "values": self._values})
        partial = self._root / f".{LINK}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(self._folder(self._step).name)
        os.replace(partial, self._root / LINK)
