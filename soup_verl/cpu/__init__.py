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
    # Seconds. Ray's agents live on for so long, asking in vain, after a killed run has taken its cluster with it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""Read by verl, vLLM and Ray; Ray's processes inherit it. A variable that is set already wins."""


LOOPBACK = {
    # Ray's switch for platforms without clusters: its node is 127.0.0.1 and everything it starts listens there, and so
    # do verl's and TransferQueue's servers, which take the node's address. `_node_ip_address` cannot be a loopback one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
}
"""What keeps a Ray cluster of our own on the loopback interface. Ray reads its part when it is imported."""


def enable(*, loopback: bool = False) -> None:
    """Make this process and every Ray process it starts use verl's platform `cpu`. Call before `ray` is imported.

    Args:
        loopback: listen on 127.0.0.1 only; not for a cluster that is up already, which has its addresses.
    """
    for name, value in (ENVIRONMENT | (LOOPBACK if loopback else {})).items():
        os.environ.setdefault(name, value)
    from verl.plugin.platform import platform_manager

    from soup_verl.cpu.platform import PlatformCPU

    platform_manager.set_platform(PlatformCPU())
