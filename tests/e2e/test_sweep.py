"""A sweep on the real stack: its table says what the runs' own metrics say, and it is not made twice."""

import json
import re
import statistics

import pytest

from tests.e2e.launch import survivors, sweep_again

BOTH, METRIC = ("lora_fsdp", "lora_fsdp_resumed"), "val-core/even/acc/mean@1"
pytestmark = pytest.mark.runs(*BOTH)


def made(folder):
    """When each file of the runs was written last, and what they have said."""
    files = [file for name in BOTH for file in (folder / f"{name}-s0").rglob("*") if file.is_file()]
    return {str(file): file.stat().st_mtime_ns for file in files} | {"log": (folder / "log.txt").read_text()}


def curves(page, panel):
    """What plotly.js draws in a panel of the page."""
    return json.loads(re.search(rf'id="{panel}">(.*?)</script>', page)[1])["data"]


def test_the_table_is_of_the_last_validation_and_paired_with_the_baseline(run):
    baseline, other = (run(name) for name in BOTH)
    assert (baseline.code, other.code) == (0, 0), other.output[-3000:]
    said = json.loads((baseline.folder.parent / "sweep.json").read_text())
    assert said["baseline"] == BOTH[0] and said["missing"] == {}
    metrics = {row["metric"] for row in said["rows"]}
    assert METRIC in metrics
    assert len(said["rows"]) == 2 * len(metrics)
    for row in said["rows"]:
        last = {name: run(name).metrics()[4][row["metric"]] for name in BOTH}
        assert row["values"] == {"0": last[row["method"]]} and row["mean"]["mean"] == last[row["method"]]
        if row["method"] != BOTH[0]:
            assert row["difference"]["mean"] == last[BOTH[1]] - last[BOTH[0]] and row["difference"]["seeds"] == 1


def test_the_same_command_again_trains_nothing_and_has_the_same_table_and_curves(run):
    folder = run(BOTH[0]).folder.parent
    before, table = made(folder), (folder / "sweep.json").read_text()
    (folder / "report.html").unlink()
    code, output = sweep_again(folder)
    assert code == 0, output[-3000:]
    assert made(folder) == before and (folder / "sweep.json").read_text() == table
    assert "run 1 of" not in output and METRIC in output
    page = (folder / "report.html").read_text()
    assert all(f"{name}-s0</code>: step 4" in page for name in BOTH)
    # The runs are trained with the same settings: the page draws them as two seeds of one.
    value = statistics.mean(run(name).metrics()[4][METRIC] for name in BOTH)
    assert any(line["x"] == [4] and line["y"] == [pytest.approx(value)] for line in curves(page, "validation-1"))


def test_its_processes_end_with_it(run):
    assert survivors(run(BOTH[0]).folder.parent) == []
