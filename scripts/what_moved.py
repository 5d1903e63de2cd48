"""What moved in verl, as far as this project builds on it:

    python -m pytest tests/contract --continue-on-collection-errors --junitxml=report.xml
    python scripts/what_moved.py report.xml

Lists what verl's metadata asks for and is not installed, the names we import from it that are not there, and the
contract tests that fail, each with the names of verl that it looks at. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
READ = ("soup_verl", "recipe", "benchmarks", "examples", "tests/contract", "tests/e2e")
LONGEST = 160
"""Characters of a failure's message."""


def imported(tree: ast.AST) -> dict[str, str]:
    """What a module calls the names it imports from verl: by its own name of each, the full one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _of_verl(node.module or ""):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names if _of_verl(alias.name)}
    return found


def _of_verl(module: str) -> bool:
    return module == "verl" or module.startswith("verl.")


def why_missing(name: str) -> str | None:
    """Why `verl.a.b.name` cannot be had, in a line; None if it can."""
    try:
        importlib.import_module(name)
        return None
    except Exception as error:  # whatever a module does when it is imported
        first = f"{type(error).__name__}: {error}".partition("\n")[0]
    module, _, attribute = name.rpartition(".")
    try:
        return None if hasattr(importlib.import_module(module), attribute) else f"{module} has no {attribute}"
    except Exception:
        return first


def missing_names() -> dict[str, tuple[str, list[str]]]:
    """By name: why, and the files that import it."""
    users: dict[str, list[str]] = {}
    for file in sorted(file for folder in READ for file in (ROOT / folder).rglob("*.py")):
        for name in imported(ast.parse(file.read_text())).values():
            users.setdefault(name, []).append(str(file.relative_to(ROOT)))
    reasons = {name: why_missing(name) for name in sorted(users)}
    return {name: (reason, users[name]) for name, reason in reasons.items() if reason is not None}


def unmet_requirements() -> list[str]:
    """What verl asks for without extras, against what is installed."""
    asked = [Requirement(line) for line in importlib.metadata.requires("verl") or []]
    return [
        f"{requirement}, but {have or 'none'} is installed"
        for requirement in asked
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (have := _installed(requirement.name)) is None or not requirement.specifier.contains(have, prereleases=True)
    ]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Failure:
    """A test, or with test="" a module that was not collected; what was raised, and where in verl, if it was there."""

    module: str
    test: str
    raised: str
    where: str


def failures(report: Path) -> Iterator[Failure]:
    """Of every test that failed and every module that was not collected."""
    for case in ElementTree.parse(report).iter("testcase"):
        for problem in (*case.findall("failure"), *case.findall("error")):
            text = re.sub(r"<module '([\w.]+)' from '[^']*'>", r"\1", problem.text or "")
            raised = [line[2:].strip() for line in text.splitlines() if line.startswith("E  ")]
            places = re.findall(r"site-packages/(verl/[\w/]+\.py:\d+): in (\w+)", text)  # of --tb=short
            module, test = case.get("classname") or case.get("name") or "", case.get("name") or ""
            yield Failure(
                module,
                "" if test == module else test,
                (raised or [problem.get("message") or ""])[0][:LONGEST],
                "{1} ({0})".format(*places[-1]) if places else "",
            )


def show(failed: Sequence[Failure]) -> None:
    """What was raised, once, with all tests that met it and the names that every one of them looks at."""
    for raised in dict.fromkeys(failure.raised for failure in failed):
        group = [failure for failure in failed if failure.raised == raised]
        print(f"  {raised}")
        for where in sorted({failure.where for failure in group if failure.where}):
            print(f"      raised in {where}")
        common = set.intersection(*(set(names_of(failure.module, failure.test)) for failure in group))
        print(f"      looking at {', '.join(sorted(common)) or 'various names'}")
        for failure in group:
            print(f"      {failure.module.rpartition('.')[2]}: {failure.test or 'not collected'}")


def names_of(module: str, test: str) -> list[str]:
    """The names of verl that a test looks at; of a whole module where the test itself names none."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    names, function = imported(tree), test.partition("[")[0]
    body = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function), tree)
    own = {names[node.id] for node in ast.walk(body) if isinstance(node, ast.Name) and node.id in names}
    return sorted(own or set(names.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="pytest's --junitxml of tests/contract")
    report = parser.parse_args().report
    cases = len(list(ElementTree.parse(report).iter("testcase")))
    unmet, missing, failed = unmet_requirements(), missing_names(), list(failures(report))
    print(f"verl {importlib.metadata.version('verl')}")
    print(f"\nRequirements that the pins do not meet: {len(unmet)}", *unmet, sep="\n  ")
    print(f"\nNames that we import and that are not there: {len(missing)}")
    for name, (reason, files) in missing.items():
        print(f"  {name}: {reason}\n      in {', '.join(files)}")
    print(f"\nContract tests that fail: {len(failed)} of {cases}")
    show(failed)
    return int(bool(unmet or missing or failed))


if __name__ == "__main__":
    sys.exit(main())
