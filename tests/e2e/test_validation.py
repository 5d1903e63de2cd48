"""pass@k of a validation is that of the very responses which verl wrote down."""

import json
from collections import defaultdict
from statistics import fmean

import pytest

from soup_verl.stack.checkpoint import verify


@pytest.mark.runs("snapshot_fsdp2")
def test_pass_at_k_of_eight_prompts_with_four_responses_each(run):
    finished = run("snapshot_fsdp2")
    assert finished.code == 0, finished.output[-3000:]
    for step in (0, 2, 4):
        rights = defaultdict(list)
        for line in (finished.folder / "validation" / f"{step}.jsonl").read_text().splitlines():
            response = json.loads(line)
            rights[response["uid"].rsplit("_", 2)[0]].append(response["acc"])  # PROMPT_SESSION_OUTPUT
        assert [len(of_prompt) for of_prompt in rights.values()] == [4] * 8
        found = finished.metrics()[step]
        one, four = found["val-soup/even/pass@1"], found["val-soup/even/pass@4"]
        assert one == pytest.approx(fmean(map(fmean, rights.values())))
        assert one == pytest.approx(found["val-core/even/acc/mean@4"])
        assert four == fmean(any(of_prompt) for of_prompt in rights.values())
    found = finished.metrics()[0]  # a random model; later it may give one answer to everything
    assert found["val-soup/even/pass@1"] < found["val-soup/even/pass@2"] < found["val-soup/even/pass@4"]
    assert found["val-core/even/acc/best@4/mean"] < found["val-soup/even/pass@4"]


@pytest.mark.runs("soup_without_mixing")
def test_a_run_that_never_mixes_has_it_too(run):
    finished = run("soup_without_mixing")
    assert finished.code == 0, finished.output[-3000:]
    found = finished.metrics()[3]
    assert found["val-soup/sums/pass@1"] == found["val-core/sums/acc/mean@1"]


def best_of(run):
    """What `best.json` says, after what the link says."""
    said = json.loads((run.folder / "best.json").read_text())
    assert (run.folder / "best").readlink().name == f"global_step_{said['step']}"
    return said["step"], {int(step): value for step, value in said["values"].items()}


@pytest.mark.runs("best_kept")
def test_the_best_checkpoint_is_kept_beside_the_newest(run):
    finished = run("best_kept")
    assert finished.code == 0, finished.output[-3000:]
    best, values = best_of(finished)
    assert values == {step: metrics["val-soup/even/pass@2"] for step, metrics in finished.metrics().items()}
    assert sorted(values) == [1, 2, 3, 4, 5] and best == max(values, key=lambda step: (values[step], -step))
    left = {int(actor.parent.name.rpartition("_")[2]) for actor in finished.folder.glob("global_step_*/actor")}
    assert {best, 5} <= left and len(left) <= 2
    verify(finished.folder / "best")


@pytest.mark.runs("six_steps", "resumed")
def test_a_killed_and_resumed_run_has_the_same_best_checkpoint(run):
    """Judged at step 3 before two kills, and at step 6 after them."""
    whole, resumed = run("six_steps"), run("resumed")
    best, values = best_of(whole)
    assert values == {step: whole.metrics()[step]["val-aux/sums/reward/mean@1"] for step in (3, 6)}
    assert best == min((3, 6), key=values.get)  # a minus: less is better
    assert best_of(resumed) == (best, values)
