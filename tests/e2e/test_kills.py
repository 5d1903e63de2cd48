"""A killed process ends the run: within a minute, with a line that names it, and without anything left behind."""

import json

import pytest

from tests.faults.kills import END

pytestmark = pytest.mark.runs("resumed")


@pytest.fixture
def killed(run):
    return {kill["target"]: kill for kill in json.loads((run("resumed").folder / "killed.json").read_text())}


@pytest.mark.parametrize("target", ["vLLM engine", "driver"])
def test_the_run_ends_soon_and_says_what_died(killed, target):
    kill = killed[target]
    assert kill["code"] != 0
    assert kill["seconds"] < END
    assert kill["named"], kill["last_line"]


@pytest.mark.parametrize("target", ["vLLM engine", "driver"])
def test_no_process_is_left(killed, target):
    assert killed[target]["survivors"] == []


def test_the_kills_were_before_and_after_a_checkpoint(killed):
    assert [kill["steps"] for kill in killed.values()] == [0, 3]


def test_no_socket_of_the_run_can_be_reached_from_another_machine(killed):
    for kill in killed.values():
        assert kill["sockets"] > 10 and kill["open_sockets"] == []
