"""The stages of a rehearsal up to the start of the small run; the run itself and what follows are in `run_stages`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from soup_verl.launch import preflight
from soup_verl.rehearsal import overrides as changes
from soup_verl.rehearsal.data import Places, Preparation, as_list, few_rows, longest_prompt, make
from soup_verl.rehearsal.record import Record, Stage, override_lines
from soup_verl.rehearsal.run_stages import Expected, RunStages, SmallRun
from soup_verl.tasks.context_window import local_model
from soup_verl.tasks.shrink_model import HIDDEN, write_shrunk

STEPS = ("settings", "model", "data", "overrides", "preflight", "validation", "training")
ALL = (*STEPS, "kill", "resume", "evaluation", "report")
GPUS = preflight.Hardware(gpus=8, gpu_bytes=80 << 30, host_bytes=1 << 40, disk_bytes=10 << 40, described=True)
"""What the script's own settings are looked at with; no more than estimates depend on it."""
MODEL_KEY = "actor_rollout_ref.model.path"
PLATFORMS = Path("recipe/soup/config/platform")


def compose(settings: Sequence[str]) -> DictConfig:
    """The configuration of a command line.

    Raises:
        hydra.errors.HydraException: a key that there is not, or a value that cannot be read.
    """
    from recipe.soup.main_series import compose as of_recipe

    return of_recipe(settings)


class Rehearsal:
    """One rehearsal: what its stages find out, and the processes they start.

    Args:
        record: its folder, the script's settings, and the stages to go through.
        model: as the script names it.
        data_dir: the script's folder of prepared data.
        made: the script's own commands that make data and a model's copy.
    """

    def __init__(self, record: Record, model: str, data_dir: str, made: Sequence[Preparation]):
        self._record, self._folder = record, record.folder
        self._model_name, self._data_dir, self._made = model, data_dir, made
        # A second `platform=` would not be taken.
        self._script = [argument for argument in record.script if not argument.startswith("platform=")]
        self._small = SmallRun(self._folder)
        self._stages = {
            "settings": self._settings,
            "model": self._model,
            "data": self._data,
            "overrides": self._overrides,
            "preflight": self._preflight,
            **RunStages(self._small, whole=not record.asks_for("kill")).all,
        }

    def run(self) -> None:
        """
        Raises:
            Exception: what ended a stage; the record has it.
        """
        for name, run in self._stages.items():
            if self._record.asks_for(name):
                with self._record.stage(name) as stage:
                    run(stage)

    def end(self) -> None:
        """End every process that it started."""
        self._small.processes.end_all()

    def _settings(self, stage: Stage) -> None:
        """The script's own command is one that Hydra takes."""
        self._config = compose(self._script)
        self._own = preflight.settings_of(self._config)
        stage.seen = f"{len(self._script)} arguments of the script's own"

    def _model(self, stage: Stage) -> None:
        """The copy that the script trains; its tokenizer; the small copy of it."""
        description = local_model(self._model_name, weights=False)
        self._places = Places(self._data_dir, self._folder, self._model_name, description)
        for preparation in self._made:
            if not preparation.is_data:
                make(preparation, self._places)
        whole = Path(self._places.find(str(self._own.get(MODEL_KEY))))
        OmegaConf.update(self._config, MODEL_KEY, str(whole))
        self._looked_at = preflight.look_at_model(preflight.settings_of(self._config))
        preflight.Report(self._looked_at.findings).raise_if_refused()
        parameters = write_shrunk(whole, self._folder / "model")
        config = json.loads((self._folder / "model" / "config.json").read_text())
        self._vocab = config["vocab_size"]
        stage.seen = f"{config['architectures'][0]} made small: {parameters:,} parameters, vocabulary {self._vocab:,}"

    def _data(self, stage: Stage) -> None:
        """Each file by the script's own command, unless it is there; of each a few rows."""
        ours = [p.file for p in self._made if p.is_data and make(p, self._places)]
        self._stands_in = any(file in ours for file in as_list(self._own.get("data.train_files")))
        for split in ("train", "val"):
            files = [self._places.find(file) for file in as_list(self._own.get(f"data.{split}_files"))]
            OmegaConf.update(self._config, f"data.{split}_files", files)
        train, val = as_list(self._config.data.train_files), as_list(self._config.data.val_files)
        rows = changes.PROMPTS * changes.batches(self._own)
        few = partial(few_rows, prompt_key=self._own.get("data.prompt_key", "prompt"))
        self._train = few(train, -(-rows // len(train)), self._folder / "rows" / "train")
        self._val = few(val, changes.VALIDATION_ROWS, self._folder / "rows" / "val")
        stage.seen = (
            f"{len(train)} training and {len(val)} validation files, {len(ours)} of them made from our own rows"
        )

    def _overrides(self, stage: Stage) -> None:
        """All that differs from the script's own command."""
        few: Any = OmegaConf.to_container(self._config, resolve=True)
        few["data"] |= {"train_files": self._train, "val_files": self._val}
        run = preflight.RunSettings.parse(few)
        self._plan = changes.plan(run, changes.batches(run))
        tokens = longest_prompt(run, self._looked_at)
        gpu, cpu = (yaml.safe_load((PLATFORMS / f"{name}.yaml").read_text()) for name in ("gpu", "cpu"))
        wanted = {
            "platform": "cpu",
            **changes.as_on_gpu(run, gpu),
            **changes.sizes(run, self._plan, prompt_tokens=tokens, vocab=self._vocab, hidden=HIDDEN),
            **changes.places(run, self._folder, model=self._folder / "model", train=self._train, val=self._val),
            **changes.not_exercised(run),
        }
        self._record.overrides = wanted
        composed = compose([*self._script, *self._record.assignments()])
        wanted |= changes.hidden_settings(cpu, preflight.settings_of(composed), decided=wanted)
        own = {key: self._own.get(key) for key in wanted} | {"platform": "gpu"}
        differing = {key: value for key, value in wanted.items() if own[key] != value}
        stage.seen = f"{len(differing)} settings, and nothing else, differ from the script's own command:"
        if waiting := changes.not_exercised(run):
            stage.seen = f"not exercised, because a random model solves nothing: {', '.join(waiting)}; {stage.seen}"
        stage.details = override_lines(differing, own)

    def _preflight(self, stage: Stage) -> None:
        """The script's own settings, for GPUs; then those of the small run, by the run itself."""
        whole = preflight.settings_of(self._config)
        model = self._looked_at
        data = preflight.look_at_data(self._with_enough_rows(whole), model.tokenizer, model.model_type, model.processor)
        report = preflight.report(self._config, whole, GPUS, model, data)
        report.write(self._folder)
        report.raise_if_refused()
        masked = max(0.0, 1 - len(model.tokenizer) / self._vocab)
        expected = Expected(self._plan, self._own, self._val, masked)
        self._small.begin([*self._script, *self._record.assignments()], expected)
        found = self._small.preflight()
        stage.seen = (
            f"none of {len(report.findings)} findings on the script's own settings refuses them, "
            f"none of {len(found)} on the small run's"
        )

    def _with_enough_rows(self, whole: preflight.RunSettings) -> preflight.RunSettings:
        """Our own rows, where they stand for the training file, are few: asked for are those of a small step."""
        if not self._stands_in:
            return whole
        return preflight.settings_of(OmegaConf.merge(self._config, {"data": {"train_batch_size": changes.PROMPTS}}))
