import json
import sys

import pytest

from benchmarks import analyse, figures, tables
from benchmarks import results as benchmark_results
from benchmarks.results import SEEDS_A_SET, Group, common_seeds, read_results

OF_RUN = {"prefix_kl": None, "prefix_gradient_lost": None, "reward_std": 0.3, "step_seconds": 0.2, "seconds": 80.0}
OF_RUN |= {"curve": None}


def checkpoint(step, first, last):
    return {"step": step, "pass@1": first, "pass@8": (first + last) / 2, "pass@32": last, "entropy": 1 - first} | {
        "distinct_valid@64": 2.0
    }


SEARCH, REAL = "search instrument (plain PyTorch)", "real stack (verl, vLLM)"


def write(folder, method, side, seed, first, last, value=None, instrument=SEARCH):
    result = {
        "instrument": instrument,
        "task": "countdown",
        "method": method,
        "side": side,
        "title": method.title(),
        "knob": None if value is None else "x",
        "value": value,
        "seed": seed,
        "start": checkpoint(0, 0.1, 0.9),
        "checkpoints": [checkpoint(50, 0.15, 0.7), checkpoint(100, first, last)],
        "decode_tokens": 1000.0 + seed,
        **dict.fromkeys(benchmark_results.OF_RUN, 0.1) | OF_RUN,
    }
    place = folder / method / str(value) / f"seed_{seed}"
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result))


@pytest.fixture
def results(tmp_path):
    """GRPO ends at (.2, .4); at its pass@1 SOUP is .1 higher, an entropy bonus .1 lower."""
    for seed, shift in enumerate((0.0, 0.01, 0.02)):
        write(tmp_path, "grpo", "grpo", seed, 0.2 + shift, 0.4 + shift)
        write(tmp_path, "entropy_bonus", "rival", seed, 0.2 + shift, 0.3 + shift, value=0.01)
        write(tmp_path, "lookahead_age", "soup", seed, 0.2 + shift, 0.5 + 2 * shift, value=64)
        write(tmp_path, "masked", "variant", seed, 0.2 + shift, 0.39 + shift, value=8)
    write(tmp_path, "grpo", "grpo", 9, 0.2, 0.4)  # a seed that the others do not have yet
    return tmp_path


def points_of(folder):
    ((_, points),) = read_results(folder).items()
    return analyse.selected(points)


def test_grpos_checkpoints_and_the_start_are_rivals(results):
    points = points_of(results)
    assert [p.name for p in points] == [
        "grpo",
        "grpo_stopped 0",
        "grpo_stopped 50",
        "entropy_bonus 0.01",
        "lookahead_age 64",
        "masked 8",
    ]
    assert common_seeds(points) == [0, 1, 2]


def test_a_neighbour_stands_in_the_tables_if_it_has_the_seeds_that_the_others_share(results):
    for seed in range(3):
        write(results, "neighbor/repo", "variant", seed, 0.2, 0.4, value=0.5)
    write(results, "neighbor/gspo", "rival", 0, 0.2, 0.4, value=8)
    points = points_of(results)
    assert [p.name for p in points if p.method.startswith("neighbor/")] == ["neighbor/repo 0.5"]
    assert common_seeds(points) == [0, 1, 2]


def test_the_tables_say_what_was_measured(results, tmp_path):
    group = Group("countdown", "search instrument (plain PyTorch)", 0)
    text = analyse.section(group, points_of(results), tmp_path, [8, 32])
    for k in (8, 32):
        assert f"pass@{k}: of SOUP's 1 points" in text and f"gain: pass@{k} − rivals' frontier" in text
    assert text.count("1 above (lookahead_age 64)") == 2
    assert "Seeds 0, 1, 2; incomplete and left out: [9]." in text
    of_8, row = (line for line in text.splitlines() if line.startswith("| lookahead_age 64 | +"))
    assert "+0.055 ± 0.012" in of_8  # pass@8 is half of both
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "+0.000 ± 0.000"  # pass@1, paired
    assert cells[2] == "+0.110 ± 0.025"  # .10, .11, .12: t 4.303 x .01 / sqrt(3)
    assert cells[3].endswith("(grpo)") and cells[5] == "above" and cells[6] == "grpo_stopped 50 .. grpo"
    assert (tmp_path / "frontier_countdown_search_instrument_0.png").stat().st_size > 10_000


