"""Preflight: what a run needs against what there is, in seconds and without touching weights, before Ray starts.

start                 writes config.yaml and run.json, shows the report, refuses what is certain to fail
  look_at_model       configuration, parameter count, tokenizer, chat template      -> model.py
  look_at_data        columns, every row, rendered prompts, steps                   -> data, files, rows,
                                                                                       images, prompts
  gold_findings       the reward function, called on golds                          -> golds.py
  report              those two, and versions, GPUs, batches, tokens, loggers,      -> provenance, layout, loggers,
                      memory, disk                                                     memory
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from soup_verl.launch.preflight.data import Data, look_at_data
from soup_verl.launch.preflight.golds import gold_findings
from soup_verl.launch.preflight.hardware import Hardware
from soup_verl.launch.preflight.layout import batch_findings, gpu_findings, token_findings, verl_findings
from soup_verl.launch.preflight.loggers import logger_findings
from soup_verl.launch.preflight.memory import disk_findings, memory_findings
from soup_verl.launch.preflight.model import Model, look_at_model
from soup_verl.launch.preflight.provenance import version_findings, write_run
from soup_verl.launch.preflight.report import Report
from soup_verl.launch.preflight.run_settings import RunSettings

__all__ = [
    "Data",
    "Hardware",
    "Model",
    "Report",
    "RunSettings",
    "gold_findings",
    "look_at_data",
    "look_at_model",
    "preflight",
    "report",
    "settings_of",
    "start",
]


def start(config: DictConfig) -> None:
    """Preflight of a run on this machine, on stdout and in `trainer.default_local_dir`.

    Raises:
        ValueError: something is certain to fail; names the key.
    """
    folder = Path(config.trainer.default_local_dir)
    write_run(config, folder)
    found = preflight(config, Hardware.detect(folder))
    found.write(folder)
    found.show()
    found.raise_if_refused()


def preflight(config: DictConfig, hardware: Hardware) -> Report:
    """Look at the files that `config` names, and compare the run with `hardware`."""
    started = time.monotonic()
    run = settings_of(config)
    model = look_at_model(run)
    data = look_at_data(run, model.tokenizer, model.model_type, model.processor)
    data = replace(data, findings=[*data.findings, *gold_findings(run, data.splits)])
    found = report(config, run, hardware, model, data)
    return Report(found.findings, found.prompts, time.monotonic() - started)


def report(config: DictConfig, run: RunSettings, hardware: Hardware, model: Model, data: Data) -> Report:
    """The findings of a run whose files were looked at already; `run` is what `settings_of` makes of `config`."""
    findings = [
        *version_findings("cpu" if run.on_cpu else "gpu"),
        *model.findings,
        *data.findings,
        *gpu_findings(run, hardware, model.shape),
        *batch_findings(run),
        *token_findings(run),
        *verl_findings(config),
        *logger_findings(run),
    ]
    if model.shape is not None:
        findings += memory_findings(run, hardware, model.shape)
        findings += disk_findings(run, hardware, model.shape, data.steps)
    return Report(findings, data.prompts)


def settings_of(config: DictConfig) -> RunSettings:
    """The resolved settings of a run."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return RunSettings.parse(plain)
