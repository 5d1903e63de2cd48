"""What is installed on this machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata

import torch

PACKAGES = ("transformers", "flash-attn", "vllm", "verl", "ray")


def installed() -> dict[str, str]:
    """Versions by name; `-` for what there is not."""
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda or "-",
        "GPU": torch.cuda.get_device_name() if gpu else "-",
        "GPU memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if gpu else "-",
        "driver": _driver(),
        **{name: version(name) or "-" for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    if (tool := shutil.which("nvidia-smi")) is None:
        return "-"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().partition("\n")[0] or "-"
