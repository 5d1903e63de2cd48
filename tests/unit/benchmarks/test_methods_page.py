import json
import re
import sys

import pytest

from benchmarks import methods_page
from benchmarks.results import Group, grpo_of, pooled, read_results
from tests.unit.benchmarks.test_analyse import REAL, SEARCH, write


@pytest.fixture
def results(tmp_path):
    """pass@8 is the mean of the two given numbers. On the search seed age 64 is better, on the fresh ones age 8."""
    folder = tmp_path / "results"
    for seed, shift in ((0, 0.0), (100, 0.0), (101, 0.01)):
        write(folder, "grpo", "grpo", seed, 0.2 + shift, 0.4 + shift)
        write(folder, "lookahead_age", "soup", seed, 0.2 + shift, (0.5 if seed else 0.41) + shift, value=8)
        write(folder, "lookahead_age", "soup", seed, 0.2 + shift, 0.44 + 2 * shift, value=64)
        write(folder, "neighbor/opo", "rival", seed, 0.2 + shift, 0.3 + shift)
    write(folder, "masked", "variant", 0, 0.3, 0.4, value=8)
    write(folder, "decoupled", "variant", 100, 0.2, 0.4, value=8)
    write(folder, "decoupled", "variant", 100, 0.2, 0.5, value=64)
    write(folder, "exo", "variant", 7, 0.2, 0.4, value=8)  # a seed that GRPO lacks
    for path in (folder / "masked").rglob("result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"decode_tokens": 0.075, "reward_at_end": 0.25}))
    return folder


def points_of(folder):
    ((_, points),) = pooled(read_results(folder)).items()
    return points


def test_the_knob_is_chosen_on_search_seeds_and_shown_on_fresh_ones(results):
    rows = {row.point.method: row for row in methods_page.rows_of(points_of(results))}
    assert list(rows) == ["grpo", "neighbor/opo", "lookahead_age", "decoupled", "masked"]
    of_soup = rows["lookahead_age"]
    assert (of_soup.point.value, of_soup.seeds, of_soup.fresh, of_soup.values) == (64, [100, 101], True, 2)
    assert [rows[name].note for name in ("grpo", "masked", "decoupled")] == [
        "100 to 101",
        "0: no fresh seeds",
        "100, which chose the knob",
    ]
    assert rows["decoupled"].point.value == 64


def test_a_line_has_paired_differences_and_tokens_over_grpos(results):
    points = points_of(results)
    lines = {row.point.method: methods_page.cells(row, grpo_of(points)) for row in methods_page.rows_of(points)}
    knob, seeds, *differences, reward, tokens = lines["lookahead_age"][2:]
    assert (knob, seeds, tokens) == ("x=64", "100 to 101", "1.00")
    # pass@32 is .04 and .05 higher: t of one degree of freedom, 12.706, times .01 / sqrt(2) / sqrt(2)
    assert differences == ["+0.000 ± 0.000", "+0.022 ± 0.032", "+0.045 ± 0.064"] and reward == "0.100 (0.100)"
    assert lines["masked"][4:] == ["+0.100 ± ?", "+0.050 ± ?", "+0.000 ± ?", "0.250 (0.100)", "0.75"]
    assert lines["grpo"][4:] == ["-", "-", "-", "0.100", "1.00"]


def test_a_page_has_a_section_a_task_and_says_who_is_missing_and_why(results, tmp_path):
    text = methods_page.page(read_results(results), ["order", "countdown"], tmp_path)
    assert "### order" not in text and "Points looked at: 7." in text
    assert "| neighbor/opo | rival | - | 100 to 101 | +0.000 ± 0.000 | -0.050 ± 0.000 | -0.100 ± 0.000 |" in text
    figure = "methods_countdown_search_instrument.png"
    assert f"(FIGURES/{figure})" in text and (tmp_path / figure).stat().st_size > 10_000
    assert "- `dapo`: algorithm.filter_groups.enable: not on the search instrument" in text


def test_sets_of_seeds_are_pooled_by_point_task_and_instrument(results):
    ((group, points),) = pooled(read_results(results)).items()
    assert group == Group("countdown", SEARCH, 0)
    by_name = {point.name: sorted(point.by_seed) for point in points}
    assert by_name["lookahead_age 8"] == by_name["grpo_stopped 0"] == [0, 100, 101]


def test_seeds_are_told_by_stretches():
    assert methods_page.stretches([0, 100, 101, 102, 300]) == "0, 100 to 102, 300"


def test_the_command_prints_the_best_points_as_the_grid_takes_them(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods_page", "--results", str(results), "--task", "countdown"])
    methods_page.main()
    assert capsys.readouterr().out == "grpo neighbor/opo lookahead_age/64 decoupled/64 masked/8\n"
    monkeypatch.setattr(sys, "argv", ["methods_page", "--results", str(results), "--task", "order"])
    with pytest.raises(SystemExit, match="methods_page: --task order: there are results of countdown"):
        methods_page.main()


def of_real_stack(folder):
    """Both instruments' results below one folder; on the real stack age 8 is the better one, and half as good."""
    for seed in (0, 100):
        write(folder / "real", "grpo", "grpo", seed, 0.1, 0.2, instrument=REAL)
        write(folder / "real", "lookahead_age", "soup", seed, 0.1, 0.3, value=8, instrument=REAL)
        write(folder / "real", "lookahead_age", "soup", seed, 0.1, 0.2, value=64, instrument=REAL)


def test_each_instrument_has_a_section_and_a_figure_of_its_own(results, tmp_path, monkeypatch):
    alone = methods_page.page(read_results(results), ["countdown"], tmp_path)
    of_real_stack(results)
    drawn = {}
    monkeypatch.setattr(methods_page, "draw_differences", lambda *given: drawn.update({given[-1].name: given[-2]}))
    both = methods_page.page(read_results(results), ["countdown"], tmp_path)
    before_real, real = both.split(f"### countdown, {REAL}\n")
    assert alone.startswith(before_real) and before_real.startswith(f"### countdown, {SEARCH}\n")
    assert "| lookahead_age | soup | x=8 | 100 | +0.000 ± ? | +0.050 ± ? | +0.100 ± ? |" in real
    assert drawn == {
        "methods_countdown_real_stack.png": f"countdown, {REAL}",
        "methods_countdown_search_instrument.png": f"countdown, {SEARCH}",
    }


def test_the_command_takes_one_instrument(results, monkeypatch, capsys):
    of_real_stack(results)
    words = ["methods_page", "--results", str(results), "--task", "countdown"]
    for name, best in (("real", "grpo lookahead_age/8\n"), ("search", "grpo neighbor/opo lookahead_age/64 ")):
        monkeypatch.setattr(sys, "argv", [*words, "--instrument", name])
        methods_page.main()
        assert capsys.readouterr().out.startswith(best)
    for more, said in (
        ([], f"--task countdown: there are results of {REAL} and {SEARCH}; choose one with --instrument"),
        (["--instrument", "toy"], f"--task countdown --instrument toy: there are results of countdown, {SEARCH}"),
    ):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit, match=re.escape(f"methods_page: {said}")):
            methods_page.main()
