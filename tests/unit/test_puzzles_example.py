"""What examples/puzzles/run.sh starts, without starting it."""

import os
import subprocess
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig
from soup_verl.tasks.domains import check_keywords

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("method", "mixing"), [("soup", True), ("grpo", False)])
def test_the_run_passes_every_check(tmp_path, method, mixing):
    given = {
        **os.environ,
        "PYTHON": "echo",
        "OUT": str(tmp_path),
        "METHOD": method,
        "TASK": "gcd",
        "SET": "max_value=9",
    }
    command = ["bash", str(ROOT / "examples/puzzles/run.sh"), "trainer.total_training_steps=3"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train, test, teach, start = done.stdout.splitlines()
    assert train.endswith(
        f"--dataset reasoning-gym:gcd --size 64 --out {tmp_path}/data --template tiny --set max_value=9"
    )
    assert "reasoning-gym:gcd-test --size 32" in test and f"{tmp_path}/data/reasoning-gym-gcd.parquet" in teach
    with hydra.initialize_config_dir(str(ROOT / "recipe/soup/config"), version_base=None):
        config = hydra.compose("soup_trainer", overrides=[o for o in start.split()[2:] if not o.startswith("hydra.")])
    config = OmegaConf.to_container(config, resolve=True)
    soup = SoupConfig.parse(config["soup"])
    check_run(soup, config)
    assert soup.mixing is mixing and config["trainer"]["total_training_steps"] == 3
    assert config["data"]["val_files"] == f"{tmp_path}/data/reasoning-gym-gcd-test.parquet"
    check_keywords(config["reward"]["custom_reward_function"]["reward_kwargs"])
