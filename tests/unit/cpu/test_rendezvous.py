"""Real ranks, real sockets: what they listen on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from soup_verl.cpu import LOOPBACK, rendezvous

ROOT = Path(__file__).parents[3]
RANK = """
import json, psutil, torch
from soup_verl.cpu.rendezvous import join_gloo_group
join_gloo_group()
join_gloo_group()  # an existing group is left alone
one = torch.ones(1)
torch.distributed.all_reduce(one)
torch.distributed.all_reduce(one, group=torch.distributed.new_group([0, 1]))
sockets = psutil.Process().net_connections("inet")
print(json.dumps([one.item(), sorted({s.laddr.ip for s in sockets if s.status == "LISTEN"})]), flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_loopback_addresses_get_a_socket_of_their_own(host):
    assert rendezvous._is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "::1", "localhost", "node-3"])
def test_any_other_address_is_left_to_torch(host):
    assert rendezvous._loopback_store(host, 1, 0, 1) is None


@pytest.mark.e2e
def test_ranks_meet_and_listen_on_loopback_only():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = os.environ | LOOPBACK | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK], env=given | {"RANK": str(n)}, stdout=subprocess.PIPE, text=True)
        for n in (0, 1)
    ]
    told = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told == [[4.0, ["127.0.0.1"]]] * 2


@pytest.mark.e2e
def test_ray_takes_the_loopback_address_for_its_nodes():
    """Even if Ray was imported before: Hydra imports verl, and with it Ray, to find verl's configuration."""
    code = "import ray\nfrom soup_verl import cpu; cpu.enable(loopback=True)\nprint(ray.util.get_node_ip_address())"
    given = {k: v for k, v in os.environ.items() if k not in LOOPBACK} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines()[-1:] == ["127.0.0.1"], ended.stderr[-2000:]
