"""What a run of the search instrument starts from: its settings, and what `prepare` made of a task."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.update import LossSettings
from soup_verl.reporting.runs import flatten


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run; `result.json` repeats it.

    Args:
        steps, prompts, n: training steps, prompts a step, responses a prompt.
        mini_batches: updates a step (verl's train_batch_size / ppo_mini_batch_size).
        lr, weight_decay, grad_clip: AdamW, verl's defaults but for the learning rate.
        temperature: of sampling in training, and of the log-probs, as in verl; evaluation is always at 1.
        evaluate_every, samples: steps between evaluations, and samples a question in each.
        norm_by_std: divide advantages by the group's standard deviation.
        adv_estimator: one of verl's by its name in place of `soup`; only where nothing is mixed.
        loss: clip ranges, entropy bonus, reference KL, the loss and how it is aggregated.
        soup: SOUP's settings as in its YAML, without `seed`, which is the run's.
    """

    seed: int = 0
    steps: int = 400
    prompts: int = 12
    n: int = 8
    mini_batches: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    temperature: float = 1.0
    evaluate_every: int = 100
    samples: int = 64
    norm_by_std: bool = True
    adv_estimator: str | None = None  # what was added later is None by default: earlier results have no such key
    loss: LossSettings = field(default_factory=LossSettings)
    soup: dict[str, Any] = field(default_factory=lambda: {"mixed_fraction": 0.0})

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "grad_clip", "temperature"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number; YAML reads 1.0e-4, not 1e-4")
        if self.prompts % self.mini_batches:
            raise ValueError(f"mini_batches={self.mini_batches}: expected a divisor of prompts={self.prompts}")
        if self.trained > self.n:
            raise ValueError(f"soup.down_sampling.train_on={self.trained}: expected at most n={self.n}")
        if self.adv_estimator is not None and self.soup["mixed_fraction"] > 0:
            raise ValueError(f"adv_estimator={self.adv_estimator}: expected none with soup.mixed_fraction above 0")

    @property
    def trained(self) -> int:
        """Responses of a prompt that are trained on."""
        return self.soup.get("down_sampling", {}).get("train_on") or self.n


def parse_settings(values: dict[str, Any]) -> RunSettings:
    """Settings from nested mappings.

    Raises:
        ValueError: a key is unknown; SOUP's own keys are checked by `SoupConfig`.
    """
    known = {f.name for f in dataclasses.fields(RunSettings)}
    if unknown := values.keys() - known:
        raise ValueError(f"unknown settings {sorted(unknown)}: expected some of {', '.join(sorted(known))}")
    loss = LossSettings(**values.get("loss", {}))
    soup = {"mixed_fraction": 0.0} | values.get("soup", {})
    return RunSettings(**values | {"loss": loss, "soup": soup})


def check_same(where: Path, made_with: dict[str, Any], settings: RunSettings) -> None:
    """What a run left behind must have been made with the settings that it is wanted for.

    Raises:
        ValueError: it was not; names what differs.
    """
    before, now = flatten(made_with), flatten(json.loads(json.dumps(asdict(settings))))
    if other := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        said = ", ".join(f"{key}={before.get(key)}, now {now.get(key)}" for key in other[:3])
        raise ValueError(f"{where}: made with {said}; choose another --out, or remove what is there")


@dataclass(frozen=True)
class Assets:
    """What `prepare` made of a task; `start` is the untrained model on validation."""

    task: str
    folder: Path
    response_length: int
    tokens: list[str]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    start: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Assets:
        """Raises FileNotFoundError where `prepare` has not finished."""
        report = json.loads((folder / "prepare.json").read_text())
        stored = json.loads((folder / "tokens.json").read_text())
        task, length = report["settings"]["task"], report["max_response_tokens"]
        return cls(task, folder, length, stored["tokens"], stored["train"], stored["val"], report["val"])


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return found
