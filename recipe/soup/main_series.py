"""Train several runs one after the other on one set of processes:

    python -m recipe.soup.main_series --out runs/mine \
        --run grpo soup.mixed_fraction=0 --run soup soup.mixed_fraction=0.5 -- platform=cpu key=value ...

Each run's folder is OUT/NAME. What stands after `--` holds for all of them. A run that has finished is skipped,
one that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig
from soup_verl.launch.overrides import REFUSED, reason
from soup_verl.launch.series import run_series
from soup_verl.tasks.command_line import Parser


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `main_soup` would run with these overrides; `--config-dir=DIR` may come first."""
    folders = [o.partition("=")[2] for o in overrides if o.startswith("--config-dir=")]
    search = ["pkg://verl.trainer.config", *(f"file://{Path(folder).absolute()}" for folder in folders)]
    given = [o for o in overrides if not o.startswith(("--", "hydra."))]
    with hydra.initialize_config_dir(str(Path(__file__).parent / "config"), version_base=None):
        return hydra.compose("soup_trainer", overrides=[f"hydra.searchpath=[{','.join(search)}]", *given])


def main(arguments: Sequence[str]) -> None:
    own, _, shared = (list(part) for part in _partition(arguments))
    parser = Parser(
        prog="python -m recipe.soup.main_series",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--run", nargs="+", action="append", required=True, metavar=("NAME", "KEY=VALUE"))
    given = parser.parse_args(own)
    try:
        configs = [compose(overrides) for overrides in _overrides(given.out, given.run, shared)]
    except REFUSED as error:
        sys.exit(f"error: {reason(error, compose)}")
    run_series(configs)


def _overrides(out: Path, runs: Sequence[Sequence[str]], shared: Sequence[str]) -> list[list[str]]:
    """Of each run; later ones win, so a run's own settings win over shared ones, and its folder is its name's."""
    return [
        [f"trainer.experiment_name={name}", *shared, *own, f"trainer.default_local_dir={out / name}"]
        for name, *own in runs
    ]


def _partition(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place : place + 1], arguments[place + 1 :]


if __name__ == "__main__":
    main(sys.argv[1:])
