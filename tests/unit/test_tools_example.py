"""What examples/tools/run.sh starts, without starting it."""

import os
import subprocess
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig

ROOT = Path(__file__).parents[2]


def settings(tmp_path, example="tools", **environment):
    """The configuration of the run: a stand-in for Python prints what it is asked to do."""
    given = {**os.environ, "PYTHON": "echo", "OUT": str(tmp_path), **environment}
    command = ["bash", str(ROOT / "examples" / example / "run.sh"), "trainer.total_training_steps=3"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    teach, start = done.stdout.splitlines()
    assert teach.startswith(f"examples/{example}/teach.py") and start.startswith("-m recipe.soup.main_soup ")
    with hydra.initialize_config_dir(str(ROOT / "recipe/soup/config"), version_base=None):
        config = hydra.compose("soup_trainer", overrides=[o for o in start.split()[2:] if not o.startswith("hydra.")])
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("environment", [{}, {"SOURCE": "lookahead"}, {"SOURCE": "snapshot"}, {"METHOD": "grpo"}])
def test_the_run_passes_every_check(tmp_path, environment):
    config = settings(tmp_path, **environment)
    soup = SoupConfig.parse(config["soup"])
    check_run(soup, config)
    assert soup.mixing is ("METHOD" not in environment) and soup.source == environment.get("SOURCE", "replay")
    assert config["trainer"]["total_training_steps"] == 3
    tool = ROOT / config["actor_rollout_ref"]["rollout"]["multi_turn"]["function_tool_path"]
    assert "def calculate(" in tool.read_text()


def test_what_it_does_not_know_is_refused(tmp_path):
    given = {**os.environ, "PYTHON": "echo", "METHOD": "ppo", "OUT": str(tmp_path)}
    command = ["bash", str(ROOT / "examples/tools/run.sh")]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "run.sh: METHOD=ppo: expected soup or grpo\n"
