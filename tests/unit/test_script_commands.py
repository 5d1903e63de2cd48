"""What the shell scripts that train ask Python for, without anything prepared, is there."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("examples/*/run.sh"), ROOT / "examples/quickstart.sh", *ROOT.glob("recipe/soup/run_*.sh")]
)


def is_there(command: list[str]) -> bool:
    """Of an interpreter's arguments: `-m MODULE ..`, or a file."""
    if command[0] == "-m":
        return all(part.isidentifier() for part in command[1].split(".")) and bool(importlib.util.find_spec(command[1]))
    return (ROOT / command[0]).is_file()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_can_be_started(script, tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >>"{calls}"\n')
    python.chmod(0o755)
    folders = {name: str(tmp_path / name) for name in ("OUT", "DATA_DIR", "RUNS")}
    done = subprocess.run(
        ["bash", script], cwd=ROOT, env={**os.environ, **folders, "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = [line.split() for line in calls.read_text().splitlines()]
    assert len(asked) > 1 and [command for command in asked if not is_there(command)] == []
