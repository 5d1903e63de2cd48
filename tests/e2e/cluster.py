"""A Ray cluster of two nodes on this machine: two raylets, each with its processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.launch import processes_with

RAY = Path(sys.executable).with_name("ray")
CPUS = 16  # logical ones, a node


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TwoNodes:
    """`with TwoNodes(folder) as cluster`: a head on 127.0.0.1 and a worker node on 127.0.0.2, one logical GPU each."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.environment = environment
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes: list[subprocess.Popen] = []

    def __enter__(self) -> "TwoNodes":
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self.address.rpartition(":")[2]
        try:
            self._start("--head", "--include-dashboard=false", f"--port={port}", "--node-ip-address=127.0.0.1")
            self.add_worker_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def add_worker_node(self) -> None:
        self._start(f"--address={self.address}", "--node-ip-address=127.0.0.2")

    def lose_worker_node(self) -> None:
        """As if the machine had lost power: everything that runs on the worker node is gone at once."""
        self._kill(len(self.nodes) - 1)

    def _kill(self, number: int) -> None:
        for process in processes_with(self._mark(number)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.nodes[number].wait(timeout=30)

    def _mark(self, number: int) -> str:
        return f"SOUP_TEST_NODE={self.folder}/{number}"

    def __exit__(self, *_: object) -> None:
        for number in range(len(self.nodes)):
            self._kill(number)

    def _start(self, *options: str) -> None:
        given = ["--block", f"--num-cpus={CPUS}", "--num-gpus=1", "--object-store-memory=150000000"]
        log = (self.folder / f"node_{len(self.nodes)}.txt").open("w")
        name, _, value = self._mark(len(self.nodes)).partition("=")
        node = subprocess.Popen(
            [str(RAY), "start", *given, *options],
            env={**os.environ, **self.environment, name: value},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self.nodes.append(node)
        deadline = time.monotonic() + 600
        while "Ray runtime started." not in Path(log.name).read_text():
            if node.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no Ray node:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(0.2)
