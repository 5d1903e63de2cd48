"""What the shell scripts run, and that a failure ends them; the commands themselves have tests of their own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.grid import GRID, chosen, read_points
from benchmarks.tables import BEGIN, END, replace_generated

ROOT = Path(__file__).parents[3]
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
[[ $* != *"$FAILS"* ]] || { echo "grid: no space left"; exit 3; }
"""


@pytest.fixture
def script(tmp_path):
    """Runs a script with an interpreter that only notes what it is asked, and fails where it is told to."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(name, *words, fails="nothing", **variables):
        given = {"PYTHON": python, "CALLS": tmp_path / "calls", "FAILS": fails, "OUT": tmp_path / "out"}
        given |= {"ASSETS": tmp_path / "assets"} | variables
        given["CALLS"].unlink(missing_ok=True)
        env = {"PATH": os.environ["PATH"]} | {key: str(value) for key, value in given.items()}
        done = subprocess.run(["bash", f"benchmarks/{name}", *words], cwd=ROOT, env=env, capture_output=True, text=True)
        return done, sorted((tmp_path / "calls").read_text().splitlines())

    return run


def test_a_worker_that_fails_lets_the_other_end_and_then_fails_the_grid(script, tmp_path):
    done, calls = script("run_simulation.sh", fails="--shard 0/2", TASKS="order", SEEDS="1")
    assert done.returncode == 1 and f"see {tmp_path}/out/worker_0.log; the same command goes on" in done.stderr
    assert "grid: no space left" in done.stderr
    assert [call.split()[1] for call in calls] == ["benchmarks.grid", "benchmarks.grid", "benchmarks.prepare"]


def test_a_grid_of_its_own_leaves_the_published_tables_alone(script, tmp_path):
    done, calls = script("run_simulation.sh", TASKS="order")
    assert done.returncode == 0
    assert calls[0].endswith(f"--document {tmp_path}/out/results.md --figures {tmp_path}/out/figures")


def test_the_whole_evidence_rewrites_the_pages_of_tables_and_no_other(script):
    done, calls = script("run_all.sh", TASKS="order", REAL_SEEDS="0")
    assert done.returncode == 0, done.stderr
    (analyse,) = [call for call in calls if "benchmarks.analyse" in call]
    pages = "--methods docs/methods_tables.md --document docs/results_tables.md --figures docs/figures"
    assert analyse.endswith(f"--results benchmarks/raw {pages}")
    documents = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}
    generated = {name for name, text in documents.items() if BEGIN in text or END in text}
    assert generated == {"results_tables.md", "methods_tables.md"}
    assert all("instead" in replace_generated(documents[name], "instead") for name in generated)


def test_nothing_is_published_of_an_incomplete_grid(script):
    done, calls = script("run_all.sh", fails="--shard 1/2")
    assert done.returncode == 1
    assert not [call for call in calls if "keep" in call or "analyse" in call]


def test_every_line_of_the_plan_is_run_for_the_tasks_asked_for_with_points_that_the_grid_has(script):
    done, calls = script("run_all.sh", REAL_SEEDS="0")
    assert done.returncode == 0, done.stderr
    found = {}
    for call in (call for call in calls if "benchmarks.grid" in call):
        words = call.partition(" --tasks ")[2].partition(" --shard ")[0]
        task, seeds, first, points = re.fullmatch(
            r"(\w+) --seeds (\d+) --first-seed (\d+)(?: --points (.+))?", words
        ).groups()
        chosen(read_points(GRID, task), points and points.split())
        found.setdefault((task, int(seeds), int(first)), points)
    searched = {task for task, seeds, first in found if (seeds, first) == (1, 0)}
    assert {"hard_96", "hard_240", "hard_960", "hard_order_960", "hard_text", "countdown"} <= searched
    fresh = {task for task, seeds, first in found if (seeds, first) == (5, 100)}
    assert fresh >= {
        "countdown",
        "chain_sum",
        "order",
        "countdown_96",
        "hard_96",
        "hard_code",
        "hard_puzzle",
        "hard_text",
    }
    assert found["countdown_96", 8, 300].startswith("grpo lookahead_kl/0.05 ")
    done, calls = script("run_all.sh", TASKS="hard_order_960 order", SEEDS="2", REAL_SEEDS="0")
    grids = {call.split("--tasks ")[1].split(" --first")[0] for call in calls if "grid" in call}
    assert grids == {"order --seeds 1", "order --seeds 2", "hard_order_960 --seeds 1"}


def test_the_real_stack_is_asked_for_each_task_and_then_for_the_agreement(script):
    done, calls = script("run_all.sh", TASKS="order hard_text", REAL_SEEDS="2")
    assert done.returncode == 0, done.stderr
    real = [call.partition(" --tasks ")[2] for call in calls if "benchmarks.real_stack" in call]
    assert real == [
        "hard_text --points grpo replay_best/0.75 --first-seed 100 --set steps=400 samples=32 evaluate_every=400",
        "order --points grpo lookahead_age/64 snapshot/8 replay/6 masked/64 --seeds 2 --set samples=32",
    ]


def test_neighbours_are_searched_on_one_seed_and_every_methods_best_point_is_run_on_fresh_ones(script, tmp_path):
    done, calls = script("run_all.sh", TASKS="order", REAL_SEEDS="0")
    assert done.returncode == 0, done.stderr
    assert any("--tasks order --seeds 1 --first-seed 0 --points grpo neighbor --shard" in call for call in calls)
    assert f"-m benchmarks.methods_page --results {tmp_path}/out/sim --task order" in calls
    assert any("--tasks order --seeds 5 --first-seed 100" in call for call in calls)


def test_numbers_outside_are_told_last_by_the_exit_code(script):
    done, calls = script("run_all.sh", fails="benchmarks.agreement")
    assert done.returncode == 3 and any("benchmarks.analyse" in call for call in calls)


def test_an_unknown_argument_is_named(script):
    with pytest.raises(FileNotFoundError):  # nothing was asked of Python
        script("run_all.sh", "--fast")
