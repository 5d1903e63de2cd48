"""The files in examples/sweeps, and what Hydra refuses."""

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmarks.grid import GRID, read_grid, read_points
from recipe.soup.main_series import compose
from recipe.soup.sweep import RECIPE
from soup_verl.launch.run_rules import check_run
from soup_verl.launch.series import can_share
from soup_verl.method.config import SoupConfig
from soup_verl.sweeping import SweepError, plan
from tests.unit.fake_commands import FakeCommands
from tests.unit.preflight_files import ROOT, script_settings

FILES = sorted((ROOT / "examples" / "sweeps").glob("*.yaml"))


def runs_of(file):
    return list(plan.read(file).runs())


@pytest.mark.e2e  # Hydra takes a second a run
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_seed_composes_passes_every_check_and_shares_the_first_ones_processes(file):
    runs = runs_of(file)
    first, *others = plan.composed([run for run in runs if run.seed == runs[0].seed], RECIPE.compose).values()
    for config in (first, *others):
        plain = OmegaConf.to_container(config, resolve=True)
        check_run(SoupConfig.parse(plain["soup"]), plain)
    assert others and all(can_share(first, other) for other in others)


@pytest.mark.e2e
def test_runs_that_differ_in_their_seed_alone_share_processes_and_have_it_everywhere():
    first, *_, last = runs_of(ROOT / "examples/sweeps/quickstart.yaml")
    a, b = plan.composed([first, last], compose).values()
    assert can_share(a, b)
    assert [OmegaConf.select(b, key) for key in plan.SEEDS] == [2] * len(plan.SEEDS)


def test_the_gpu_example_is_the_run_script_less_names():
    printed = script_settings("run_qwen2.5_math_7b.sh")
    named = ("trainer.experiment_name=", "trainer.default_local_dir=")
    sweep = plan.read(ROOT / "examples/sweeps/qwen2.5_math_7b.yaml")
    assert sweep.shared == [setting for setting in printed if not setting.startswith(named)]


def test_the_hard_example_is_the_laptops_run_script_but_for_what_it_says():
    dry = subprocess.run(
        ["bash", str(ROOT / "examples/smollm2_135m/run.sh")],
        env={**os.environ, "DRY_RUN": "1", "DTYPE": "fp32", "OUT": "runs/smollm2_hard", "PROMPTS": "4", "STEPS": "50"},
        capture_output=True,
        text=True,
        check=True,
    )
    sweep = plan.read(ROOT / "examples/sweeps/smollm2_hard.yaml")
    printed, shared = (dict(line.split("=", 1) for line in lines) for lines in (dry.stdout.splitlines(), sweep.shared))
    named = {"trainer.experiment_name", "trainer.default_local_dir"}
    assert {key for key in printed.keys() - shared if not key.startswith("soup.")} == named
    changed = {key for key, value in shared.items() if printed.get(key) != value}
    seldom = {"trainer.test_freq", "trainer.save_freq", "trainer.max_actor_ckpt_to_keep", "trainer.val_before_train"}
    assert changed == seldom | {"actor_rollout_ref.rollout.val_kwargs.n"}


def test_its_replay_is_the_grids_point_that_was_confirmed_where_right_answers_are_rare():
    sweep = plan.read(ROOT / "examples/sweeps/smollm2_hard.yaml")
    (point,) = (point for point in read_points(GRID, "hard_text") if point.name == "replay_best_cut_dr_grpo/0.5")
    assert read_grid(GRID)["methods"][point.method]["neighbor"] == "dr_grpo"
    of_grid = [f"{key}={value}" for key, value in point.settings.items() if key.startswith("soup.")]
    assert sorted(sweep.methods["replay"]) == sorted(["neighbors=dr_grpo", *of_grid])


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("soup.lookahed.age=1", r"Could not override 'soup.lookahed.age'.*Did you mean soup.lookahead.age\?$"),
        ("neighbors=dap", "Could not find 'neighbors/dap'.*dapo"),
        ("soup.qqqqqqqqqqqqq=1", r"There is no such key\.$"),
        ("soup.when", "Error parsing override 'soup.when'"),
        ("trainer.test_freq=[1", "no viable alternative at input"),
        ("trainer.test_freq=${nothing}", "Interpolation key 'nothing' not found"),
    ],
)
def test_an_override_that_does_not_exist_is_refused_with_the_runs_name(tmp_path, override, said):
    (run,) = plan.Sweep(str(tmp_path), [0], "a", {"a": [override]}).runs()
    with pytest.raises(SweepError, match=rf"^a-s0: .*{said}"):
        plan.composed([run], compose)


def test_the_run_script_of_a_job_takes_nodes_and_gpus_from_it(tmp_path):
    commands = FakeCommands(tmp_path / "bin")
    commands.add("python", "exit 3")
    script = RECIPE.scripts[1]
    done = subprocess.run(
        ["bash", script, "trainer.nnodes=1", "a=[b, c]"], env=commands.environment(NNODES="2", GPUS="8"), check=False
    )
    assert done.returncode == 3
    expected = "python -m recipe.soup.main_soup trainer.nnodes=1 a=[b, c] trainer.nnodes=2 trainer.n_gpus_per_node=8"
    assert commands.calls() == [expected]
    assert all(Path(file).is_file() for file in RECIPE.scripts)
