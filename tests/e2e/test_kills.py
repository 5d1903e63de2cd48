"""A killed process ends the run: within a minute, with a line that names it, and without anything left behind."""

import json

import pytest

from tests.e2e.runs import KILLED
from tests.faults.kills import complaints

KILLS = (  # run, what was killed, newest checkpoint
    ("resumed", "vLLM engine", 3),
    ("neighbors/dapo_soup", "driver", 3),
)


@pytest.fixture(params=[pytest.param(kill, marks=pytest.mark.runs(kill[0]), id=kill[1]) for kill in KILLS])
def killed(request, run):
    name, target, steps = request.param
    found = json.loads((run(name).folder / KILLED).read_text())
    assert (found["target"], found["steps"]) == (target, steps)
    return found


def test_the_run_ends_soon_says_what_died_and_leaves_no_process(killed):
    assert complaints(killed) == [], killed


def test_no_socket_of_the_run_can_be_reached_from_another_machine(killed):
    assert killed["sockets"] > 10 and killed["open_sockets"] == []
