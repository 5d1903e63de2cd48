"""What a row of code is judged by: its `ground_truth`, JSON text of one of two styles.

{"style": "stdin", "tests": [{"input": "1 2\\n", "output": "3\\n"}, ..]}
{"style": "assert", "setup": "import math", "prelude": "", "tests": ["assert f(1) == 2", ..]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STYLES = ("stdin", "assert")


@dataclass(frozen=True)
class Suite:
    """Args:
    style: of `STYLES`.
    tests: (input, expected output) each, or Python text each, which raises where a program is wrong.
    setup: Python text that runs before the tests.
    prelude: Python text that is put before the program: what its task gives it.
    """

    style: str
    tests: tuple[Any, ...]
    setup: str = ""
    prelude: str = ""

    def as_gold(self) -> str:
        """The text for `ground_truth`."""
        tests: list[Any] = list(self.tests)
        if self.style == "stdin":
            return json.dumps({"style": "stdin", "tests": [{"input": i, "output": o} for i, o in tests]})
        return json.dumps({"style": "assert", "setup": self.setup, "prelude": self.prelude, "tests": tests})


def read_tests(ground_truth: Any) -> Suite:
    """The tests of a row.

    Raises:
        ValueError: names what is wrong with `ground_truth`.
    """
    try:
        found = json.loads(ground_truth)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, Mapping) or found.get("style") not in STYLES:
        raise _broken(ground_truth, f"JSON text with a style of {' or '.join(STYLES)}")
    tests = found.get("tests")
    if not isinstance(tests, list) or not tests:
        raise _broken(ground_truth, "at least one test: a program without tests cannot be judged")
    if found["style"] == "assert":
        texts = [found.get("setup", ""), found.get("prelude", ""), *tests]
        if not all(isinstance(text, str) for text in texts):
            raise _broken(ground_truth, "tests, setup and prelude that are Python text")
        return Suite("assert", tuple(tests), texts[0], texts[1])
    if not all(isinstance(t, Mapping) and isinstance(t.get("input"), str) for t in tests) or not all(
        isinstance(t.get("output"), str) for t in tests
    ):
        raise _broken(ground_truth, "an input and an output, both text, in every test")
    return Suite("stdin", tuple((t["input"], t["output"]) for t in tests))


def _broken(ground_truth: Any, expected: str) -> ValueError:
    return ValueError(f"ground_truth={str(ground_truth)[:60]!r}: expected {expected}")
