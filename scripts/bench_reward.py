r"""What a reward costs: checks a second and latency, by kind of answer.

    python scripts/bench_reward.py                       # the repository's own rows
    python scripts/bench_reward.py --data math500.jsonl  # and any file of rows with an "answer"
    python scripts/bench_reward.py --leak 50000          # memory instead, over so many checks

One thread asks. "a core" is checks a second of processor time, this process and the checker's together, so that other
work on the machine does not count; the latencies are by the wall clock, where it does. Every expected answer
is given in its own spelling, in another one, and wrong; each answer is seen for the first time when it is timed. The
last line checks one hostile answer at a time beside ordinary ones.

`--leak` has four threads check answers that are all different, some of them hostile text from the test corpus, and
prints the memory of this process and of the checker's processes twenty times; the exit code is 1 where it grows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median, quantiles

from soup_verl.tasks.grading.killable import shared_pool
from soup_verl.tasks.reward import compute_score

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "tests" / "unit" / "grading" / "math_rows.jsonl"
GOAL = 2000  # checks a second on ordinary answers
HOSTILE = "9^{9^{9^9}}"
LEAK_THREADS = 4
SAMPLES = 20


def integer_cases(count: int) -> list[tuple[str, str]]:
    """(answer, expected): what most competition and word problems ask for."""
    return [(str(n if n % 2 else n + 1), str(n)) for n in range(count)]


def number_cases(count: int) -> list[tuple[str, str]]:
    """Fractions, percent, powers of ten and units."""
    cases = []
    for n in range(1, count // 4 + 1):
        cases.append((rf"\dfrac{{{2 * n}}}{{14}}", rf"\frac{{{n}}}{{7}}"))
        cases.append((rf"{n}.5 \times 10^{{3}}", f"{n}500"))
        cases.append((rf"{n}\%", f"{n / 100}"))
        cases.append((rf"{n} \text{{ cm}}", f"{n + 1}"))
    return cases


def expression_cases(count: int) -> list[tuple[str, str]]:
    """Real LaTeX: all of it goes to math-verify."""
    cases = []
    for n in range(2, count // 4 + 2):
        cases.append((rf"\sqrt{{{n * n * 3}}}", rf"{n}\sqrt{{3}}"))
        cases.append((rf"\frac{{\pi}}{{2}} \cdot {n}", rf"\frac{{{n}\pi}}{{2}}"))
        cases.append((f"(x+{n})(x-{n})", f"x^2-{n * n}"))
        cases.append((rf"{n}+2\sqrt{{5}}", rf"{n}-2\sqrt{{5}}"))
    return cases


def file_cases(path: Path) -> list[tuple[str, str]]:
    """Every expected answer as it is, spelled differently, and the next row's instead."""
    golds = [str(json.loads(line)["answer"]) for line in path.open()]
    respelled = [rf"\displaystyle {g.replace(chr(92) + 'frac', chr(92) + 'dfrac')}\," for g in golds]
    return [*zip(golds, golds, strict=True), *zip(respelled, golds, strict=True), *zip(golds[1:], golds, strict=False)]


def family() -> dict[int, int]:
    """Processes that descend from this one, and it: pid -> processor time so far in ticks."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        stats[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    members, found = {os.getpid()}, 0
    while found < len(members):
        found = len(members)
        members |= {pid for pid, (parent, _) in stats.items() if parent in members}
    return {pid: stats[pid][1] for pid in members}


def processor_seconds() -> float:
    """Processor time so far of this process and of all that descend from it, by /proc."""
    return sum(family().values()) / os.sysconf("SC_CLK_TCK")


def seconds(cases: list[tuple[str, str]]) -> list[float]:
    """Seconds of every check."""
    taken = []
    for answer, gold in cases:
        start = time.perf_counter()
        compute_score("bench", rf"The answer is $\boxed{{{answer}}}$.", gold)
        taken.append(time.perf_counter() - start)
    return taken


def beside_hostile(cases: list[tuple[str, str]]) -> list[float]:
    """Seconds of every check while another thread has hostile answers checked, one after the other."""
    done = threading.Event()

    def attack() -> None:
        while not done.is_set():
            compute_score("bench", rf"\boxed{{{HOSTILE}}}", "5", time_limit_s=1.0)

    thread = threading.Thread(target=attack)
    thread.start()
    taken = seconds(cases)
    done.set()
    thread.join()
    return taken


# ---- memory ----


@dataclass(frozen=True)
class Memory:
    """MB of this process (resident) and of all the checker's (proportional), and how many processes and open files."""

    own: float
    checkers: float
    processes: int
    files: int

    @classmethod
    def now(cls) -> Memory:
        others = set(family()) - {os.getpid()}
        own = _megabytes(os.getpid(), "Rss")
        return cls(own, sum(_megabytes(pid, "Pss") for pid in others), len(others), len(os.listdir("/proc/self/fd")))


def _megabytes(pid: int, what: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # it ended meanwhile
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), 0.0)


