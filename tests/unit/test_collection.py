"""recipe/soup as a folder of verl's recipe collection, which verl mounts at `recipe/` of its checkout: the files that
are asked of a recipe there, and their linter. tests/e2e/test_distribution.py runs it there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.preflight_files import script_settings

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipe" / "soup"
README = (RECIPE / "README.md").read_text()
(VERL,) = re.findall(r'^VERL = "(.+)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
RUFF = """
line-length = 120
target-version = "py310"
[lint]
isort = {known-first-party = ["verl"]}
select = ["E", "F", "UP", "B", "I", "G"]
ignore = ["F405", "F403", "E731", "B007", "UP032", "G004", "UP045", "UP035"]
"""
"""The collection's settings, of August 2026."""


@pytest.fixture
def mounted(tmp_path):
    """A checkout of verl, as far as a recipe sees it: `recipe/soup` below its root."""
    shutil.copytree(RECIPE, tmp_path / "verl/recipe/soup", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "verl"


def test_the_required_verl_is_the_pinned_one():
    lines = (RECIPE / "REQUIRED_VERL.txt").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert given.pop("NOTES").count(f"verl=={VERL}") == 1
    assert given == {
        "UPSTREAM": "https://github.com/verl-project/verl.git",
        "MODE": "pinned_tag",
        "TAG": f"v{VERL}",
        "PIP_INSTALL": f"pip install verl=={VERL}",
    }


def test_the_notes_name_what_is_pinned_besides():
    notes = (RECIPE / "REQUIRED_VERL.txt").read_text()
    pins = dict(re.findall(r'"([\w-]+)(?:\[[\w,-]+\])?==([\d.]+)"', (ROOT / "setup.py").read_text()))
    for name in ("ray", "tensordict", "TransferQueue"):
        assert f"{name}=={pins[name]}" in notes


def test_the_readme_opens_with_the_required_version_the_papers_badge_and_its_citation():
    first, second, *_ = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert (first, second) == ("Required `verl` version", "Citation")
    opening = README.partition("## Citation")[0]
    assert f"verl {VERL}, exactly" in opening
    assert "[`REQUIRED_VERL.txt`](REQUIRED_VERL.txt)" in opening
    paper = "arxiv.org/abs/2601.21476"
    assert re.search(rf"\(https://img.shields.io/badge/arXiv-2601.21476-\S+\)\]\(https://{paper}\)", opening)
    assert re.search(r"```bibtex\n@misc\{\w+,\n(  \w+=\{.+\},?\n)+\}\n```", README)


def test_the_readme_needs_nothing_outside_of_the_recipes_folder():
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", README) if "://" not in link]
    assert links and all((RECIPE / link).resolve().is_relative_to(RECIPE) for link in links)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    assert len(commands) > 10
    assert [line for line in commands if re.search(r"\b(scripts|examples|docs|benchmarks|tests)/", line)] == []


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_collections_ruff_finds_nothing(mounted, command):
    (mounted / "recipe" / "ruff.toml").write_text(RUFF)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "recipe"], cwd=mounted, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr  # such as of a setting that this ruff does not know


def test_the_collections_ruff_does_look_at_the_recipe(mounted):
    (mounted / "recipe" / "ruff.toml").write_text(RUFF)
    (mounted / "recipe" / "soup" / "main_soup.py").open("a").write("import colorsys\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "recipe"]
    done = subprocess.run(command, cwd=mounted, capture_output=True, text=True)
    assert done.returncode == 1 and "F401" in done.stdout


@pytest.mark.parametrize("script", ["run_qwen2.5_math_7b.sh", "run_r1_distill_qwen_1.5b_snapshot.sh"])
def test_a_run_script_gives_the_same_command_there(mounted, script):
    environment = {**os.environ, "DRY_RUN": "1"}
    command = ["bash", str(mounted / "recipe/soup" / script), "ablations=age"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines() == script_settings(script, "ablations=age")
