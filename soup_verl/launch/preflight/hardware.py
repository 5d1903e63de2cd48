"""What this machine has to run on."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """One node, in bytes; the other nodes are taken to be like it.

    Args:
        gpus: GPUs of the node.
        gpu_bytes: memory of its smallest GPU; 0 without GPUs.
        host_bytes: host memory that is still free for the run.
        disk_bytes: free disk where the checkpoints go.
        described: not looked at but told.
    """

    gpus: int
    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    described: bool = False

    @classmethod
    def detect(cls, folder: Path) -> Hardware:
        """This node, with the disk that `folder` will be on."""
        gpus = _gpu_memories()
        return cls(len(gpus), min(gpus, default=0), _free_host_bytes(), _free_disk_bytes(folder))


def _gpu_memories() -> list[int]:
    """Bytes of each GPU; asked of nvidia-smi, because torch would keep a CUDA context in this process."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) << 20 for line in output.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _free_host_bytes() -> int:
    """Available memory, less if a container's limit leaves less."""
    import psutil

    return min(int(psutil.virtual_memory().available), *_left_in_containers(Path("/sys/fs/cgroup")))


def _left_in_containers(root: Path) -> list[int]:
    """What the cgroup at `root` may still take, version 2 or 1; always at least one number."""
    left = [1 << 62]
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left.append(int((root / limit).read_text()) - int((root / usage).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return left


def _free_disk_bytes(folder: Path) -> int:
    existing = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(existing).free
