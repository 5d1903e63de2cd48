"""Real ranks, real sockets: what they listen on."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from soup_verl.stack.cpu import LOOPBACK, rendezvous

ROOT = Path(__file__).parents[4]
RANK = """
import json, psutil, torch
from soup_verl.stack.cpu.rendezvous import join_gloo_group
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


def meet(*, host: str, port: int, environment: dict, inside: tuple[tuple[str, ...], ...] = ((), ())) -> list:
    """What two ranks say; `inside` holds what stands before each rank's command."""
    given = environment | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    given |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [*before, sys.executable, "-c", RANK],
            env=given | {"RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, before in enumerate(inside)
    ]
    try:
        said = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_the_interface_towards_a_host():
    assert rendezvous._interface_towards("127.0.0.1") == "lo"
    assert rendezvous._interface_towards("no such host") is None


def test_a_rank_that_is_alone_does_not_need_the_port_that_verl_chose():
    """verl looks for a free one seconds before the rank starts; another program may take it meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        store = rendezvous._loopback_store("127.0.0.1", other.getsockname()[1], 0, 1)
    store.set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.e2e
def test_ranks_meet_and_listen_on_loopback_only():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = meet(host="127.0.0.1", port=port, environment=os.environ | LOOPBACK)
    assert told == [[4.0, ["127.0.0.1"]]] * 2


@pytest.fixture
def two_machines():
    """Commands that run in one of two network namespaces, joined by a cable: all that they share is 10.77.0.0/24."""
    names = [f"soup_{os.getpid()}_{side}" for side in "ab"]
    cable = [f"soup{os.getpid() % 10**6}{side}" for side in "ab"]  # at most 15 characters
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {cable[0]} type veth peer name {cable[1]}")
    for side, (name, end) in enumerate(zip(names, cable, strict=True), start=1):
        commands += [f"link set {end} netns {name}", f"-n {name} addr add 10.77.0.{side}/24 dev {end}"]
        commands += [f"-n {name} link set {end} up", f"-n {name} link set lo up"]
    try:
        for command in commands:
            try:
                subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield tuple(("ip", "netns", "exec", name) for name in names)
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.e2e
def test_ranks_of_two_machines_meet_where_their_names_mean_loopback(two_machines):
    """As /etc/hosts often has it: gloo would listen on 127.0.0.1, where the other machine finds nobody."""
    environment = {key: value for key, value in os.environ.items() if key not in LOOPBACK}
    told = meet(host="10.77.0.1", port=29500, environment=environment, inside=two_machines)
    assert [total for total, _ in told] == [4.0, 4.0]
    assert "127.0.0.1" not in {address for _, addresses in told for address in addresses}


@pytest.mark.e2e
def test_ray_takes_the_loopback_address_for_its_nodes():
    """Even if Ray was imported before: Hydra imports verl, and with it Ray, to find verl's configuration."""
    code = (
        "import ray\nfrom soup_verl.stack import cpu; cpu.enable(loopback=True)\nprint(ray.util.get_node_ip_address())"
    )
    given = {k: v for k, v in os.environ.items() if k not in LOOPBACK} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines()[-1:] == ["127.0.0.1"], ended.stderr[-2000:]
