import json

import pytest

from benchmarks import grid
from benchmarks.run_inputs import nested, parse_settings
from benchmarks.tasks import TASKS, VARIANTS, task_named
from soup_verl.method.config import SoupConfig


@pytest.fixture(scope="module", params=sorted(TASKS | VARIANTS))
def points(request):
    return grid.read_points(grid.GRID, request.param)


def test_every_point_can_be_run_and_has_a_place_of_its_own(points, tmp_path):
    assert len({grid.folder_of(tmp_path, p, 0) for p in points}) == len(points)
    assert sum(p.side == "grpo" for p in points) == 1 and {p.side for p in points} == set(grid.SIDES)
    for point in points:
        settings = parse_settings(nested(point.settings) | {"seed": 1})
        soup = SoupConfig.parse(settings.soup | {"seed": 1})
        assert soup.mixing == (point.side in ("soup", "variant")), point.name
        low, high = soup.prefix_length.bounds(task_named(point.task).max_response_tokens)
        assert high <= task_named(point.task).max_response_tokens - 1, point.name


def test_the_knob_takes_its_value(points):
    for point in points:
        if point.knob:
            assert point.settings[point.knob] == point.value


def test_other_settings_go_with_the_knob():
    """Both ends of the clip range."""
    (point,) = grid.chosen(grid.read_points(grid.GRID, "order"), ["lookahead_clip/0.4"])
    assert grid.settings_of(point, 0, {}).loss.clip_ratio_high == point.settings["loss.clip_ratio_low"] == 0.4


def test_a_result_says_the_task_of_the_grid(points):
    assert all(point.label["task"] == point.task for point in points)


def test_all_methods_take_the_same_steps_samples_and_rate_but_those_that_are_named_for_another(points):
    for key, named_for_it in {
        "steps": set(),
        "samples": set(),
        "lr": {"learning_rate", "dr_grpo_rate", "replay_best_dr_grpo_rate"},
        "prompts": {"group_size"},
        "n": {"responses", "responses_dr_grpo", "group_size"},
    }.items():
        (usual,) = {p.settings[key] for p in points if p.method == "grpo"}
        assert {p.method for p in points if p.settings[key] != usual} == named_for_it, key


def test_an_unknown_task_side_or_neighbour_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--tasks sudoku: expected some of countdown"):
        grid.read_points(grid.GRID, "sudoku")
    bad = tmp_path / "grid.yaml"
    text = "common: {prompts: 12}\ntasks: {order: {}}\nmethods: {m: {title: M, %s}}\n"
    bad.write_text(text % "side: friend")
    with pytest.raises(ValueError, match="methods.m.side='friend': expected one of grpo, rival, soup, variant"):
        grid.read_points(bad, "order")
    bad.write_text(text % "side: soup, neighbor: dr_grop")
    with pytest.raises(ValueError, match="methods.m.neighbor='dr_grop': expected one of .*dr_grpo"):
        grid.read_points(bad, "order")


def test_a_tasks_figure_names_points_of_its_grid():
    for task, labels in grid.read_grid(grid.GRID)["pictured"].items():
        assert len(set(labels.values())) == len(labels)
        grid.chosen(grid.read_points(grid.GRID, task), list(labels))


def test_a_method_on_a_neighbour_has_its_settings_but_for_the_mixing():
    for task, longest in (("hard_text", 16), ("hard_96", 30)):
        (alone,) = grid.chosen(grid.read_points(grid.GRID, task), ["neighbor/dr_grpo"])
        (mixed,) = grid.chosen(grid.read_points(grid.GRID, task), ["replay_best_dr_grpo/0.75"])
        (plain,) = grid.chosen(grid.read_points(grid.GRID, task), ["replay_best/0.75"])
        of_file = {key: value for key, value in alone.settings.items() if not key.startswith("soup.")}
        assert of_file["loss.loss_scale_factor"] == longest and of_file["norm_by_std"] is False
        assert mixed.settings == plain.settings | of_file


def test_a_finished_point_is_skipped(assets, tmp_path, capsys):
    settings = {"steps": 1, "prompts": 4, "n": 4, "samples": 2}
    point = grid.Point("assets", "grpo", "grpo", "GRPO", None, None, settings)
    out = tmp_path / "out"
    grid.run_points([(point, 0), (point, 1)], tmp_path, out)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    (grid.folder_of(out, point, 1) / "result.json").unlink()
    capsys.readouterr()
    grid.run_points([(point, 0), (point, 1)], tmp_path, out)
    said = capsys.readouterr().out
    assert "1 of 2 points are finished" in said and '"points_left": 0' in said
    second = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert [path for path in first if first[path] == second[path]] == [grid.folder_of(out, point, 0) / "result.json"]


def test_a_result_of_other_settings_or_another_warm_start_is_not_taken_for_the_point(assets, tmp_path):
    point = grid.Point("assets", "grpo", "grpo", "GRPO", None, None, {"steps": 1, "prompts": 4, "n": 4, "samples": 2})
    grid.run_points([(point, 0)], tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="seed_0/result.json: made with lr=0.0001, now 0.5; choose another --out"):
        grid.run_points([(point, 0)], tmp_path, tmp_path / "out", ["lr=0.5"])
    report = json.loads((assets.folder / "prepare.json").read_text())
    (assets.folder / "prepare.json").write_text(json.dumps(report | {"val": {"pass@1": 0.2}}))
    with pytest.raises(ValueError, match="seed_0/result.json: began with another warm start than --assets has"):
        grid.run_points([(point, 0)], tmp_path, tmp_path / "out")


def test_what_holds_for_all_is_set_but_for_the_knob(assets, tmp_path):
    point = grid.Point("assets", "temperature", "rival", "T", "temperature", 1.5, {"steps": 400, "temperature": 1.5})
    settings = grid.settings_of(point, 3, {"steps": 200, "temperature": 1.0})
    assert (settings.steps, settings.temperature, settings.seed) == (200, 1.5, 3)
    short = grid.Point("assets", "grpo", "grpo", "GRPO", None, None, {"steps": 400, "prompts": 4, "n": 4})
    grid.run_points([(short, 0)], tmp_path, tmp_path / "out", ["steps=1", "samples=2"])
    assert (
        json.loads((grid.folder_of(tmp_path / "out", short, 0) / "result.json").read_text())["settings"]["steps"] == 1
    )
