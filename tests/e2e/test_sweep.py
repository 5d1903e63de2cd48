"""A sweep on the real stack: its table says what the runs' own metrics say."""

import json

import pytest

from tests.e2e.launch import survivors

BOTH = ("lora_fsdp", "lora_fsdp_resumed")


@pytest.mark.runs(*BOTH)
def test_the_table_is_of_the_last_validation_and_paired_with_the_baseline(run):
    baseline, other = (run(name) for name in BOTH)
    assert (baseline.code, other.code) == (0, 0), other.output[-3000:]
    out = baseline.folder.parent
    said = json.loads((out / "sweep.json").read_text())
    assert said["baseline"] == "lora_fsdp" and said["missing"] == {}
    metrics = {row["metric"] for row in said["rows"]}
    assert "val-soup/sums/pass@1" in metrics
    for row in said["rows"]:
        last, first = (found.metrics()[4][row["metric"]] for found in (other, baseline))
        value = first if row["method"] == "lora_fsdp" else last
        assert row["values"] == {"0": value} and row["mean"]["mean"] == value
        if row["method"] != "lora_fsdp":
            assert row["difference"]["mean"] == last - first and row["difference"]["seeds"] == 1
    assert len(said["rows"]) == 2 * len(metrics)
    assert "lora_fsdp" in (out / "report.html").read_text()


@pytest.mark.runs(*BOTH)
def test_its_processes_end_with_it(run):
    assert survivors(run("lora_fsdp").folder.parent) == []
