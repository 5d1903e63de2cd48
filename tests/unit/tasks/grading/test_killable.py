"""Real worker processes, real limits."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from soup_verl.tasks.grading.comparison import Question
from soup_verl.tasks.grading.killable import MATH, Budget, CheckerGone, CheckFailed, CheckPool, shared_pool

HOSTILE = r"9^{9^{9^9}}"
pytestmark = pytest.mark.e2e  # real processes, killed and awaited
ROOT = Path(__file__).parents[4]


def request(gold, pred, **more):
    return asdict(Question(gold, pred, **more))


def ask(pool, gold, pred, limit_s=120.0, **more):
    return pool.check(request(gold, pred, **more), Budget(limit_s))


@pytest.fixture(scope="module")
def pool():
    pool = CheckPool(max_workers=6)
    yield pool
    pool.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("gold", "pred", "more", "equal"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}", {}, True),
        (r"\sqrt{8}", r"2\sqrt{3}", {}, False),
        ("x^{2}-1", "(x-1)(x+1)", {}, True),
        (r"1+i\sqrt{3}", r"1+\sqrt{3}i", {}, True),
        ("-1+2i", "2i+i^{2}", {}, True),
        (r"\frac{e^{2it}}{2+2i}", r"\frac{i}{2i-2}e^{2it}", {}, True),
        ("1+2i", "1-2i", {}, False),
        ("10", r"\binom{5}{2}", {}, True),
        (r"\frac{100!}{2^{50}}", r"\frac{101!}{101\cdot2^{50}}", {}, True),
        (r"\sqrt{2}", "1.414214", {"within": 1e-6}, True),
        (r"\sqrt{2}", "1.414", {"within": 1e-6}, False),
        (r"\sqrt{2}", "1.414214", {"last_digit": 1e-6}, True),  # rounded
        (r"\sqrt{2}", "1.414213", {"last_digit": 1e-6}, True),  # cut
        (r"\sqrt{2}", "1.414215", {"last_digit": 1e-6}, False),
        (r"\sqrt{4}", "2.000001", {"last_digit": 1e-6}, False),
        # Math-verify alone says True to the next three.
        (r"10^{-30}\pi", "0.0", {}, False),
        (r"10^{-30}\pi", r"10^{-30}\cdot3", {}, False),
        (r"10^{-20}x", r"2\cdot10^{-20}x", {}, False),
        # Equal in every digit that a float has.
        ("10^{20}", r"\sqrt{10^{40}+1}", {}, False),
        (r"\pi", r"\pi+10^{-250}", {}, False),
        ("x", "x+10^{-40}", {}, False),
        ("7919!", "7919!+1", {}, False),
        ("10^{400}x", "10^{400}x+1", {}, False),
        (r"\ln(xy)", r"\ln x+\ln y", {}, True),  # math-verify alone: False
        (r"\sqrt{x^{2}}", "x", {}, False),
        (r"\lfloor\frac{2n}{3}\rfloor", r"\lfloor\frac{2n}{13}\rfloor", {}, False),
        (r"10^{20}", r"\sqrt{10^{40}}", {}, True),
        (r"\frac{\pi}{6}x", r"\frac{\pi x}{3}-\frac{\pi x}{6}", {}, True),
        (r"\frac{\pi}{2}", r"0.5\pi", {}, True),
        ("(5x-7y+4)-(0)", "(-10x)-(-14y+8)", {"relation": "="}, True),
        ("(5x-7y+4)-(0)", "(5x)-(7y+4)", {"relation": "="}, False),
        ("(5x-7y+4)-(0)", "(x)-(x)", {"relation": "="}, False),
        ("(xy)-(1)", r"(y)-(\frac{1}{x})", {"relation": "="}, True),
        ("(x)-(1)", "(-x)-(-1)", {"relation": "<"}, False),
        ("(x)-(1)", "(2x)-(2)", {"relation": "<"}, True),
        ("(z_{1}^{2}+1)-(0)", "(z_{1})-(z_{1}+1)", {"relation": "="}, False),  # both without a solution
    ],
)
def test_verdicts(pool, gold, pred, more, equal):
    assert ask(pool, gold, pred, **more) is equal


@pytest.mark.parametrize("pred", ["", "(", r"\foo", "7,8", r"\{7\}", "x=7", "\ud800", "\x00", "7)("])
def test_what_is_no_expression_has_no_verdict(pool, pred):
    try:
        assert ask(pool, "7", pred) is False
    except CheckFailed as error:
        assert error.reason == "unparsed"


def test_time_runs_out_by_the_wall_clock_in_any_thread(pool):
    ask(pool, "1", "1+0")
    seen = []

    def check():
        start = time.monotonic()
        with pytest.raises(CheckFailed, match="timeout"):
            ask(pool, "5", HOSTILE, limit_s=0.5)
        seen.append(time.monotonic() - start)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert 0.5 <= seen[0] < 30  # by itself it would take for ever


def test_a_spent_budget_is_not_spent_again(pool):
    budget = Budget(1.0)
    with pytest.raises(CheckFailed, match="timeout"):
        pool.check(request("5", HOSTILE), budget)
    start = time.monotonic()
    with pytest.raises(CheckFailed, match="timeout"):
        pool.check(request("5", HOSTILE), budget)
    assert time.monotonic() - start < 1.0


def test_memory_runs_out_within_the_limit(pool):
    with pytest.raises(CheckFailed, match="memory"):
        ask(pool, "5", r"10^{10^{10}}!")
    assert ask(pool, r"\sqrt{8}", r"2\sqrt{2}")


def test_hostile_checks_hold_up_nobody_else(pool):
    reasons = []

    def hostile():
        try:
            ask(pool, "5", HOSTILE, limit_s=600)
        except CheckFailed as error:
            reasons.append(error.reason)

    ask(pool, "1", "1+0")
    threads = [threading.Thread(target=hostile) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(_busy_workers(pool)) == 4)
    for _ in range(3):
        assert ask(pool, r"\sqrt{8}", r"2\sqrt{2}")
    assert reasons == []  # they are all at it
    for pid in _busy_workers(pool):
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert reasons == ["memory"] * 4  # what a death without a word is taken for


def _busy_workers(pool):
    return set(_children_of(pool._server._process.pid)) - {worker.pid for worker in pool._idle}


def test_a_worker_that_died_while_idle_is_replaced(pool):
    ask(pool, "1", "1+0")
    killed = [worker.pid for worker in pool._idle]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, killed)))
    assert ask(pool, r"\sqrt{8}", r"2\sqrt{2}") is True


def test_the_forking_process_is_replaced_when_it_dies(pool):
    ask(pool, "1", "1+0")
    pid = pool._idle[-1].pid
    pool._server._process.kill()
    wait_until(lambda: not is_alive(pid))  # its forks die with it
    assert ask(pool, r"\sqrt{8}", r"2\sqrt{2}") is True


def test_workers_are_renewed_after_a_number_of_checks(pool, monkeypatch):
    monkeypatch.setattr("soup_verl.tasks.grading.killable.CHECKS_A_WORKER", 2)
    pids = set()
    for _ in range(8):
        ask(pool, "1", "1+0")
        pids |= {worker.pid for worker in pool._idle}
    assert len(pids) >= 3 and sum(map(is_alive, pids)) <= 1


ORPHANS = """
import sys, threading, time
from dataclasses import asdict
from soup_verl.tasks.grading.comparison import Question
from soup_verl.tasks.grading.killable import Budget, CheckPool
pool = CheckPool()
ask = lambda pred: pool.check(asdict(Question("5", pred)), Budget(60))
ask("5+0")
threading.Thread(target=ask, args=("9^{9^{9^9}}",), daemon=True).start()
while pool._idle:
    time.sleep(0.01)
