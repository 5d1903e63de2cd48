r"""What a reward costs: checks a second and latency, by kind of answer.

    python scripts/bench_reward.py                       # the repository's own rows
    python scripts/bench_reward.py --data math500.jsonl  # and any file of rows with an "answer"

One thread asks. "a core" is checks a second of processor time, this process and the checker's together, so that other
work on the machine does not count; the latencies are by the wall clock, where it does. Every expected answer
is given in its own spelling, in another one, and wrong; each answer is seen for the first time when it is timed. The
last line checks one hostile answer at a time beside ordinary ones.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from statistics import median, quantiles

from soup_verl.grading.killable import shared_pool
from soup_verl.reward import compute_score

ROWS = Path(__file__).resolve().parents[1] / "tests" / "unit" / "grading" / "math_rows.jsonl"
GOAL = 200  # checks a second on ordinary answers
HOSTILE = "9^{9^{9^9}}"


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


def processor_seconds() -> float:
    """Processor time so far of this process and of all that descend from it, by /proc."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        stats[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family, found = {os.getpid()}, 0
    while found < len(family):
        found = len(family)
        family |= {pid for pid, (parent, _) in stats.items() if parent in family}
    return sum(stats[pid][1] for pid in family) / os.sysconf("SC_CLK_TCK")


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
    arguments = parser.parse_args()
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