def follow(folder):
    """What newer results have besides: SOUP ends .2 higher than GRPO on the trained questions, the bonus .05 higher."""
    for path in folder.rglob("result.json"):
        result = json.loads(path.read_text())
        higher = {"lookahead_age": 0.2, "entropy_bonus": 0.05}.get(result["method"], 0.0)
        result["checkpoints"][-1] |= {"trained_pass@1": 0.3 + higher, "trained_pass@32": 0.6 + higher}
        result["reward_at_end"] = 0.25 + higher
        result["curve"] = [{"step": s, "decode_tokens": 10.0 * s, "reward": 0.1 * s / 50} for s in (50, 100)]
        path.write_text(json.dumps(result))


def test_what_was_learnt_is_compared_with_grpo_and_with_the_rival_that_learnt_most(results, tmp_path):
    follow(results)
    group = Group("countdown", "search instrument (plain PyTorch)", 0)
    text = analyse.section(group, points_of(results), tmp_path, [8])
    assert "| decode tokens / GRPO's | pass@1, trained questions − entropy_bonus 0.01 |" in text
    of_soup = next(line for line in text.splitlines() if line.startswith("| lookahead_age 64 | +0.200"))
    assert of_soup.split(" | ")[1:4] == ["+0.200 ± 0.000"] * 3 and of_soup.endswith("| 1.00 | +0.150 ± 0.000 |")
    assert "(FIGURES/learning_countdown_search_instrument_0.png)" in text
    assert (tmp_path / "learning_countdown_search_instrument_0.png").stat().st_size > 10_000


def test_a_tasks_figure_shows_the_points_that_it_names_in_their_order_and_those_that_were_run(results):
    follow(results)
    points = benchmark_results.learning(points_of(results))
    named = {"masked/8": "no loss", "grpo": "GRPO", "replay/6": "not run"}
    shown = [(point.name, label) for point, label in figures._labelled(points, named)]
    assert shown == [("masked 8", "no loss"), ("grpo", "GRPO")]
    best = [point.name for point, _ in figures._best(points, [0, 1, 2])]
    assert best == ["grpo", "entropy_bonus 0.01", "lookahead_age 64", "masked 8"]


def test_older_results_have_no_curve_of_learning(results, tmp_path):
    group = Group("countdown", "search instrument (plain PyTorch)", 0)
    assert "learning_" not in analyse.section(group, points_of(results), tmp_path, [8])


def test_fresh_seeds_are_a_group_of_their_own(results):
    for seed in (SEEDS_A_SET, 3 * SEEDS_A_SET + 4):
        write(results, "grpo", "grpo", seed, 0.2, 0.4)
    first, second, fourth = read_results(results)
    assert [group.seeds_from for group in (first, second, fourth)] == [0, 100, 300]
    assert first.title.endswith(", seeds from 0") and fourth.title.endswith(", seeds from 300")
    assert common_seeds(read_results(results)[fourth]) == [304]


def test_a_point_that_was_run_twice_is_refused(results):
    copy = results / "again"
    copy.mkdir()
    (copy / "result.json").write_text(next(results.rglob("grpo/None/seed_0/result.json")).read_text())
    with pytest.raises(ValueError, match="seed 0 of grpo is there twice"):
        read_results(results)


def test_results_of_another_warm_start_are_not_compared(results):
    path = next(results.rglob("masked/8/seed_1/result.json"))
    other = json.loads(path.read_text())
    for pass_1, message in ((0.104, None), (0.106, "pass@1 0.1060, that of .* 0.1000: they began with different")):
        path.write_text(json.dumps(other | {"start": {"pass@1": pass_1}}))
        if message is None:
            assert read_results(results)
        else:
            with pytest.raises(ValueError, match=message):
                read_results(results)


def test_only_the_generated_part_of_a_document_changes():
    document = f"# Results\nby hand\n{tables.BEGIN}\nold\n{tables.END}\nand after\n"
    new = tables.replace_generated(document, "new")
    assert new == f"# Results\nby hand\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nand after\n"
    assert tables.replace_generated(new, "new") == new
    with pytest.raises(ValueError, match="expected one line"):
        tables.replace_generated("no markers", "new")


def test_a_document_that_is_not_there_is_made(results, tmp_path, monkeypatch):
    out = tmp_path / "tables"
    words = ["--results", results, "--document", out / "results.md", "--figures", out / "figures", "--k", "8"]
    monkeypatch.setattr(sys, "argv", ["analyse", *map(str, words)])
    analyse.main()
    assert "figures/frontier_countdown_search_instrument_0.png" in (out / "results.md").read_text()


def test_without_results_it_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="no result.json below it; run benchmarks.grid first"):
        read_results(tmp_path)