ask("5+0")
print(pool._server._process.pid, *[w.pid for w in pool._idle], flush=True)
time.sleep(60)
"""


def test_no_process_outlives_a_parent_that_is_killed():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, env=env)
    server, *workers = map(int, parent.stdout.readline().split())
    busy = _children_of(server)
    assert set(workers) < set(busy)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(map(is_alive, [server, *busy])))


def _children_of(pid):
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _parent_of(p) == pid]


def _parent_of(folder):
    try:
        return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_forked_process_makes_its_own_pool(pool, monkeypatch):
    monkeypatch.setattr("soup_verl.tasks.grading.killable._pools", {MATH: pool})
    ask(shared_pool(), "1", "1+0")
    pid = os.fork()
    if pid == 0:
        fine = False
        try:
            fine = shared_pool() is not pool and ask(shared_pool(), r"\sqrt{8}", r"2\sqrt{2}") is True
            shared_pool().close()
        finally:
            os._exit(0 if fine else 1)  # an error must not go on as a second pytest
    assert os.waitpid(pid, 0)[1] == 0
    assert ask(pool, r"\sqrt{8}", r"2\sqrt{2}") is True


def test_a_checker_that_cannot_start_is_an_error_that_says_so(tmp_path):
    script = tmp_path / "broken_worker.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(CheckerGone, match="broken_worker.py gave no reply .* Expected what it imports to work"):
        ask(CheckPool(script), "1", "1+0")
