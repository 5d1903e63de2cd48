"""The instruments side by side."""

import json

import pytest

from benchmarks import agreement
from benchmarks.results import read_results


def write(folder, seed, value, **numbers):
    result = {"task": "order", "instrument": folder.name, "method": "replay", "side": "soup", "title": "R", "knob": "k"}
    result |= {"value": 6, "seed": seed, "start": {"pass@1": 0.5}, **dict.fromkeys(("step_seconds", "seconds"), 1.0)}
    result |= dict.fromkeys(agreement.NUMBERS[4:], value) | {"reward_std": value} | numbers
    result["checkpoints"] = [{"step": 200} | dict.fromkeys(agreement.NUMBERS[:4], value)]
    place = folder / f"seed_{seed}" / "result.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(result))


def compared(tmp_path):
    return agreement.rows_of(*(agreement.by_task(read_results(tmp_path / name)) for name in ("search", "real")))


def test_the_mean_of_the_real_seeds_is_compared(tmp_path):
    """1, 2, 3 predict 2 ± 4.303 * sqrt(1/2 + 1/3) = 2 ± 3.928 for two seeds: 5.5 is inside, 6.5 is not."""
    for seed, value in enumerate((1.0, 2.0, 3.0)):
        write(tmp_path / "search", seed, value)
    write(tmp_path / "real", 0, 5.0, prefix_kl=6.0)
    write(tmp_path / "real", 1, 6.0, prefix_kl=7.0)
    rows = compared(tmp_path)
    assert [row[1] for row in rows] == list(agreement.NUMBERS)
    assert rows[0] == ["order replay 6", "pass@1", "2.000 ± 3.928", "5.500", "yes"]
    assert {row[1]: row[-1] for row in rows}["prefix_kl"] == "NO"


def test_numbers_that_do_not_exist_are_left_out(tmp_path):
    for name in ("search", "real"):
        for seed in (0, 1):
            write(tmp_path / name, seed, 1.0, prefix_kl=None)
    assert "prefix_kl" not in [row[1] for row in compared(tmp_path)]
    write(tmp_path / "search", 1, 1.0, prefix_kl=None, reward_std=None, train_reward=None)
    assert "train_reward" not in [row[1] for row in compared(tmp_path)]


def test_first_and_fresh_seeds_are_not_mixed(tmp_path):
    for seed in (0, 100):
        write(tmp_path / "search", seed, 1.0)
    with pytest.raises(ValueError, match="replay 6 is there twice"):
        agreement.by_task(read_results(tmp_path / "search"))
