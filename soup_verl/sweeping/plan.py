"""What the file of a sweep asks for, as runs: methods x settings x seeds, each with a name, a folder and overrides."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from soup_verl.launch.overrides import REFUSED, Compose, reason
from soup_verl.method.checks import is_int, parse_section, require, require_one_of
from soup_verl.sweeping import SweepError

SEEDS = (
    "data.seed",  # the order of the prompts
    "soup.seed",  # the mixing plan, and draws between equals
    "soup.sampling_seed",  # every request to the rollout engine
    "actor_rollout_ref.actor.data_loader_seed",  # mini-batches, where actor.shuffle has them drawn
)
"""The keys that take a run's seed. All of them can be taken up by processes that run already."""
NO_SAMPLING_SEED = "soup.sampling_seed=null"
"""The one override of a seed that a file may have: sampling is left to the engine."""
OF_THE_SWEEP = (*SEEDS, "trainer.default_local_dir", "trainer.experiment_name")


@dataclass(frozen=True)
class Run:
    """One method under one choice of settings with one seed.

    Args:
        name: of its folder in the sweep's `out`.
        settings: key and value, as text, of each key of the sweep's `settings`.
        own: overrides besides the shared ones and the names.
        overrides: all of them, in the order in which later ones win.
    """

    name: str
    folder: Path
    method: str
    settings: tuple[tuple[str, str], ...]
    seed: int
    own: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def line(self) -> str:
        """What its row of the table is called: runs that differ in the seed alone have one."""
        return " ".join([self.method, *(f"{_last(key)}={value}" for key, value in self.settings)])


@dataclass(frozen=True)
class Sweep:
    """The file, checked. docs/sweep.md has its keys.

    Raises:
        ConfigError: names the key, the value, what is expected and what to do.
    """

    out: str = ""
    seeds: list = field(default_factory=list)
    baseline: str = ""
    methods: dict = field(default_factory=dict)
    shared: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    slurm: list = field(default_factory=list)

    def __post_init__(self) -> None:
        require(bool(self.out), "sweep.out", self.out, "the folder of the runs' folders")
        require(bool(self.seeds), "sweep.seeds", self.seeds, "at least one seed, such as [0, 1, 2]")
        for seed in self.seeds:
            require(is_int(seed) and seed >= 0, "sweep.seeds", self.seeds, "integers of at least 0")
        require(len(set(self.seeds)) == len(self.seeds), "sweep.seeds", self.seeds, "every seed once")
        require(bool(self.methods), "sweep.methods", self.methods, "at least one name with its overrides")
        for name, overrides in self.methods.items():
            plain = isinstance(name, str) and bool(re.fullmatch(r"\w[\w.-]*", name))
            require(plain, "sweep.methods", name, "a name of letters, digits, '.', '_' and '-'", "Put it in quotes.")
            _check_overrides(f"sweep.methods.{name}", overrides)
        require_one_of("sweep.baseline", self.baseline, self.methods)
        _check_overrides("sweep.shared", self.shared)
        for key, values in self.settings.items():
            _check_choices(f"sweep.settings.{key}", values)
            _check_overrides("sweep.settings", [f"{key}={_text(value)}" for value in values])
        options = all(isinstance(option, str) and option.startswith("-") for option in self.slurm)
        require(options, "sweep.slurm", self.slurm, "options of sbatch, such as --time=24:00:00")
        names = [run.name for run in self.runs()]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, "sweep", twice, "a name of its own for every run", "Rename a method.")

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that what is there of a sweep that goes on can be paired."""
        choices = [[(key, _text(value)) for value in values] for key, values in self.settings.items()]
        for seed, settings, method in itertools.product(self.seeds, itertools.product(*choices), self.methods):
            yield self._run(method, settings, seed)

    def _run(self, method: str, settings: tuple[tuple[str, str], ...], seed: int) -> Run:
        labels = (re.sub(r"[^\w.-]+", "_", f"{_last(key)}-{value}") for key, value in settings)
        name = "-".join([method, *labels, f"s{seed}"])
        folder = Path(self.out) / name
        seeds = [f"{key}={seed}" for key in SEEDS]
        if NO_SAMPLING_SEED in (*self.shared, *self.methods[method]):
            seeds.remove(f"soup.sampling_seed={seed}")
        own = (*seeds, *self.methods[method], *(f"{key}={value}" for key, value in settings))
        named = (f"trainer.experiment_name={name}", f"trainer.default_local_dir={folder}")
        return Run(name, folder, method, settings, seed, own, (*self.shared, *own, *named))


def read(file: Path) -> Sweep:
    """The sweep in a YAML file.

    Raises:
        SweepError: it is no YAML, or says a key twice.
        ConfigError: a value of it cannot work.
    """
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(file))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SweepError(f"{line}{error.problem}: expected YAML that says every key once") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise SweepError(f"expected YAML: {error}") from None
    return parse_section(Sweep, found, "sweep")


def composed(runs: Sequence[Run], compose: Compose) -> dict[str, DictConfig]:
    """Run's name -> its configuration, in order.

    Raises:
        SweepError: an override that does not exist, or is none; says Hydra's reason. Two methods with equal settings.
    """
    configs = {run.name: _composed(run, compose) for run in runs}
    methods: dict[tuple[int, str], str] = {}
    for run in runs:
        first = methods.setdefault((run.seed, _content(configs[run.name])), run.method)
        if first != run.method:
            raise SweepError(
                f"methods {first} and {run.method}: expected settings that differ (a KEY=VALUE of shared wins over a "
                "file of ablations= or neighbors=)"
            )
    return configs


def _content(config: DictConfig) -> str:
    """Of a run's configuration but its names."""
    plain: Any = OmegaConf.to_container(config)
    trainer = {key: value for key, value in plain["trainer"].items() if f"trainer.{key}" not in OF_THE_SWEEP}
    return json.dumps(plain | {"trainer": trainer}, sort_keys=True, default=str)


def _composed(run: Run, compose: Compose) -> DictConfig:
    try:
        config = compose(run.overrides)
        OmegaConf.to_container(config, resolve=True)
    except REFUSED as error:
        raise SweepError(f"{run.name}: {reason(error, compose)}") from None
    return config


def _check_overrides(key: str, overrides: Any) -> None:
    require(isinstance(overrides, list), key, overrides, "a list of overrides, [] for none")
    for override in overrides:
        require(isinstance(override, str), key, override, "an override as text, KEY=VALUE")
        given = override.partition("=")[0].lstrip("+~")
        free = given not in OF_THE_SWEEP or override == NO_SAMPLING_SEED
        require(free, key, override, "no key that the sweep sets itself: the runs' names, folders and seeds")


def _check_choices(key: str, values: Any) -> None:
    require(isinstance(values, list) and bool(values), key, values, "a list of values, at least one")
    for value in values:
        require(not isinstance(value, dict), key, value, "a value, or a list of values")


def _text(value: Any) -> str:
    """As an override has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _last(key: str) -> str:
    return key.rpartition(".")[2].rpartition("/")[2]
