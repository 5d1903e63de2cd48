import json
from pathlib import Path

import pytest

from soup_verl.reporting import runs
from soup_verl.reporting.runs import Interval, ReportError, find_results, read_runs
from tests.unit.reporting.folders import SAMPLE, results_of, write_run


def test_a_run_is_its_metrics_settings_facts_and_last_samples(tmp_path):
    folder = write_run(
        tmp_path / "a",
        metrics={"x": [1.0, 2.0], "y": [3]},
        facts={"started": "today"},
        samples=[{**SAMPLE, "step": 1}, SAMPLE],
        soup__seed=4,
    )
    (run,) = read_runs([folder])
    assert run.metrics == {"x": {1: 1.0, 2: 2.0}, "y": {1: 3.0}} and run.last_step == 2
    assert run.settings["soup.seed"] == 4 and run.settings["data.files"] == "a.parquet"
    assert run.facts == {"started": "today"} and [s["step"] for s in run.samples] == [2]


def test_what_is_no_finite_number_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", metrics={"x": [1.0, float("nan"), float("inf"), "text", None]})
    assert read_runs([folder])[0].metrics == {"x": {1: 1.0}}


def test_a_run_that_goes_on_may_end_in_half_a_line(tmp_path):
    folder = write_run(tmp_path / "a", metrics={"x": [1.0]}, samples=[SAMPLE])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 2, "sample": 1, "data": {"x": 1.0}')
    (run,) = read_runs([folder])
    assert run.last_step == 1 and len(run.samples) == 1


def test_a_run_that_has_just_started_has_no_metrics_yet(tmp_path):
    folder = write_run(tmp_path / "a", metrics={})
    (folder / "metrics.jsonl").unlink()
    (run,) = read_runs([folder])
    assert run.metrics == {} and run.last_step is None


@pytest.mark.parametrize(("made", "said"), [(True, "another folder"), (False, "no folder")])
def test_a_folder_that_is_no_run_is_refused_by_its_path(tmp_path, made, said):
    if made:
        (tmp_path / "a").mkdir()
    with pytest.raises(ReportError, match=f"{tmp_path}/a: expected the folder of a run, with metrics.jsonl .*{said}"):
        read_runs([tmp_path / "a"])


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("run.json", "{"), ("run.json", "[]")]
)
def test_a_broken_file_is_named(tmp_path, name, text):
    folder = write_run(tmp_path / "a")
    (folder / name).write_text(text)
    with pytest.raises(ReportError, match=f"{folder}/{name}: expected"):
        read_runs([folder])


def test_a_run_without_settings_is_read(tmp_path):
    assert read_runs([write_run(tmp_path / "a", config=False)])[0].settings is None


def test_a_folder_given_twice_is_one_run(tmp_path):
    folder = write_run(tmp_path / "a")
    assert len(read_runs([folder, tmp_path / ".." / tmp_path.name / "a"])) == 1


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/grpo", "/r/soup"], ["grpo", "soup"]),
        (["/r/s1/soup", "/r/s2/soup"], ["s1/soup", "s2/soup"]),
        (["/r/soup"], ["soup"]),
    ],
)
def test_names_are_as_short_as_can_be(paths, names):
    assert runs.unique_names([Path(p) for p in paths]) == names


# ---- evaluations ----

FOUND = {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(("name", "kind"), [("run.json", "JSON"), ("config.yaml", "YAML")])
def test_files_that_are_not_text_are_refused(tmp_path, name, kind):
    folder = write_run(tmp_path / "a")
    (folder / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReportError, match=f"{name}: expected {kind}: "):
        read_runs([folder])


def test_an_evaluations_samples_beside_a_run_are_not_its_own(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "samples.jsonl").write_text(json.dumps({"file": "val.parquet", "index": 0, "session": 0}) + "\n")
    (run,) = read_runs([folder])
    assert not run.samples


def test_evaluations_in_the_folder_are_found(tmp_path):
    results = results_of({"avg@16": FOUND, "pass@2": FOUND, "pass@1": FOUND, "pass@16": FOUND})
    (run,) = read_runs([write_run(tmp_path / "a", evaluation=results)])
    (evaluation,) = run.evaluations
    (at_k,) = evaluation.files.values()
    assert list(at_k.pass_at_k) == [1, 2, 16] and at_k.maj_at_k == {}
    assert at_k.pass_at_k[1] == Interval(0.5, 0.25, 0.75)


def test_data_files_are_kept_apart_and_one_problem_has_no_interval(tmp_path):
    found = results_of({"pass@1": FOUND})
    found["files"]["one.parquet"] = {"metrics": {"pass@1": {"mean": 0.125, "low": None, "high": None}}}
    found["files"]["all"] = {"metrics": {"pass@1": FOUND}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    files = runs.read_evaluation(tmp_path).files
    assert list(files) == ["val.parquet", "one.parquet"]
    assert files["one.parquet"].pass_at_k == {1: Interval(0.125, 0.125, 0.125)}


@pytest.mark.parametrize("text", ['{"accuracy": 0.5}', "[1]", '{"files": '])
def test_files_of_that_name_that_are_no_evaluation_are_passed_over(tmp_path, text):
    folder = write_run(tmp_path / "a")
    (folder / "bench").mkdir()
    (folder / "bench" / "results.json").write_text(text)
    (run,) = read_runs([folder])
    assert run.evaluations == []
    with pytest.raises(ReportError):
        runs.read_evaluation(folder / "bench")


@pytest.mark.parametrize(
    "metrics", [{"pass@one": FOUND}, {"pass@1": {"mean": 1}}, {"pass@1": 0.5}, {"pass@1": {**FOUND, "low": "x"}}]
)
def test_metrics_of_another_shape_are_refused(tmp_path, metrics):
    (tmp_path / "results.json").write_text(json.dumps(results_of(metrics)))
    with pytest.raises(ReportError, match=f'{tmp_path}/results.json: expected "pass@K": '):
        runs.read_evaluation(tmp_path)


@pytest.mark.parametrize("results", [{}, {"files": {"a": 1}}, {"files": {"a": {}}}, {"files": [1]}])
def test_results_of_another_shape_are_refused(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ReportError, match=f"{tmp_path}/results.json: expected keys and values"):
        runs.read_evaluation(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ReportError, match=f"{tmp_path}: expected the folder of an evaluation"):
        runs.read_evaluation(tmp_path)


def test_an_evaluation_that_a_link_leads_to_as_well_is_found_once(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "global_step_2" / "evaluation").mkdir(parents=True)
    (folder / "best").symlink_to("global_step_2")
    path = folder / "global_step_2" / "evaluation" / "results.json"
    path.write_text(json.dumps(results_of({})))
    assert find_results(folder) == [path]
