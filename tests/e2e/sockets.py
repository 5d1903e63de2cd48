"""On which addresses the processes of a run listen."""

from pathlib import Path

import psutil

from tests.e2e.launch import processes_with


def listening(folder: Path) -> set[tuple[str, int, str]]:
    """(address, port, the process's name) of every listening socket of the run in `folder`, while it runs."""
    found = set()
    for pid in processes_with(f"SOUP_TEST_MARK={folder}"):
        try:
            process = psutil.Process(pid)
            name = " ".join(process.cmdline())[:60] or process.name()
            sockets = process.net_connections("inet")
        except psutil.Error:
            continue  # it ended meanwhile
        found |= {(s.laddr.ip, s.laddr.port, name) for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


def reachable(sockets: set[tuple[str, int, str]]) -> set[tuple[str, int, str]]:
    """Those that another machine could connect to."""
    return {s for s in sockets if not s[0].removeprefix("::ffff:").startswith("127.") and s[0] != "::1"}
