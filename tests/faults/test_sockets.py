"""The reader of a run's sockets sees a server that another machine could reach."""

import os
import subprocess
import sys

import pytest

SERVE = "import socket, sys; s = socket.create_server((sys.argv[1], 0)); print(s.getsockname()[1], flush=True); input()"


@pytest.mark.e2e
@pytest.mark.parametrize(("address", "outside"), [("127.0.0.1", False), ("", True)])
def test_a_socket_of_the_run_is_found_and_judged(tmp_path, address, outside):
    from tests.e2e.sockets import listening, reachable

    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, address],
        env=os.environ | {"SOUP_TEST_MARK": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    port = int(server.stdout.readline())
    found = listening(tmp_path)
    server.communicate("\n")
    assert [p for _, p, _ in found] == [port]
    assert bool(reachable(found)) is outside
