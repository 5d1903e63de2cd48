import os
from pathlib import Path

import pytest

from soup_verl.launch.preflight.provenance import CONFIG_FILE, RUN_FILE
from soup_verl.launch.run import ERROR_FILE
from soup_verl.method.checks import ConfigError
from soup_verl.sweeping import states
from tests.unit.reporting.folders import write_run
from tests.unit.sweeping.runs import compose, finish


def config(folder, *overrides):
    return compose([*overrides, "data.seed=1", f"trainer.default_local_dir={folder}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("soup.source=replay", "soup.source='replay': expected 'lookahead', as in .*run, which has finished. Rename"),
        ("actor_rollout_ref.actor.optim.lr=2e-6", "actor_rollout_ref.actor.optim.lr=2e-06: expected 1e-06, as in"),
        ("trainer.total_training_steps=8", "trainer.total_training_steps=8: expected 4"),
        ("data.train_files=[b.parquet]", r"data.train_files=\['b.parquet'\]: expected 'a.parquet'"),
    ],
)
def test_a_finished_run_with_other_settings_is_refused(tmp_path, override, said):
    finish(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"^{said}"):
        states.check_unchanged({"run": config(tmp_path / "run", override)})


@pytest.mark.parametrize("override", ["trainer.nnodes=4", "trainer.experiment_name=other", "soup.mixed_fraction=0.50"])
def test_another_machine_another_name_and_another_spelling_are_no_other_settings(tmp_path, override):
    finish(config(tmp_path / "run"))
    states.check_unchanged({"run": config(tmp_path / "run", override)})


def test_a_run_that_has_not_finished_is_left_to_the_checks_of_its_resume(tmp_path):
    made = config(tmp_path / "run")
    finish(made)
    (tmp_path / "run" / "finished.json").unlink()
    assert (tmp_path / "run" / CONFIG_FILE).exists()
    states.check_unchanged({"run": config(tmp_path / "run", "soup.source=replay")})


def at(file: Path, seconds: int) -> None:
    os.utime(file, (seconds, seconds))


def test_what_is_said_of_a_run(tmp_path):
    assert states.of(tmp_path / "run") == "not begun"
    (tmp_path / "run").mkdir()
    assert states.of(tmp_path / "run") == "not begun"
    (tmp_path / "run").rmdir()
    run = write_run(tmp_path / "run", metrics={"a": [1.0, 2.0, 3.0]})
    assert states.of(run) == "3 steps made"
    (run / ERROR_FILE).write_text("Traceback\n  ..\na.module.TornCheckpoint: x: y: z\n")
    at(run / RUN_FILE, 100), at(run / ERROR_FILE, 200)
    assert states.of(run) == "TornCheckpoint: x: y: z"
    at(run / RUN_FILE, 300)  # it has begun again since
    assert states.of(run) == "3 steps made"
    (run / "metrics.jsonl").unlink()
    assert states.of(run) == "no step made"
