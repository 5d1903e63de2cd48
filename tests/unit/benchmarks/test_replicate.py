"""A new seed against published ones."""

import json

import pytest

from benchmarks.grid import GRID, chosen, read_points
from benchmarks.keep import keep
from benchmarks.replicate import NUMBERS, compare, first_set, measured, prediction, shown
from benchmarks.results import Group, Measured
from benchmarks.simulate import INSTRUMENT


def test_the_prediction_interval_of_three_numbers():
    """s = 1, t(2) = 4.303, so 4.303 * sqrt(4/3) = 4.969."""
    found = prediction([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half_width == pytest.approx(4.969, abs=1e-3)
    assert prediction([1.0, 2.0, 3.0], of=3).half_width == pytest.approx(4.303 * (2 / 3) ** 0.5, abs=1e-3)


def test_one_seed_predicts_nothing():
    with pytest.raises(ValueError, match="1 published seeds: expected at least two"):
        prediction([1.0])


def grpo(by_seed):
    numbers = ("pass@1", "pass@8", "pass@32", "entropy")
    return Measured("grpo", "grpo", "GRPO", None, None, {s: dict.fromkeys(numbers, v) for s, v in by_seed.items()})


@pytest.mark.parametrize(("value", "inside"), [(0.45, "yes"), (0.9, "NO")])
def test_a_number_outside_is_marked(value, inside):
    rows = shown("grpo", compare(grpo({0: 0.4, 1: 0.5, 2: 0.45}), grpo({1000: value}), NUMBERS))
    assert [row[-1] for row in rows] == [inside] * 4


def test_a_tasks_first_set_of_seeds_is_compared_with():
    results = {Group("countdown", INSTRUMENT, 300): [grpo({300: 0.4})]}
    assert first_set(results, "countdown") == results[Group("countdown", INSTRUMENT, 300)]
    results[Group("countdown", "real stack", 0)] = results[Group("order", INSTRUMENT, 0)] = []
    results[Group("countdown", INSTRUMENT, 100)] = [grpo({100: 0.4})]
    assert first_set(results, "countdown") == results[Group("countdown", INSTRUMENT, 100)]
    assert first_set(results, "chain_sum") == []


def test_a_point_that_was_not_published_is_named():
    (point,) = chosen(read_points(GRID, "countdown"), ["lookahead_age/64"])
    with pytest.raises(ValueError, match="no published result of countdown/lookahead_age/64"):
        measured({"": [grpo({0: 0.4})]}, point)


def test_results_are_kept_in_their_places_without_the_rest(tmp_path):
    run = tmp_path / "runs" / "sim" / "countdown" / "grpo" / "seed_0"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"seed": 0}))
    (run / "metrics.jsonl").write_text("{}")
    for _ in range(2):  # again, as a resumed evidence run does
        assert keep(tmp_path / "runs" / "sim", tmp_path / "kept") == 1
    kept = [str(p.relative_to(tmp_path / "kept")) for p in (tmp_path / "kept").rglob("*") if p.is_file()]
    assert kept == ["countdown/grpo/seed_0/result.json"]
