"""The versions of the `gpu` extra fit together. Only metadata is read (flash-attn's sdist has it written down): some
megabytes from the package index, and nothing is built or installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_INDEX = "error sending request|dns error|[Tt]imed out|[Cc]onnect|server error|429"


def resolve(python: str) -> dict[str, str]:
    """Every package that the extras `gpu` and `report` bring for this Python on Linux, with its version."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-python-downloads", "--no-header"]
    options = ["--no-annotate", "--python-version", python, "--python-platform", "x86_64-unknown-linux-gnu"]
    extras = ["--extra", "gpu", "--extra", "report", "setup.py"]
    done = subprocess.run([*command, *options, *extras], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode != 0 and re.search(NO_INDEX, done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("==") for line in done.stdout.splitlines())


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_gpu_extra_resolves_to_one_cuda(python):
    found = resolve(python)
    assert {"torch", "vllm", "verl", "flash-attn", "ray", "transformers", "plotly"} <= found.keys()
    [major] = re.findall(r"^cuda_major=(\d+)$", (ROOT / "scripts/install_gpu.sh").read_text(), re.M)
    assert found["nvidia-cuda-runtime"].split(".")[0] == major
    assert not [name for name in found if re.search(r"-cu1\d$", name) and not name.endswith(f"-cu{major}")]
