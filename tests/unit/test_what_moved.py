"""What scripts/what_moved.py makes of a verl that moved, shown on names that are not in this one."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded(path):
    """The module of a script: `scripts` is the name of other people's packages too."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


what_moved = loaded(ROOT / "scripts" / "what_moved.py")


def test_imports_of_verl_are_found_under_the_names_they_have_here():
    source = "import verl.a.b as c\nimport torch\nfrom verl.d import e, f as g\ndef h():\n    from verl import i\n"
    assert what_moved.imported(ast.parse(source)) == {"c": "verl.a.b", "e": "verl.d.e", "g": "verl.d.f", "i": "verl.i"}
    assert what_moved.imported(ast.parse("from . import verl\nimport verlog\nfrom soup_verl import compare")) == {}


@pytest.mark.e2e  # verl is imported
@pytest.mark.parametrize("name", ["verl", "verl.utils.tracking", "verl.utils.tracking.Tracking"])
def test_a_module_and_a_name_that_are_there_are_not_missing(name):
    assert what_moved.why_missing(name) is None


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("verl.utils.tracking.Tracked", "verl.utils.tracking has no Tracked"),
        ("verl.no_such.Tracking", "ModuleNotFoundError: No module named 'verl.no_such'"),
    ],
)
def test_what_is_missing_is_told_in_a_line(name, why):
    assert what_moved.why_missing(name) == why


TESTS = """
from verl.utils.tracking import Tracking
from verl.utils import fs

def test_that_passes():
    assert Tracking

def test_that_fails():
    assert Tracking.supported_backend == ["console"]

def test_of_no_name():
    raise KeyError("batch key")

def test_within_verl():
    Tracking("project", "name", default_backend="no_such")
"""


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """pytest's report of three tests and of a module that cannot be imported."""
    (tmp_path / "contract").mkdir()
    (tmp_path / "contract" / "test_some.py").write_text(TESTS)
    (tmp_path / "contract" / "test_gone.py").write_text("from verl.no_such import thing\n")
    command = [sys.executable, "-m", "pytest", "contract", "--rootdir=.", "-p", "no:cacheprovider", "--tb=short"]
    more = ["-q", "--continue-on-collection-errors", "--junitxml=report.xml"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    monkeypatch.setattr(what_moved, "ROOT", tmp_path)
    return tmp_path / "report.xml"


@pytest.mark.e2e
def test_failures_are_told_with_what_was_raised_and_the_names_they_look_at(reported, capsys):
    found = {(failure.module, failure.test): failure.raised for failure in what_moved.failures(reported)}
    assert set(found) == {
        ("contract.test_gone", ""),
        ("contract.test_some", "test_that_fails"),
        ("contract.test_some", "test_of_no_name"),
        ("contract.test_some", "test_within_verl"),
    }
    assert found["contract.test_gone", ""] == "ModuleNotFoundError: No module named 'verl.no_such'"
    assert found["contract.test_some", "test_of_no_name"] == "KeyError: 'batch key'"
    assert found["contract.test_some", "test_that_fails"].startswith("AssertionError: assert ['wandb'")
    assert what_moved.names_of("contract.test_some", "test_that_fails[a]") == ["verl.utils.tracking.Tracking"]
    both = ["verl.utils.fs", "verl.utils.tracking.Tracking"]
    assert what_moved.names_of("contract.test_some", "test_of_no_name") == both
    assert what_moved.names_of("contract.test_gone", "") == ["verl.no_such.thing"]
    what_moved.show(list(what_moved.failures(reported)))
    shown = capsys.readouterr().out
    assert re.search(
        r"  AssertionError: no_such is not supported\n"
        r"      raised in __init__ \(verl/utils/tracking.py:\d+\)\n"
        r"      looking at verl.utils.tracking.Tracking\n"
        r"      test_some: test_within_verl\n",
        shown,
    )


@pytest.mark.e2e
def test_the_pinned_verl_has_every_name_and_its_requirements():
    assert what_moved.missing_names() == {} and what_moved.unmet_requirements() == []
