"""What the image's first layers can see, without building it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_setup_py_finds_what_it_reads_among_the_files_that_are_copied_before_the_installation(tmp_path):
    before, installs, _ = (ROOT / "docker/Dockerfile").read_text().partition("RUN bash scripts/install.sh")
    assert installs
    for files in re.findall(r"(?m)^COPY (.+) \./$", before):
        for name in files.split():
            shutil.copy(ROOT / name, tmp_path)
    for folder in re.findall(r"(?m)^COPY (\w+) \1$", before):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    done = subprocess.run([sys.executable, "setup.py", "--name"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == "soup-verl", done.stderr
