"""Bad input ends a run before or at its first step: one clear line, exit code not 0, no process left."""

import subprocess

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from soup_verl.stack import checkpoint
from tests.e2e.launch import LIMIT, ROOT, command, survivors


@pytest.mark.runs("reward_raises")
def test_a_reward_function_that_raises(run):
    failed = run("reward_raises")
    assert failed.code == 1
    last = failed.output.strip().splitlines()[-1]
    assert last.startswith("error: SessionsFailed: 32 responses failed at step 1; first: ")
    assert "no such column: gold" in last
    assert survivors(failed.folder.parent) == []


@pytest.mark.runs("reward_is_nan")
def test_a_reward_function_that_returns_nan(run):
    failed = run("reward_is_nan")
    assert failed.code == 1
    last = failed.output.strip().splitlines()[-1]
    assert "the reward function returned nan for a response to prompt index=" in last
    assert survivors(failed.folder.parent) == []


@pytest.mark.runs("gradient_overflow")
def test_a_gradient_that_is_not_finite_never_reaches_the_weights_and_ends_the_run(run):
    """Finite rewards of up to 2e38; the second step in a row is one too many."""
    failed = run("gradient_overflow")
    assert failed.code == 1
    assert "error: GradientsNotFinite: the gradient was not finite at step 2" in failed.output
    assert failed.metrics()[1]["soup/skipped_updates_total"] == 1
    start = load_file(failed.folder.parents[1] / "assets" / "model" / "model.safetensors")
    for name, tensor in failed.weights(1).items():
        assert torch.equal(tensor, start[name]), name


@pytest.mark.runs("disk_full")
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before_it(run):
    failed = run("disk_full")
    if failed is None:
        pytest.skip("no file system may be mounted here")
    assert failed.code == 1
    last = failed.output.strip().splitlines()[-1]
    assert last.startswith("error: CheckpointNotWritten: ") and "GB are free on its disk" in last
    assert "global_step_2" in last
    newest, refused = checkpoint.newest_intact(failed.folder)
    assert newest == failed.folder / "global_step_1" and len(refused) == 1


def refused(assets, folder, *overrides):
    """The last line of a run that must be refused before Ray starts."""
    ended = subprocess.run(
        command(assets, folder, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert ended.returncode != 0
    assert "Started a local Ray instance" not in ended.stdout + ended.stderr
    return ended.stderr.strip()


def test_unknown_key(made_assets, folder):
    assert "soup.mixd_fraction" in refused(made_assets, folder / "key", "soup.mixd_fraction=0.5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("soup.mixed_fraction=1.5", "soup.mixed_fraction=1.5: expected a number from 0 to 1"),
        ("actor_rollout_ref.model.path=/no/such/model", "actor_rollout_ref.model.path='/no/such/model': expected"),
    ],
)
def test_bad_values(made_assets, folder, override, message):
    last = refused(made_assets, folder / "value", override).splitlines()[-1]
    assert last.startswith(f"error: ConfigError: {message}"), last


def test_parquet_without_prompt(made_assets, folder):
    broken = folder / "broken.parquet"
    pd.read_parquet(made_assets / "train.parquet").drop(columns="prompt").to_parquet(broken)
    last = refused(made_assets, folder / "parquet", f"data.train_files={broken}").splitlines()[-1]
    assert "data.train_files=" in last and "the column 'prompt'" in last