def leak_cases() -> Iterator[tuple[str, str]]:
    """(response, expected) without end, no two alike: of 49 a hostile text, 16 expressions, 32 numbers."""
    sys.path.insert(0, str(ROOT))
    from tests.faults.hostile_text import hostile_texts

    attacks = hostile_texts(seed=0, each=10**9)
    numbers = count(2)
    while True:
        attack = next(attacks)
        yield attack.text, attack.gold
        for n in islice(numbers, 16):
            expression = [
                (rf"\sqrt{{{n * n * 3}}}", rf"{n}\sqrt{{3}}"),
                (rf"\frac{{\pi}}{{2}} \cdot {n}", rf"\frac{{{n}\pi}}{{2}}"),
                (f"(x+{n})(x-{n})", f"x^2-{n * n}"),
                (rf"{n}+2\sqrt{{5}}", rf"{n}-2\sqrt{{5}}"),
            ][n % 4]
            for answer, gold in (expression, (rf"\frac{{{2 * n}}}{{14}}", rf"\frac{{{n}}}{{7}}"), (f"{n}", f"{n + 1}")):
                yield rf"So it is $\boxed{{{answer}}}$.", gold


def measure_leak(checks: int) -> bool:
    """Print the curve; returns whether memory stayed flat."""
    print(f"{'checks':>8} {'this MB':>8} {'checkers MB':>12} {'processes':>10} {'files':>6}")
    cases, curve = leak_cases(), []
    check = lambda case: compute_score("leak", *case, time_limit_s=0.2)  # noqa: E731
    with ThreadPoolExecutor(LEAK_THREADS) as threads:
        for sample in range(1, SAMPLES + 1):
            for _ in range(0, checks // SAMPLES, 50):  # not all at once: some are megabytes
                list(threads.map(check, list(islice(cases, 50))))
            curve.append(Memory.now())
            at = curve[-1]
            print(
                f"{sample * checks // SAMPLES:8} {at.own:8.1f} {at.checkers:12.1f} {at.processes:10} {at.files:6}",
                flush=True,
            )
    return is_flat(curve)


def is_flat(curve: list[Memory]) -> bool:
    """Whether the second half's peaks are those of the first, with 5 % and 8 MB of slack for this process, and 25 % and
    a worker's caches, 64 MB, for the checkers, which are renewed now and then."""
    first, second = curve[: len(curve) // 2], curve[len(curve) // 2 :]
    return (
        max(m.own for m in second) <= 1.05 * max(m.own for m in first) + 8
        and max(m.checkers for m in second) <= 1.25 * max(m.checkers for m in first) + 64
        and max(m.processes for m in curve) <= LEAK_THREADS + 1
        and max(m.files for m in second) <= max(m.files for m in first) + LEAK_THREADS
    )


def row(name: str, taken: list[float], processor: float | None) -> str:
    """A line of the table; `processor`: seconds of processor time that the checks took, None where it is not theirs."""
    p99 = quantiles(taken, n=100)[98]
    rate = "-" if processor is None else f"{len(taken) / max(processor, 0.01):.0f}"  # /proc counts in hundredths
    return f"{name:34} {len(taken):7} {rate:>9} {median(taken) * 1e3:9.2f} {p99 * 1e3:9.2f} {max(taken) * 1e3:9.1f}"


def measure(name: str, cases: list[tuple[str, str]]) -> float:
    """Run and print; returns seconds of processor time."""
    start = processor_seconds()
    taken = seconds(cases)
    processor = processor_seconds() - start
    print(row(name, taken, processor), flush=True)
    return processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="jsonl files of rows with an answer")
    parser.add_argument("--checks", type=int, default=400, help="of every made-up kind")
    parser.add_argument("--leak", type=int, help="measure memory over so many checks instead")
    arguments = parser.parse_args()
    if arguments.leak:
        flat = measure_leak(arguments.leak)
        print(f"\nmemory over {arguments.leak} checks: {'flat' if flat else 'GROWS'}")
        shared_pool().close()
        sys.exit(0 if flat else 1)
    start = time.perf_counter()
    compute_score("bench", r"\boxed{1+0}", "1")
    print(f"first check, with the start of the checker: {time.perf_counter() - start:.1f} s\n")
    print(f"{'answers':34} {'checks':>7} {'a core':>9} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}")
    measure("integers", integer_cases(arguments.checks))
    measure("fractions, percent, powers, units", number_cases(arguments.checks))
    measure("expressions (math-verify)", expression_cases(arguments.checks))
    files = [(path.stem, file_cases(path)) for path in [ROWS, *arguments.data]]
    processor = sum(measure(name, cases) for name, cases in files)
    print(row("expressions, beside hostile ones", beside_hostile(expression_cases(arguments.checks // 4)), None))
    rate = sum(len(cases) for _, cases in files) / processor
    verdict = "met" if rate >= GOAL else "MISSED"
    print(f"\nordinary answers (the files): {rate:.0f} checks a second and core; goal {GOAL}: {verdict}")
    shared_pool().close()


if __name__ == "__main__":
    main()
