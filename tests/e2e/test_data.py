"""A file as other people write it: UUIDs for an index, or none, a byte order mark, Windows line ends; fewer steps than
asked for."""

import json

import pytest

from soup_verl.launch.finished import FINISHED
from soup_verl.records import sample_log


@pytest.mark.runs("any_index")
def test_replay_knows_rows_by_an_index_of_any_kind(run):
    made = run("any_index")
    assert made.code == 0, made.output[-2000:]
    metrics = made.metrics()
    assert [metrics[step]["soup/mixed_responses_share"] for step in (1, 2, 3, 4)] == [0, 0, 0.5, 0.5]
    shown = {entry["index"] for entries in sample_log.read(made.folder).values() for entry in entries}
    assert shown and all(index == "none" or len(index) == 36 for index in shown)


@pytest.mark.runs("any_index")
def test_epochs_that_end_before_the_steps_asked_for_have_their_last_step_saved_and_validated(run):
    """Two epochs of two batches, ten steps asked for, a checkpoint and a validation every hundred."""
    made = run("any_index")
    assert (made.folder / "global_step_4" / "actor").is_dir()
    assert "val-soup/sums/pass@1" in made.metrics()[4]
    said = json.loads((made.folder / FINISHED).read_text())
    assert said == {"steps": 4, "asked": {"steps": 10, "epochs": 2}}
