"""Where the ranks of a CPU run meet, and which way they talk: over loopback where all of them are on this machine."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import torch


def join_gloo_group() -> None:
    """verl would ask for the backend "cpu:gloo,cpu:gloo", which torch refuses; it leaves an existing group alone."""
    if not torch.distributed.is_initialized():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        host = os.environ["MASTER_ADDR"]
        store = _loopback_store(host, int(os.environ["MASTER_PORT"]), rank, world_size)
        if interface := _interface_towards(host):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        torch.distributed.init_process_group(backend="gloo", store=store, rank=rank, world_size=world_size)


def store_at(host: str, port: int, rank: int, world_size: int) -> torch.distributed.Store:
    """A store of a group beside the ranks' own, which rank 0 keeps at this address."""
    store = _loopback_store(host, port, rank, world_size)
    return torch.distributed.TCPStore(host, port, world_size, rank == 0) if store is None else store


def _interface_towards(host: str) -> str | None:
    """The network interface that leads to `host`, None if it cannot be told.

    gloo left to itself listens where the node's own name leads, which many systems set to a loopback address: the other
    nodes then find nobody there.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    names = (name for name, addresses in psutil.net_if_addrs().items() if any(a.address == own for a in addresses))
    return next(names, None)


def _loopback_store(host: str, port: int, rank: int, world_size: int) -> torch.distributed.Store | None:
    """A store that nobody outside of this machine can reach; None, which is torch's own, for any other `host`.

    torch's store listens on every interface whatever its address, unless it is handed a socket.
    """
    if not _is_loopback(host):
        return None
    listening = None
    if rank == 0:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # A rank that is alone meets nobody: any free port will do; verl's may have been taken since it looked.
            server.bind((host, port if world_size > 1 else 0))
            server.listen(128)
            port = server.getsockname()[1]
            listening = server.detach()  # torch closes it
    return torch.distributed.TCPStore(host, port, world_size, rank == 0, master_listen_fd=listening)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name, which may stand for several
    return address.is_loopback and address.version == 4
