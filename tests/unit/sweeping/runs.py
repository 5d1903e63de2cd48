"""Sweeps without Hydra and without a trainer: configurations from overrides, and runs that only leave their files."""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from soup_verl.launch import run
from soup_verl.launch.finished import FINISHED, end_asked_for
from soup_verl.launch.preflight.provenance import write_run
from soup_verl.records import run_log
from tests.unit.launch.test_series import BASE

METRIC = "val-core/sums/acc/mean@2"


def compose(overrides):
    """What Hydra would make of them, by dotted keys alone."""
    config = OmegaConf.merge(BASE, {"trainer": {"test_value": None}, "data": {"train_files": "a.parquet"}})
    return OmegaConf.merge(config, OmegaConf.from_dotlist([o for o in overrides if o != "platform=cpu"]))


def value_of(config):
    """What the run's last validation finds: .5 and a tenth a seed, and what the method adds."""
    return 0.5 + config.data.seed / 10 + (config.trainer.test_value or 0)


def finish(config, value=None):
    """The files of a run that came to its end."""
    folder = Path(config.trainer.default_local_dir)
    write_run(config, folder)
    steps = [(2, 0.0), (4, value_of(config) if value is None else value)]
    lines = [json.dumps({"step": step, "data": {METRIC: found}}) for step, found in steps]
    (folder / run_log.FILE).write_text("\n".join(lines) + "\n")
    (folder / FINISHED).write_text(json.dumps({"steps": 4, "asked": end_asked_for(config)}))


def begin(configs):
    """As `run_series`: finishes one after the other, and ends with the first whose `trainer.fails` says so."""
    for config in configs:
        if config.trainer.get("fails"):
            folder = Path(config.trainer.default_local_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / run.ERROR_FILE).write_text("Traceback ..\nsome.module.DiskFull: no room\n")
            sys.exit(1)
        finish(config)
        with (Path(config.trainer.default_local_dir).parent / "order.txt").open("a") as file:
            file.write(f"{config.trainer.experiment_name}\n")
