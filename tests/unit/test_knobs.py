"""The tables of settings in the README and in docs/knobs.md: every key, and its default."""

import re
from pathlib import Path

import pytest

from soup_verl.method.checks import leaves
from soup_verl.method.config import SoupConfig

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "## Ten knobs", "docs/knobs.md": "# Knobs"}
DEFAULTS = {key.removeprefix("soup."): value for key, value in leaves("soup", SoupConfig())}
WORDS = {"none": None, "off": None, "null": None, "all": None, "true": True, "false": False, "64M": 64_000_000}
DESCRIBED = ("prefix_length", "mixed_fraction_schedule")
"""Their default is said in words."""


def rows(page: str) -> list[tuple[list[str], list[str]]]:
    """Of each row of the page's table its keys, in full, and the defaults it says."""
    table = (ROOT / page).read_text().split(PAGES[page])[1].split("\n## ")[0]
    found = []
    for line in table.splitlines():
        if line.startswith("| `"):
            named, said = line.split("|")[1:3]
            keys: list[str] = []
            for key in re.findall(r"`([^`]+)`", named):
                keys.append(keys[0].rpartition(".")[0] + key if key.startswith(".") else key)
            found.append((keys, [part.strip() for part in said.split(";")[0].split(",")]))
    return found


def value(said: str) -> object:
    """As the table spells it: names of choices stand in backticks."""
    return WORDS[said] if said in WORDS else float(said) if re.fullmatch(r"[\d.]+", said) else said.strip("`")


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_say_the_defaults(page):
    said = {key: value(one) for keys, parts in rows(page) for key, one in zip(keys, parts, strict=False)}
    assert len(said) >= 9
    assert {key: one for key, one in said.items() if not key.startswith(DESCRIBED) and DEFAULTS[key] != one} == {}


def test_every_setting_is_in_the_table():
    named = [key for keys, _ in rows("docs/knobs.md") for key in keys]
    assert [key for key in DEFAULTS if not any(key == one or key.startswith(f"{one}.") for one in named)] == []
