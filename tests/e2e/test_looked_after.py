"""A run through a stall and a death, started once: it says what happened and ends as one that nothing happened to."""

import json
import re

import pytest
import torch

from tests.e2e.launch import survivors
from tests.faults.kills import unfair_epochs

pytestmark = pytest.mark.runs("looked_after", "six_steps")


def test_it_comes_to_its_end_with_the_parameters_of_a_run_that_was_left_in_peace(run):
    looked_after, alone = run("looked_after"), run("six_steps")
    assert looked_after.code == 0
    assert unfair_epochs(looked_after, 6) == []
    expected = alone.weights(6)
    for name, tensor in looked_after.weights(6).items():
        assert torch.equal(tensor, expected[name]), name


def test_run_json_counts_what_happened_in_order(run):
    stall, death = json.loads((run("looked_after").folder / "run.json").read_text())["restarts"]
    assert stall["after"].startswith("RunStalled: no progress in the weight sync of step 3 for 0.25 minutes")
    assert "WorkerDict" in death["after"] and "died" in death["after"]
    assert [stall["newest_checkpoint"], death["newest_checkpoint"]] == [3, 3]  # killed before it was written
    assert stall["at"] < death["at"]


def test_the_stacks_of_the_stall_are_those_of_every_kind_of_process(run):
    written = (run("looked_after").folder / "stacks.1.txt").read_text()
    parts = written.split("==== ")[1:]
    kinds = ["recipe.soup.main_soup", "TaskRunner", "WorkerDict", "EngineCore", "AgentLoopWorker", "SimpleStorageUnit"]
    for kind in kinds:
        (part,) = [part for part in parts if re.search(rf"^process \d+ .*{kind}", part)]
        assert re.search(r'^  File ".*", line \d+ in \w+', part, re.M), part
    assert "update_weights" in next(part for part in parts if "TaskRunner" in part)
    assert "(T (stopped))" in next(part for part in parts if "WorkerDict" in part)
    assert any("raylet" in part.splitlines()[0] for part in parts)  # named, though no Python


def test_no_process_is_left(run):
    assert survivors(run("looked_after").folder) == []
