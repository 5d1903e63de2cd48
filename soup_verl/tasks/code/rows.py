"""From the rows of the code data sets to problems: whichever reader's columns are there reads them."""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from soup_verl.tasks.code.gold import Suite, read_tests
from soup_verl.tasks.data.cleaning import Fault, RowRules
from soup_verl.tasks.data.datasets import DatasetSpec, Problem
from soup_verl.tasks.data.layouts import DataError, as_text, as_texts

MAX_CHARS = 1 << 22
"""Of a row's tests; there are rows of hundreds of megabytes."""


def row_fault(problem: Problem) -> Fault | None:
    """(reason, detail) of tests that nothing can be judged by."""
    if len(problem.gold) > MAX_CHARS:
        return "too_many_tests", f"{len(problem.gold):,} characters"
    try:
        read_tests(problem.gold)
    except ValueError as error:
        return "no_tests", str(error).partition(": expected ")[2]
    return None


ROWS = RowRules(
    fault=row_fault,
    drops={
        "no_tests": "no test that a program could be judged by",
        "too_many_tests": f"tests of more than {MAX_CHARS:,} characters",
    },
)


@dataclass(frozen=True)
class Read:
    """What a row says: its question, its tests, and its own solution."""

    question: str
    tests: Suite
    id: str = ""
    solution: str = ""


def _plain(row: Mapping[str, Any]) -> Read:
    """Our own format: `tests` is as in `gold.py`, a mapping or JSON text."""
    gold = row["tests"] if isinstance(row["tests"], str) else json.dumps(row["tests"])
    try:
        tests = read_tests(gold)
    except ValueError:
        tests = Suite("assert", ())
    return Read(as_text(row["question"]), tests, as_text(row.get("id")), as_text(row.get("solution")))


def _mbpp(row: Mapping[str, Any]) -> Read:
    """MBPP (arXiv 2108.07732), full or sanitized, and MBPP+: the first test shows the name and the form of the call."""
    tests = tuple(map(as_text, row["test_list"] or ()))
    setup = "\n".join([as_text(row.get("test_setup_code")), *map(as_text, row.get("test_imports") or ())])
    shown = f"\nYour code should pass this test:\n{tests[0]}" if tests else ""
    if row.get("test"):  # MBPP+: one text with all inputs and results
        tests = (as_text(row["test"]),)
    question = as_text(row["text"] if "text" in row else row["prompt"])
    return Read(question + shown, Suite("assert", tests, setup), as_text(row["task_id"]), as_text(row["code"]))


def _human_eval(row: Mapping[str, Any]) -> Read:
    """HumanEval (arXiv 2107.03374) and HumanEval+: what stands above the function in its prompt is given to it."""
    prompt, name = as_text(row["prompt"]), as_text(row["entry_point"])
    test = f"{as_text(row['test'])}\ncheck({name})" if row["test"] else ""
    tests = Suite("assert", (test,) if test else (), prelude=prompt.rpartition(f"def {name}")[0])
    question = f"Complete this function.\n```python\n{prompt.strip()}\n```"
    return Read(question, tests, as_text(row["task_id"]), prompt + as_text(row["canonical_solution"]))


def _live_code_bench(row: Mapping[str, Any]) -> Read:
    """LiveCodeBench (arXiv 2403.07974): public and hidden tests, of standard input or of a method of `Solution`."""
    found = json.loads(as_text(row["public_test_cases"]) or "[]") + hidden_tests(as_text(row["private_test_cases"]))
    name = json.loads(as_text(row.get("metadata")) or "{}").get("func_name")
    return Read(_with_starter(row["question_content"], row), _cases(found, name), as_text(row["question_id"]))


def _deep_coder(row: Mapping[str, Any]) -> Read:
    """DeepCoder's collection: a list of tests as JSON text, each with the name of its function if it has one."""
    found = row["tests"] if isinstance(row["tests"], list) else json.loads(as_text(row["tests"]) or "[]")
    name = next((t.get("fn_name") or (t.get("metadata") or {}).get("func_name") for t in found), None)
    solution = next(iter(as_texts(row.get("solutions"))), "")
    return Read(_with_starter(row["problem"], row), _cases(found, name), solution=_bare(solution))


def _with_starter(question: Any, row: Mapping[str, Any]) -> str:
    starter = as_text(row.get("starter_code")).strip()
    how = (
        f"Use this beginning:\n```python\n{starter}\n```" if starter else "Read standard input, write standard output."
    )
    return f"{as_text(question)}\n\n{how}"


def _bare(solution: str) -> str:
    return solution.strip().removeprefix("```python").removesuffix("```").strip()


def _cases(found: list[Mapping[str, Any]], name: str | None) -> Suite:
    if name is None:
        return Suite("stdin", tuple((as_text(t["input"]), as_text(t["output"])) for t in found))
    return Suite("assert", tuple(_call(name, t["input"], t["output"]) for t in found), prelude=TYPES)


TYPES = "from typing import *"
"""What the beginnings of LiveCodeBench take for given."""


def _call(name: str, given: Any, expected: Any) -> str:
    """An assert of a method: the arguments are JSON, one a line, or a list of them."""
    arguments = [json.loads(line) for line in given.splitlines() if line.strip()] if isinstance(given, str) else given
    result = json.loads(expected) if isinstance(expected, str) else expected
    return f"assert Solution().{name}(*{arguments!r}) == {result!r}"


def hidden_tests(text: str) -> list[Mapping[str, Any]]:
    """LiveCodeBench's: JSON, or JSON that was pickled, compressed and written in base 64. The pickle is not loaded: of
    a text alone it is a text that can be read out.

    Raises:
        DataError: it is something else.
    """
    try:
        return json.loads(text or "[]")
    except ValueError:
        pass
    try:
        pickled = zlib.decompress(base64.b64decode(text))
        texts = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
        (only,) = texts
        return json.loads(only)
    except Exception as error:  # whatever is wrong with bytes from elsewhere
        raise DataError(f"column 'private_test_cases' is {text[:40]!r}, expected LiveCodeBench's ({error})") from None


@dataclass(frozen=True)
class Reader:
    """The columns by which a kind of row is known, and how it reads."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Read]


READERS = (
    Reader(("question_content", "public_test_cases", "private_test_cases"), _live_code_bench),
    Reader(("prompt", "canonical_solution", "entry_point", "test"), _human_eval),
    Reader(("task_id", "code", "test_list"), _mbpp),
    Reader(("problem", "tests"), _deep_coder),
    Reader(("question", "tests"), _plain),
)


def problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """See `Domain`. A row whose column of tests is there and empty is dropped later, and counted.

    Raises:
        DataError: no reader knows the columns, or a row is not as its reader expects.
    """
    reader: Reader | None = None
    for number, row in rows:
        reader = reader or _reader(row)
        try:
            found = reader.read(row)
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"row {number}: {type(error).__name__}: {error}"[:300]) from None
        own = found.id or f"{spec.name}/{number}"
        extra = {"solution": found.solution}
        yield Problem(number, own, found.question, found.tests.as_gold(), domain="code", extra=extra)


def _reader(row: Mapping[str, Any]) -> Reader:
    for reader in READERS:
        if set(reader.columns) <= set(row):
            return reader
    kinds = "; or ".join(", ".join(reader.columns) for reader in READERS)
    raise DataError(f"the columns are {', '.join(row) or 'none'}: expected {kinds}")
