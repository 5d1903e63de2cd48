"""Sends hostile texts through the reward as verl's reward worker does, and tells on stdout, as JSON, what happened.

    python -m tests.faults.reward_under_fire EACH LIMIT_S FOLDER

A process of its own, so that what texts do to it shows: an audit hook sees every `exec`, `compile`, `system` and new
process, here and, through `sitecustomize` on the checker's import path, in every fork that reads an answer.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

from soup_verl.tasks.grading.killable import shared_pool
from soup_verl.tasks.reward import compute_score
from tests.faults.hostile_text import SECRET, SECRET_NAME, Attack, handwritten, hostile_texts

THREADS = 4
FIELDS = {"score": float, "acc": float, "format": float, "timeout": float, "error": str, "pred": str}
REASONS = {"", "no_box", "unclosed_box", "empty_box", "too_long", "not_allowed", "unparsed", "timeout", "memory"}
SPY = """
import os, re, sys
START, FOLDER = os.getpid(), {folder!r}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NUMBER = re.compile(rb"(Integer|Float|Rational) ?\\('?[0-9.]+'? ?\\)|from sympy import \\*")  # how sympy reads digits
busy = False
def suspicious(event, arguments):
    if event == "compile":  # whatever is evaluated is compiled before; modules have a file
        source, file = arguments
        return not str(file).endswith(".py") and not NUMBER.fullmatch(source if isinstance(source, bytes) else b"?")
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
    return event in ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")
def spy(event, arguments):
    global busy
    if os.getpid() == START or busy:
        return  # imports and forks, before any answer is read
    busy = True
    if suspicious(event, arguments):  # no file of a fork can hold a byte, but it can have a name
        told = re.sub("[^ -.0-~]", "_", " ".join(map(str, (event, *arguments))))[:200]
        os.close(os.open(FOLDER + "/" + told, os.O_CREAT | os.O_WRONLY))
    busy = False
sys.addaudithook(spy)
"""


def spy_on_forks(folder: Path) -> None:
    """Every interpreter started from here on reports into `folder` what its forks execute: a file an event."""
    site, events = folder / "site", folder / "events"
    site.mkdir()
    events.mkdir()
    (site / "sitecustomize.py").write_text(SPY.format(folder=str(events)))
    sys.path.insert(0, str(site))  # killable.py hands sys.path on


def spy_here(seen: Counter[str]) -> None:
    """Count what this process executes that is no module of a file."""

    def hook(event: str, arguments: tuple) -> None:
        is_code = event == "compile" and not str(arguments[1]).endswith(".py")
        if is_code or event in ("os.system", "os.exec", "os.fork"):
            seen[event] += 1

    sys.addaudithook(hook)


class Watch:
    """What the calls came to."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.reasons: Counter[str] = Counter()
        self.problems: list[str] = []

    def call(self, attack: Attack, limit_s: float) -> None:
        start = time.perf_counter()
        try:
            result = compute_score("hostile", attack.text, attack.gold, {}, time_limit_s=limit_s)
        except BaseException as error:
            self._problem(f"raised {type(error).__name__}: {str(error)[:99]}", attack)
            return
        self.seconds.append(time.perf_counter() - start)
        self.reasons[str(result["error"])] += 1
        if {name: type(value) for name, value in result.items()} != FIELDS or result["error"] not in REASONS:
            self._problem(f"returned {result}"[:200], attack)
        if result["score"] or result["acc"]:
            self._problem("scored", attack)
        if SECRET in json.dumps(result):
            self._problem("gave the environment away", attack)

    def _problem(self, what: str, attack: Attack) -> None:
        self.problems.append(f"{attack.kind}: {what}: {attack.text[:120]!r} for {attack.gold[:60]!r}")


def attacks(each: int, canary: Path) -> Iterable[Attack]:
    return chain(handwritten(), hostile_texts(seed=0, each=each, canary=canary))


async def fire(texts: Iterable[Attack], limit_s: float, watch: Watch) -> None:
    """Each attack in the event loop's executor, as verl's reward loop calls a function that is not a coroutine."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    texts = iter(texts)
    while batch := list(islice(texts, 8 * THREADS)):  # not all at once: some are megabytes
        await asyncio.gather(*(loop.run_in_executor(None, watch.call, attack, limit_s) for attack in batch))


def main() -> None:
    each, limit_s, folder = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    os.environ[SECRET_NAME] = SECRET
    spy_on_forks(folder)
    compute_score("hostile", r"\boxed{1+0}", "1")  # starts the checker
    executed: Counter[str] = Counter()
    spy_here(executed)
    watch, threads = Watch(), threading.active_count()
    asyncio.run(fire(attacks(each, folder / "canary"), limit_s, watch))
    shared_pool().close()
    print(
        json.dumps(
            {
                "seconds": sorted(watch.seconds),
                "reasons": watch.reasons,
                "problems": watch.problems,
                "executed": executed,
                "threads_left": threading.active_count() - threads,
            }
        )
    )


if __name__ == "__main__":
    main()
