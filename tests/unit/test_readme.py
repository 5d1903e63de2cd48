"""What the documents point at exists: functions in the READMEs' tables, files, links and their anchors."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, RECIPE = ROOT / "README.md", ROOT / "recipe/soup/README.md"
DOCUMENTS = [README, RECIPE, *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "soup_verl|recipe|tests|benchmarks|examples|scripts"
LONGEST_README = 160


def without_code(text: str) -> str:
    """Markdown without fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def named_in_tables(text: str) -> list[tuple[str, str]]:
    """Every `file.py:name` in a row of a table."""
    rows = [line for line in without_code(text).splitlines() if line.startswith("|")]
    return [found for row in rows for found in re.findall(r"`([\w./-]+\.py):([\w.]+)`", row)]


def defined(source: str) -> set[str]:
    """Functions and classes of a module, methods by their own name and as `Class.method`."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= methods | {f"{node.name}.{method}" for method in methods}
    return names


def anchors(text: str) -> set[str]:
    """Of every heading, as GitHub makes them; a heading that comes again gets a number."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found


def relative_links(text: str) -> list[str]:
    """Targets of links and images that are no URLs."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def dead_links(document: Path, text: str) -> list[str]:
    """Links of a document to what is not there."""
    dead = []
    for target in relative_links(text):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(text if file == document else file.read_text())):
            dead.append(target)
    return dead


@pytest.mark.parametrize("document", [README, RECIPE], ids=["README", "recipe"])
def test_every_function_in_a_table_exists(document):
    named = named_in_tables(document.read_text())
    assert len(named) >= 10
    missing = [(f, n) for f, n in named if not (ROOT / f).is_file() or n not in defined((ROOT / f).read_text())]
    assert missing == []


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document):
    assert dead_links(document, document.read_text()) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_file_that_is_named_exists(document):
    text = without_code(document.read_text())
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|sh|yaml|md))(?:`|:)", text)
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_a_page_with_python_commands_to_copy_says_which_python_or_links_to_where_it_is_said(document):
    text = document.read_text()
    if re.search(r"^(?: {4})?python (-m|scripts/)", text, re.M):
        assert "(../README.md#two-commands)" in text or "`source .venv/bin/activate`" in text
    assert "`source .venv/bin/activate`" in README.read_text()


def test_every_page_is_in_the_index():
    linked = set(relative_links((ROOT / "docs/README.md").read_text()))
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in {*linked, "README.md"}] == []


def test_the_readers_of_markdown_see_what_a_person_sees(tmp_path):
    assert named_in_tables("`a.py:f`\n| `a.py:f`, `b/c.py:D.m` |\n```\n| `e.py:g` |\n```\n") == [
        ("a.py", "f"),
        ("b/c.py", "D.m"),
    ]
    assert defined("class A:\n    async def m(self): ...\ndef f(): ...\nX = 1\n") == {"A", "m", "A.m", "f"}
    assert anchors("# It's `a_b`, or 2!\n## Two words\n## Two words\n") == {"its-a_b-or-2", "two-words", "two-words-1"}
    text = "[a](a.md) [b](b.md#two-words) [c](b.md#three) ![d](d.png) [e](https://e.org) [f](#here)\n# Here\n"
    (tmp_path / "b.md").write_text("## Two words\n")
    (tmp_path / "c.md").write_text(text)
    assert dead_links(tmp_path / "c.md", text) == ["a.md", "b.md#three", "d.png"]
