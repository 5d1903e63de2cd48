"""scripts/check_next_verl.sh: what it asks pip for, among commands that only write down how they were called."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.fake_commands import FakeCommands

ROOT = Path(__file__).parents[2]

# An environment whose interpreter is `python` below.
INSTALL = 'mkdir -p "$1/bin" && cp "$(command -v python)" "$1/bin/python"'
PYTHON = """
for argument in "$@"; do
  if [[ $argument == --junitxml=* ]]; then touch "${argument#*=}"; fi
done
"""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("0.9.0", "verl==0.9.0"),
        ("verl-0.9.2-py3-none-any.whl", "verl-0.9.2-py3-none-any.whl"),
        ("https://example.org/verl.zip", "https://example.org/verl.zip"),
        ("checkout", "{here}/checkout"),
        ("./checkout", "{here}/checkout"),
    ],
)
def test_a_folder_is_a_folder_however_it_is_named_and_anything_else_what_it_looks_like(given, wanted, tmp_path):
    scripts, here = tmp_path / "project/scripts", tmp_path / "here"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/check_next_verl.sh", scripts)
    (scripts / "install.sh").write_text(INSTALL)
    (here / "checkout").mkdir(parents=True)
    commands = FakeCommands(tmp_path / "commands")
    commands.add("python", PYTHON)
    done = subprocess.run(
        ["bash", scripts / "check_next_verl.sh", given],
        cwd=here,
        env=commands.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (asked,) = commands.calls("python -m uv pip install")
    assert asked.split()[-1] == wanted.format(here=here)
