"""Runs that start again by themselves: `resumed` after a stall, `partial_rollout` and `two_pools` after a death.
test_lookahead.py and test_inflight.py say that they end as if nothing had happened."""

import json
import re

import pytest

from tests.e2e.launch import survivors


def restarts(run, file="run.json"):
    return json.loads((run.folder / file).read_text())["restarts"]


@pytest.mark.runs("resumed")
def test_a_stall_is_told_with_its_stage_and_the_checkpoint_it_goes_on_from(run):
    (stall,) = restarts(run("resumed"), "run.0001.json")  # what was started by hand afterwards has its own
    assert stall["after"].startswith("RunStalled: no progress in the weight sync of step 2 for 0.25 minutes")
    assert stall["newest_checkpoint"] == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in ("partial_rollout", "two_pools")]
)
def test_a_death_is_told_with_what_died(run, name):
    assert run(name).code == 0, run(name).output[-3000:]
    (death,) = restarts(run(name))
    assert "WorkerDict" in death["after"] and "died" in death["after"]
    assert death["newest_checkpoint"] == 2


@pytest.mark.runs("partial_rollout")
def test_the_checkpoints_of_both_starts_are_counted_together(run):
    """One was asked for: each start made its own."""
    assert [actor.parent.name for actor in run("partial_rollout").folder.glob("*/actor")] == ["global_step_6"]


@pytest.mark.runs("resumed")
def test_the_stacks_of_the_stall_are_those_of_every_kind_of_process(run):
    written = (run("resumed").folder / "stacks.1.txt").read_text()
    parts = written.split("==== ")[1:]
    kinds = ["recipe.soup.main_soup", "TaskRunner", "WorkerDict", "EngineCore", "AgentLoopWorker", "SimpleStorageUnit"]
    for kind in kinds:
        (part,) = [part for part in parts if re.search(rf"^process \d+ .*{kind}", part)]
        assert re.search(r'^  File ".*", line \d+ in \w+', part, re.M), part
    assert "update_weights" in next(part for part in parts if "TaskRunner" in part)
    assert "(T (stopped))" in next(part for part in parts if "WorkerDict" in part)
    assert any("raylet" in part.splitlines()[0] for part in parts)  # named, though no Python


@pytest.mark.runs("partial_rollout")
def test_no_process_is_left(run):
    assert survivors(run("partial_rollout").folder) == []
