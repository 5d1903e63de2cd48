"""The benchmarks' own command on the real stack: a point of the grid and GRPO, from prepared assets to results."""

import json
import sys

import pytest
import yaml

from benchmarks.grid import GRID, chosen, read_points
from soup_verl.records import run_log
from tests.e2e.launch import execute, survivors

pytestmark = pytest.mark.e2e
TASK, POINTS = "hard_text", ("grpo", "replay_best_cut_dr_grpo/0.5")
STEPS, SAMPLES, PROMPTS, RESPONSES = 10, 2, 12, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the results, its command and what the first call printed."""
    folder = tmp_path_factory.mktemp("benchmarks")
    prepare = [sys.executable, "-m", "benchmarks.prepare", "--task", TASK, "--out", str(folder / "assets" / TASK)]
    assert execute(prepare, folder / "prepare")[0] == 0
    given = ["--assets", folder / "assets", "--out", folder / "out", "--tasks", TASK, "--points", *POINTS, "--seeds", 1]
    given += ["--set", f"steps={STEPS}", f"samples={SAMPLES}", f"evaluate_every={STEPS}"]
    command = [sys.executable, "-m", "benchmarks.real_stack", *map(str, given)]
    code, output = execute(command, folder / "log")
    assert code == 0, output[-3000:]
    assert survivors(folder / "log") == []
    return folder, command


def of_point(folder, name):
    return folder / "out" / TASK / name / "seed_0"


def test_every_point_has_a_result_of_its_own_settings_and_steps(made):
    folder, _ = made
    for point in chosen(read_points(GRID, TASK), POINTS):
        result = json.loads((of_point(folder, point.name) / "result.json").read_text())
        log = run_log.read(of_point(folder, point.name))
        assert list(log) == list(range(1, STEPS + 1))
        assert result["decode_tokens"] == sum(
            step.get("soup/decode_tokens_total", step["response_length/mean"] * PROMPTS * RESPONSES)
            for step in log.values()
        )
        ((checkpoint),) = result["checkpoints"]
        assert checkpoint["step"] == STEPS and 0 <= checkpoint["pass@1"] <= checkpoint[f"pass@{SAMPLES}"] <= 1
        config = yaml.safe_load((of_point(folder, point.name) / "config.yaml").read_text())
        actor, mixed = config["actor_rollout_ref"]["actor"], point.settings.get("soup.mixed_fraction", 0)
        assert config["soup"]["mixed_fraction"] == mixed
        assert actor["loss_agg_mode"] == point.settings.get("loss.loss_agg_mode", "token-mean")
        assert config["algorithm"]["norm_adv_by_std_in_grpo"] == point.settings.get("norm_by_std", True)


def test_stored_responses_save_decoding(made):
    """A step takes 12 of 96 questions: from step 9 on there are stored responses."""
    log = run_log.read(of_point(made[0], POINTS[1]))
    shares = [
        step["soup/prefix_tokens_total"] / (step["soup/prefix_tokens_total"] + step["soup/decode_tokens_total"])
        for step in log.values()
    ]
    assert shares[:8] == [0] * 8 and min(shares[8:]) > 0


def test_finished_runs_are_not_made_again(made):
    folder, command = made
    files = [of_point(folder, name) / "metrics.jsonl" for name in POINTS]
    before = [file.stat().st_mtime_ns for file in files]
    code, output = execute(command, folder / "log")
    assert code == 0, output[-3000:]
    assert [file.stat().st_mtime_ns for file in files] == before
    assert all((of_point(folder, name) / "result.json").exists() for name in POINTS)
