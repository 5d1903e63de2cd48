import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.sweeping import table
from soup_verl.sweeping.plan import Sweep
from tests.unit.reporting.folders import write_run

MEAN, PASS_2, PASS_16 = "val-core/sums/acc/mean@2", "val-soup/sums/pass@2", "val-soup/sums/pass@16"
T_1, T_2 = 12.706, 4.303  # Student's t for one and two degrees of freedom


def runs_of(*, seeds=(0, 1), methods=("grpo", "soup"), **more):
    return list(Sweep("x", list(seeds), methods[0], {m: [] for m in methods}, **more).runs())


def found(values):
    """run's name -> metrics, of one metric."""
    return {name: {MEAN: value} for name, value in values.items()}


def test_two_seeds_by_hand():
    """Of two values the interval is their mean -+ 12.706 times half their distance."""
    values = {"grpo-s0": 0.4, "grpo-s1": 0.6, "soup-s0": 0.5, "soup-s1": 0.72}
    grpo, soup = table.rows(runs_of(), found(values), "grpo")
    assert (grpo.line, grpo.values, grpo.difference) == ("grpo", {0: 0.4, 1: 0.6}, None)
    assert grpo.mean.mean == pytest.approx(0.5) and grpo.mean.half_width == pytest.approx(T_1 * 0.1)
    assert soup.mean.mean == pytest.approx(0.61) and soup.mean.half_width == pytest.approx(T_1 * 0.11)
    # .10 and .12: paired, the differences are as wide as a tenth of either side
    assert soup.difference.mean == pytest.approx(0.11) and soup.difference.half_width == pytest.approx(T_1 * 0.01)
    assert soup.difference.verdict == "open"


def test_three_seeds_by_hand():
    """-.1, -.2 and -.3: their deviation is .1."""
    values = {f"grpo-s{s}": 0.9 for s in range(3)} | {f"soup-s{s}": 0.9 - (s + 1) / 10 for s in range(3)}
    grpo, soup = table.rows(runs_of(seeds=range(3)), found(values), "grpo")
    assert grpo.mean.half_width == pytest.approx(0)
    assert soup.difference.mean == pytest.approx(-0.2)
    assert soup.difference.half_width == pytest.approx(T_2 * 0.1 / math.sqrt(3))  # .248: 0 is within


def test_only_seeds_that_both_have_are_paired():
    values = {"grpo-s0": 0.1, "grpo-s1": 0.2, "soup-s1": 0.3, "soup-s2": 0.9}
    _, soup = table.rows(runs_of(seeds=range(3)), found(values), "grpo")
    assert soup.values == {1: 0.3, 2: 0.9} and soup.mean.mean == pytest.approx(0.6)
    assert soup.difference.seeds == 1 and soup.difference.mean == pytest.approx(0.1)
    assert math.isinf(soup.difference.half_width)


def test_without_a_common_seed_there_is_no_difference_and_without_a_value_no_row():
    (only,) = table.rows(runs_of(), found({"soup-s1": 0.3}), "grpo")
    assert only.line == "soup" and only.difference is None


def test_the_baseline_is_taken_under_the_same_settings():
    runs = runs_of(seeds=[0], settings={"a.lr": [1, 2]})
    values = {"grpo-lr-1-s0": 0.1, "soup-lr-1-s0": 0.2, "grpo-lr-2-s0": 0.5, "soup-lr-2-s0": 0.4}
    rows = {row.line: row.difference for row in table.rows(runs, found(values), "grpo")}
    assert rows["soup lr=1"].mean == pytest.approx(0.1) and rows["soup lr=2"].mean == pytest.approx(-0.1)
    assert rows["grpo lr=1"] is rows["grpo lr=2"] is None


def test_metrics_stand_in_order_of_k():
    values = {"grpo-s0": {PASS_16: 0.9, MEAN: 0.5, PASS_2: 0.7}}
    assert [row.metric for row in table.rows(runs_of(), values, "grpo")] == [MEAN, PASS_2, PASS_16]


@given(
    values=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6),
    shifts=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
)
def test_what_a_seed_does_to_both_methods_is_in_no_difference(values, shifts):
    def difference(shift):
        made = {}
        for seed, (a, b) in enumerate(values):
            made |= {f"grpo-s{seed}": a + shift[seed], f"soup-s{seed}": b + shift[seed]}
        return table.rows(runs_of(seeds=range(len(values))), found(made), "grpo")[1].difference

    plain, shifted = difference([0] * 6), difference(shifts)
    assert shifted.mean == pytest.approx(plain.mean, abs=1e-9)
    assert shifted.half_width == pytest.approx(plain.half_width, abs=1e-9)


def test_the_last_validation_is_read_and_nothing_else(tmp_path):
    metrics = {
        MEAN: [0.1, 0.2, 0.3],
        PASS_2: [0.4],
        "val-core/sums/acc/best@2/mean": [1.0],
        "critic/rewards/mean": [0.5, 0.6, 0.7],
    }
    assert table.last_validation(write_run(tmp_path / "run", metrics=metrics)) == {MEAN: 0.3, PASS_2: 0.4}


def test_the_table_has_a_row_a_line_and_an_interval_only_where_there_is_one(tmp_path):
    values = {"grpo-s0": 0.4, "grpo-s1": 0.4, "soup-s0": 0.5, "soup-s1": 0.502}
    made = table.as_table(table.rows(runs_of(), found(values), "grpo"), "grpo")
    columns = [list(column.cells) for column in made.columns]
    assert columns[0] == [MEAN, ""] and columns[1] == ["grpo", "soup"] and columns[2] == ["2", "2"]
    assert columns[3] == ["0.4000", "0.5010"]
    assert columns[5:] == [["", "+0.1010"], ["", "[+0.0883, +0.1137]"], ["", "2"], ["", "above"]]
    single = table.as_table(table.rows(runs_of(), found({"grpo-s0": 0.4}), "grpo"), "grpo")
    assert list(single.columns[4].cells) == [""]


def test_as_json_has_every_seed_and_null_for_ends_that_are_not_there():
    (row,) = table.as_json(table.rows(runs_of(), found({"soup-s1": 0.3}), "grpo"))
    mean = {"mean": 0.3, "low": None, "high": None, "seeds": 1}
    assert row == {"metric": MEAN, "method": "soup", "values": {1: 0.3}, "mean": mean, "difference": None}
