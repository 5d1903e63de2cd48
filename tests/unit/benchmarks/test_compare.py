"""Two points, seed by seed."""

import sys

import pytest

from benchmarks import compare
from benchmarks.results import Measured, read_results
from tests.unit.benchmarks.test_analyse import REAL, write


def point(method, **by_seed):
    return Measured(method, "soup", method, "x", 8, {int(s[1:]): v for s, v in by_seed.items()})


def test_differences_are_taken_over_the_seeds_that_both_have():
    """Differences .1, .2, .3: .2 ± 4.303 * .1 / sqrt(3) = .2 ± .248; seed 7 has no partner."""
    first = point("a", s0={"pass@1": 0.3}, s1={"pass@1": 0.5}, s2={"pass@1": 0.4}, s7={"pass@1": 0.9})
    second = point("b", s0={"pass@1": 0.2}, s1={"pass@1": 0.3}, s2={"pass@1": 0.1})
    assert compare.rows_of(first, second) == [["pass@1", "0.400", "0.200", "+0.200 ± 0.248", "open"]]


def test_a_number_that_one_lacks_is_left_out():
    first = point("a", s0={"pass@1": 0.3, "prefix_kl": 0.1}, s1={"pass@1": 0.4, "prefix_kl": 0.1})
    second = point("b", s0={"pass@1": 0.2, "prefix_kl": None}, s1={"pass@1": 0.3})
    assert [row[0] for row in compare.rows_of(first, second)] == ["pass@1"]


def test_points_without_a_seed_in_common_are_refused():
    with pytest.raises(ValueError, match="a 8 and b 8 share no seed"):
        compare.rows_of(point("a", s0={}), point("b", s1={}))


def run(monkeypatch, folder, *words):
    monkeypatch.setattr(sys, "argv", ["compare", "--results", str(folder), "--task", "countdown", *words])
    compare.main()


def test_points_go_by_the_grids_names(tmp_path, monkeypatch, capsys):
    for seed in (100, 101):
        write(tmp_path, "grpo", "grpo", seed, 0.2, 0.4)
        write(tmp_path, "masked", "variant", seed, 0.3, 0.5, value=8)
    write(tmp_path, "masked", "variant", 0, 0.9, 0.9, value=8)  # of another set of seeds
    assert {group.seeds_from for group in read_results(tmp_path)} == {0, 100}
    run(monkeypatch, tmp_path, "--seeds-from", "100", "masked/8", "grpo_stopped/50")
    assert "| pass@1 | 0.300 | 0.150 | +0.150 ± 0.000 | above |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no results of 'masked/9'; there are grpo, grpo_stopped/0, grpo_stopped/50"):
        run(monkeypatch, tmp_path, "--seeds-from", "100", "masked/9", "grpo")


def test_two_instruments_are_not_mixed(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        write(tmp_path, "grpo", "grpo", seed, 0.2, 0.4)
        write(tmp_path, "masked", "variant", seed, 0.3, 0.5, value=8)
        write(tmp_path / "real", "grpo", "grpo", seed, 0.6, 0.8, instrument=REAL)
    with pytest.raises(SystemExit, match="there are results of real stack .* and search instrument .*choose"):
        run(monkeypatch, tmp_path, "masked/8", "grpo")
    run(monkeypatch, tmp_path, "--instrument", "search", "masked/8", "grpo")
    assert "| pass@1 | 0.300 | 0.200 | +0.100 ± 0.000 | above |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no results of 'masked/8'; there are grpo, "):
        run(monkeypatch, tmp_path, "--instrument", "real", "masked/8", "grpo")
    with pytest.raises(SystemExit, match="--task countdown: there are results of countdown, .*, seeds from 0; "):
        run(monkeypatch, tmp_path, "--seeds-from", "100", "masked/8", "grpo")
