"""The files of examples/ablations and examples/neighbors, and a few settings more, composed as on the command line."""

from pathlib import Path

import hydra
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
STEPS = 4  # a setting; with two batches an epoch every source has history for the last two
OWN_RUN = ("neighbors/dapo",)  # dynamic sampling is built into verl's replay buffer when the trainer starts


MORE = {
    "more/warm_start": ["soup.warm_start=true"],  # the run's first steps: the only place where it shows
    "more/suffix": ["soup.source=snapshot", "soup.position=suffix", "soup.prefix_length.high=4"],
}
"""Settings that no example file has."""


def names() -> list[str]:
    """`ablations/age` and so on, in order."""
    files = sorted(p for folder in ("ablations", "neighbors") for p in (ROOT / "examples" / folder).glob("*.yaml"))
    return [f"{p.parent.name}/{p.stem}" for p in files]


def in_one_run() -> list[str]:
    """Those that the sweep takes, in its order."""
    return [*MORE, *(name for name in names() if name not in OWN_RUN)]


def for_cpu(name: str, overrides: list[str]) -> list[str]:
    """The overrides of the run, less the age where age is the factor."""
    return [o for o in overrides if not (name == "ablations/age" and o.startswith("soup.lookahead.age"))]


def compose(name: str | None, overrides: list[str]) -> dict:
    """The configuration that the command line `overrides` and one example file give."""
    extra = MORE.get(name, [name.replace("/", "=")]) if name else []
    search = "hydra.searchpath=[pkg://verl.trainer.config,file://" + str(ROOT / "examples") + "]"
    given = [o for o in overrides if not o.startswith("hydra.")]
    with hydra.initialize_config_dir(str(ROOT / "recipe/soup/config"), version_base=None):
        config = hydra.compose("soup_trainer", overrides=[search, *given, *extra])
    return OmegaConf.to_container(config, resolve=True)


def differences(a: dict, b: dict, path: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y, f"{path}{key}.")
        elif x != y:
            found.append(f"{path}{key}")
    return found
