"""The run scripts, rehearsed: both papers' models with their tokenizers, and models of other families."""

import pytest

from soup_verl.evaluation.samples import SCORED
from soup_verl.records import run_log
from tests.e2e.launch import survivors
from tests.e2e.rehearsals import SCRIPTS, record
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES

WHOLE = [name for name, (_, _, extent, _) in SCRIPTS.items() if extent == "1"]
SHORT = [name for name in SCRIPTS if name not in WHOLE]


def each(names):
    code = {"rehearsed_code": [NEEDS_NAMESPACES]}
    marks = {name: [pytest.mark.runs(name), *code.get(name, [])] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=of_name) for name, of_name in marks.items()])


@each(SCRIPTS)
def test_every_stage_that_was_asked_for_ran(run, name):
    finished = run(name)
    assert finished.code == 0, finished.output[-3000:]
    found = record(finished)
    asked = [s for s in found["stages"] if s["verdict"] != "not asked for"]
    assert found["complete"] and {s["verdict"] for s in asked} == {"exercised"}
    assert len(asked) == (11 if name in WHOLE else 7)
    assert "Only a GPU shows:" in finished.output


@each(SCRIPTS)
def test_the_runs_files_say_so_too(run, name):
    folder = run(name).folder / "re hearsal" / "run"
    metrics = run_log.read(folder)
    grpo, snapshot = "code" in name, "snapshot" in name
    last = 3 if grpo else 5 if snapshot else 4
    assert [step for step in metrics if step] == list(range(1, last + 1))
    prefixed = [step for step in metrics if metrics[step].get("soup/prefix_tokens_total", 0) > 0]
    assert prefixed == ([] if grpo else [last - 2, last - 1, last])
    assert (folder / f"global_step_{last}" / "soup" / "manifest.json").is_file()
    assert any(key.startswith("val") for key in metrics[0])


@each(SCRIPTS)
def test_nothing_is_left_running_and_nothing_is_written_elsewhere(run, name):
    finished = run(name)
    assert survivors(finished.folder) == []
    assert not (finished.folder / "my data").exists()
    assert not any(file.suffix == ".safetensors" for file in (finished.folder / "a model").iterdir())


@each(WHOLE)
def test_the_checkpoint_is_evaluated_and_on_the_page(run, name):
    folder = run(name).folder / "re hearsal"
    benchmarks = len(list((folder / "rows" / "val").glob("*.parquet")))
    assert (folder / "evaluation" / SCORED).read_text().count("\n") == benchmarks * 2 * 2  # rows, samples
    assert "pass@2" in (folder / "report.html").read_text()


@each(WHOLE)
def test_the_kill_came_between_two_starts(run, name):
    folder = run(name).folder / "re hearsal" / "run"
    starts = [[step for step, _ in run_log.read_file(file)] for file in sorted(folder.glob("metrics*.jsonl"))]
    kept = record(run(name))["overrides"]["trainer.save_freq"]
    assert len(starts) == 2 and kept in starts[0] and kept + 1 in starts[1]


@each(["rehearsed_llama"])
def test_data_and_reward_of_ones_own_are_what_is_rehearsed(run, name):
    """The reward tells responses apart, so that even a random model is trained."""
    folder = run(name).folder / "re hearsal" / "run"
    metrics = run_log.read(folder)
    assert all(metrics[step]["actor/grad_norm"] > 0 for step in metrics if step)
    assert "val-core/varied/acc/mean@2" in metrics[0]
