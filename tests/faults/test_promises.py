"""Every test that docs/reliability.md names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_tests(text: str) -> list[tuple[str, str]]:
    """(file, test function or "" for the whole file); a bare test in a row is in the file named before it."""
    found, file = [], ""
    for path, test, bare in re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`|`(test_\w+)`", text):
        file = path or file
        found.append((file, test or bare))
    return found


def test_every_promise_names_a_test_that_exists():
    named = named_tests((ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    missing = [
        (file, test)
        for file, test in named
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text())
    ]
    assert missing == []


def test_the_reader_follows_a_bare_name_to_the_file_before_it():
    text = "| a | `tests/a.py::test_one`, `test_two` |\n| b | `tests/b.py` |"
    assert named_tests(text) == [("tests/a.py", "test_one"), ("tests/a.py", "test_two"), ("tests/b.py", "")]
