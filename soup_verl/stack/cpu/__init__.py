"""Running verl and vLLM on a CPU. A GPU run never imports this package."""

from __future__ import annotations

import os
from uuid import uuid4

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "soup_verl.stack.cpu.platform",
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


RUN = "SOUP_CPU_RUN"
"""Names the run's sockets. verl names those that weights go through by Ray's job id, which is the same in every cluster
that has just been started: of two runs on one machine, one would wait for ever or take the other's weights."""


def own_socket(handle: str) -> str:
    """A socket of verl's, `ipc:///tmp/NAME.sock`, under a name that only this run has."""
    return handle.removesuffix(".sock") + f"-{os.environ[RUN]}.sock"


LOOPBACK = {
    # Ray's switch for platforms without clusters: its node is 127.0.0.1 and everything it starts listens there, and so
    # do verl's and TransferQueue's servers, which take the node's address. `_node_ip_address` cannot be a loopback one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
}
"""What keeps a Ray cluster of our own on the loopback interface, in the processes that inherit it."""


def enable(*, loopback: bool = False) -> None:
    """Make this process and every Ray process it starts use verl's platform `cpu`. Call before `ray.init`.

    Args:
        loopback: listen on 127.0.0.1 only; not for a cluster that is up already, which has its addresses.
    """
    for name, value in (ENVIRONMENT | (LOOPBACK if loopback else {})).items():
        os.environ.setdefault(name, value)
    os.environ[RUN] = uuid4().hex[:12]
    if loopback:
        _read_rays_switch_again()
    from verl.plugin.platform import platform_manager

    from soup_verl.stack.cpu.platform import PlatformCPU

    platform_manager.set_platform(PlatformCPU())


def _read_rays_switch_again() -> None:
    """Ray reads it when it is imported, and composing a configuration on top of verl's does that."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
