"""Running verl and vLLM on a CPU. A GPU run never imports this package."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "soup_verl.cpu.platform",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # let the scheduler place threads: workers share the cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less, and nothing left behind in /dev/shm
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "TQ_NUM_THREADS": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Read by verl, vLLM and Ray; Ray's processes inherit it. A variable that is set already wins."""


def enable() -> None:
    """Make this process and every Ray process it starts use verl's platform `cpu`. Call before `ray.init`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from verl.plugin.platform import platform_manager

    from soup_verl.cpu.platform import PlatformCPU

    platform_manager.set_platform(PlatformCPU())
