"""The domain of code: 1 for a program that passes all of its row's tests, else 0.

    response ──► its last fenced block ──► sandbox.py: a process that is shut in, for each program
                                              stdin: run on each input; what it writes is compared here
                                              assert: tests in another process call its functions (remote.py)

docs/code_rewards.md has the formats, the limits and what a hostile program can and cannot do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from soup_verl.tasks.code.gold import Suite, read_tests
from soup_verl.tasks.code.rows import ROWS, problems
from soup_verl.tasks.code.sandbox import ISOLATIONS, Limits, Sandbox
from soup_verl.tasks.data.prompt_templates import Instruction
from soup_verl.tasks.grading.boxes import answer_part

__all__ = ["INSTRUCTION", "KEYWORDS", "ROWS", "check_keywords", "check_row", "problems", "right_answers", "score"]

INSTRUCTION = Instruction(
    "Please reason step by step, and put the whole Python program in one block at the end, between ```python and ```.",
    "Write Python between ```python and ```.",
)
KEYWORDS = ("isolation", "test_time_limit_s", "memory_limit_mb", "max_tests", "share_of_tests")
MAX_PROGRAM = 100_000  # characters
SHOWN = 2000
_BLOCK = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)^ {0,3}```[ \t]*$", re.M | re.S)


@dataclass(frozen=True)
class Verdict:
    """How many of the tests were passed, of how many; `error`: why the program was ended, or ""."""

    passed: int
    tests: int
    error: str = ""


def score(
    data_source: str,
    response: str,
    gold: str,
    extra: Mapping[str, Any] | None = None,
    *,
    isolation: str = "required",
    test_time_limit_s: int = 5,
    memory_limit_mb: int = 1024,
    max_tests: int = 50,
    share_of_tests: bool = False,
) -> dict[str, float | str]:
    """Judge the program of a response.

    Args:
        data_source, extra: not used.
        gold: see `gold.py`.
        isolation: "required": namespaces, or an error where there are none; "limits": without them, for programs that
            are trusted.
        test_time_limit_s: seconds of processor time for one input, or for all asserts together; three times as many by
            the clock.
        memory_limit_mb: address space of each of its processes.
        max_tests: of a row's tests, the first so many count.
        share_of_tests: the reward is the share of tests passed, all of them run; otherwise the first failure ends it.

    Returns:
        `FIELDS` of domains.py; `acc` is 1.0 where all tests pass. `error`: `no_program`, `too_long`, `crashed`,
        `timeout`, `output` (more of it than is read), or "" for a program that ran to its end.

    Raises:
        ValueError: the row is broken, or the machine refuses the isolation (`sandbox.Refused`).
    """
    tests = read_tests(gold)
    program = last_block(response)
    if not program or len(program) > MAX_PROGRAM:
        verdict = Verdict(0, 1, "too_long" if program else "no_program")
    else:
        seconds = test_time_limit_s
        limits = Limits(cpu_s=seconds, wall_s=3.0 * seconds, memory=memory_limit_mb << 20)
        verdict = judge(program, tests, limits, isolation, max_tests=max_tests, every=share_of_tests)
    solved = float(verdict.passed == verdict.tests)
    return {
        "score": verdict.passed / verdict.tests if share_of_tests else solved,
        "acc": solved,
        "format": float(bool(program)),
        "timeout": float(verdict.error == "timeout"),
        "error": verdict.error,
        "pred": program[:SHOWN].encode("utf-8", "replace").decode(),
    }


def last_block(response: str) -> str:
    """The last fenced block after the thoughts, "" for none."""
    blocks = _BLOCK.findall(answer_part(response))
    return blocks[-1].strip("\n") if blocks else ""


def judge(program: str, tests: Suite, limits: Limits, isolation: str, *, max_tests: int, every: bool) -> Verdict:
    """Run the first `max_tests` tests, up to the first failure unless `every` one is asked for."""
    chosen = tests.tests[:max_tests]
    text = f"{tests.prelude}\n{program}" if tests.prelude else program
    with Sandbox(text, tests.style, limits, isolation) as sandbox:
        if tests.style == "assert":
            end, found = sandbox.check(tests.setup, chosen, every=every)
            return Verdict(sum(found), len(chosen), end)
        passed, error = 0, ""
        for given, expected in chosen:
            ended = sandbox.run(given)
            right = not ended.end and same_output(ended.output, expected)
            passed, error = passed + right, error or ended.end
            if not right and not every:
                break
    return Verdict(passed, len(chosen), error)


def same_output(written: str, expected: str) -> bool:
    """Equal line by line, spaces at the ends of lines and empty last lines aside; numbers as numbers, exactly."""
    one, other = ([line.split() for line in text.rstrip().splitlines()] for text in (written, expected))
    if len(one) != len(other):
        return False
    return all(len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(one, other, strict=True))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return len(one) < 400 and Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """See `Domain`."""
    read_tests(gold)


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """See `Domain`. A row's own solution, `extra_info.solution`, where it has one."""
    solution = (extra or {}).get("solution")
    if solution:
        yield f"```python\n{solution}\n```"


def check_keywords(given: Mapping[str, Any]) -> None:
    """See `Domain`."""
    if given.get("isolation", ISOLATIONS[0]) not in ISOLATIONS:
        expected = " or ".join(map(repr, ISOLATIONS))
        raise ValueError(f"reward_kwargs.isolation={given['isolation']!r}: expected {expected}")
    for name in ("test_time_limit_s", "memory_limit_mb", "max_tests"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"reward_kwargs.{name}={value!r}: expected a whole number of at least 1")
    if not isinstance(given.get("share_of_tests", False), bool):
        raise ValueError(f"reward_kwargs.share_of_tests={given['share_of_tests']!r}: expected true or false")
