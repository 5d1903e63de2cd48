"""pass@k of a validation is that of the very responses which verl wrote down."""

import json
from collections import defaultdict
from statistics import fmean

import pytest


@pytest.mark.runs("snapshot_fsdp2")
def test_pass_at_k_of_eight_prompts_with_four_responses_each(run):
    finished = run("snapshot_fsdp2")
    assert finished.code == 0, finished.output[-3000:]
    for step in (2, 4):
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
    found = finished.metrics()[2]  # at step 4 the model gives one answer to everything
    assert found["val-soup/even/pass@1"] < found["val-soup/even/pass@2"] < found["val-soup/even/pass@4"]
    assert found["val-core/even/acc/best@4/mean"] < found["val-soup/even/pass@4"]


@pytest.mark.runs("soup_without_mixing")
def test_a_run_that_never_mixes_has_it_too(run):
    finished = run("soup_without_mixing")
    assert finished.code == 0, finished.output[-3000:]
    found = finished.metrics()[3]
    assert found["val-soup/sums/pass@1"] == found["val-core/sums/acc/mean@1"]
