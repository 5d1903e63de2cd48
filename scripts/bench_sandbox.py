"""What the sandbox of the code reward costs, and what it leaves: python scripts/bench_sandbox.py [--runs 5000]

speed   programs a core-second: processor time of everything that is started, for one test and for ten
leak    processes, descriptors, temporary files and memory of the caller before and after so many programs, a tenth
        of which are hostile
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from soup_verl.tasks.reward import compute_score

EXTRA = {"domain": "code"}
PARTS, BATCH = 5, 50
SUM = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
FUNCTION = "```python\ndef add(a, b):\n    return a + b\n```"
HOSTILE = [
    f"```python\nimport os, time\n{text}\n```"
    for text in (
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(9)",
        "open('/tmp/x', 'w').write('x' * 10**7)",
        "print('x' * 10**8)",
        "os.kill(os.getppid(), 9)",
        "x = 'a' * 10**11",
        "os._exit(0)",
    )
]


def stdin_gold(tests: int) -> str:
    return json.dumps(
        {"style": "stdin", "tests": [{"input": f"{i} {i}\n", "output": f"{2 * i}\n"} for i in range(tests)]}
    )


def assert_gold(tests: int) -> str:
    return json.dumps({"style": "assert", "tests": [f"assert add({i}, {i}) == {2 * i}" for i in range(tests)]})


def speed(count: int) -> str:
    """A line a style and number of tests."""
    lines = []
    for name, response, gold in (("stdin", SUM, stdin_gold), ("assert", FUNCTION, assert_gold)):
        for tests in (1, 10):
            run = partial(compute_score, "d", response, gold(tests), EXTRA)
            used, clock = _used(), time.perf_counter()
            scores = _in_threads(count, lambda _, run=run: run()["score"])
            assert sum(scores) == count, "a right program was not taken for right"
            used, clock = _used() - used, time.perf_counter() - clock
            lines.append(
                f"{name}, {tests} tests: {count / used:.0f} programs a core-second, {count / clock:.0f} a second"
            )
    return "\n".join(lines)


def _used() -> float:
    """Seconds of processor time: this process's, its children's, and of those that they waited for."""
    ticks = 0
    for process in ("self", *_children()):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _in_threads(count: int, function: Callable[[int], float]) -> list[float]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, range(count)))


def state() -> dict[str, float]:
    """What a leak would add to."""
    return {
        "processes below this one": len(_below(str(os.getpid()))),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "temporary files": len(list(Path(tempfile.gettempdir()).glob("soup-program-*"))),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "memory, MB": _memory_mb("self"),
        "memory of the server, MB": max(map(_memory_mb, _children())),
        "threads": len(os.listdir("/proc/self/task")),
    }


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _memory_mb(process: str) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _below(process: str) -> list[str]:
    """All that descend from a process and have not ended."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [child] * bool(Path(f"/proc/{child}/cmdline").read_bytes()) + _below(child)
    return found


def leak(runs: int) -> str:
    """A line for each number: before, and after each part of the runs."""
    one, other = stdin_gold(1), assert_gold(1)

    def run(i: int) -> float:
        if i % 10 == 0:
            return float(compute_score("d", HOSTILE[i // 10 % len(HOSTILE)], one, EXTRA)["score"])
        response, gold = (SUM, one) if i % 2 else (FUNCTION, other)
        return 1.0 - float(compute_score("d", response, gold, EXTRA)["score"])

    _in_threads(20, run)
    states, wrong = [state()], 0.0
    with ThreadPoolExecutor(8) as pool:
        for part in range(PARTS):
            end = runs * (part + 1) // PARTS
            for first in range(runs * part // PARTS, end, BATCH):
                wrong += sum(pool.map(run, range(first, min(first + BATCH, end))))
            states.append(state())
    lines = [f"{name}: {', '.join(f'{found[name]:.1f}' for found in states)}" for name in states[0]]
    return "\n".join([f"{runs} programs, {wrong:.0f} judged otherwise than expected", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=int, default=100, metavar="N", help="programs for each speed (default 100)")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="programs of the search for leaks (default 0)")
    options = parser.parse_args()
    compute_score("d", SUM, stdin_gold(1), EXTRA)  # the server is the first thread's child
    if options.speed:
        sys.stdout.write(speed(options.speed) + "\n")
    if options.runs:
        sys.stdout.write(leak(options.runs) + "\n")


if __name__ == "__main__":
    main()
