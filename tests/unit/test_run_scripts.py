"""The run scripts: which settings their knobs make, and what they prepare."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.fake_commands import FakeCommands
from tests.unit.preflight_files import ROOT, script_settings

OWN = {"MODEL_PATH": "/models/mine", "DATA": "math-level3-5"}


def as_dict(settings):
    return dict(setting.split("=", 1) for setting in settings)


def called(script, *given, tmp_path, **knobs):
    """The commands that a script runs as `$PYTHON ...`, as lists."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >>"$CALLS"; printf "\\n" >>"$CALLS"\n')
    python.chmod(0o755)
    calls = tmp_path / "calls"
    environment = {**os.environ, **knobs, "PYTHON": str(python), "CALLS": str(calls)}
    subprocess.run(["bash", ROOT / "recipe/soup" / script, *given], env=environment, check=True, timeout=600)
    return [line.split("\0")[:-1] for line in calls.read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("soup", {}),
        ("snapshot", {"soup.source": "snapshot", "soup.snapshot.every": "10"}),
        ("replay", {"soup.source": "replay"}),
        ("grpo", {"soup.mixed_fraction": "0"}),
    ],
)
def test_methods_differ_in_nothing_but_their_settings(method, own):
    plain = as_dict(script_settings("run.sh", METHOD="soup", NAME="x", **OWN))
    assert as_dict(script_settings("run.sh", METHOD=method, NAME="x", **OWN)) == plain | own


def test_the_settings_of_a_model_and_data_of_ones_own():
    found = as_dict(
        script_settings(
            "run.sh",
            "soup.lookahead.age=8",
            MODEL_PATH="/m/a model",
            DATA="/d/mine set.parquet",
            BENCHMARKS="math-500 /d/held_out.parquet",
            REWARD_PATH="/d/reward.py",
            PROMPT_TOKENS="100",
            RESPONSE_TOKENS="400",
            MICRO_BATCH="3",
            TEMPLATE="tiny",
        )  # fmt: skip
    )
    assert found["actor_rollout_ref.model.path"] == "data/a model_tiny_prompts_of_100/a model"  # the copy that stops
    assert found["data.train_files"] == "/d/mine set.parquet"
    math = "data/a model_tiny_prompts_of_100/benchmarks/math-500.parquet"
    assert found["data.val_files"] == f"[{math},/d/held_out.parquet]"
    assert found["reward.custom_reward_function.path"] == "/d/reward.py"
    assert found["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == "1500"
    assert found["trainer.experiment_name"] == "a model_soup" and found["soup.lookahead.age"] == "8"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"DATA": "gsm8k"}, "MODEL_PATH: a model's folder"),
        ({"MODEL_PATH": "m"}, "DATA: a data set"),
        (OWN | {"METHOD": "ppo"}, "METHOD=ppo: expected soup, snapshot, replay or grpo"),
        (OWN | {"CONTEXT_TOKENS": "8192"}, "ROPE_THETA: base"),
    ],
)
def test_a_missing_knob_is_one_line(knobs, message):
    assert message in refusal(knobs)


def refusal(knobs, *given):
    environment = {k: v for k, v in os.environ.items() if k not in OWN} | {"DRY_RUN": "1"} | knobs
    command = ["bash", ROOT / "recipe/soup/run.sh", *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and done.stdout == "" and done.stderr.count("\n") == 1
    return done.stderr


def test_a_domain_is_never_validated_on_mathematics_by_default():
    told = "BENCHMARKS: what to validate on, as in the head of recipe/soup/config/domains/code.yaml"
    assert told in refusal(OWN, "domains=code")
    assert script_settings("run.sh", "domains=null", **OWN)  # is none


def test_a_papers_script_is_run_sh_with_its_own_knobs():
    r1 = as_dict(script_settings("run_r1_distill_qwen_1.5b_snapshot.sh"))
    assert r1["actor_rollout_ref.actor.use_kl_loss"] == "true" and r1["soup.source"] == "snapshot"
    assert r1["trainer.experiment_name"] == "r1_distill_qwen_1.5b_soup_snapshot"
    assert r1["actor_rollout_ref.rollout.temperature"] == "0.6"
    assert r1["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == str(4 * (1024 + 8192))
    qwen = as_dict(script_settings("run_qwen2.5_math_7b.sh", METHOD="grpo"))
    assert qwen["trainer.experiment_name"] == "qwen2.5_math_7b_grpo" and qwen["soup.mixed_fraction"] == "0"
    assert qwen["actor_rollout_ref.model.path"].endswith("/Qwen2.5-Math-7B_16384")
    assert qwen["actor_rollout_ref.rollout.tensor_model_parallel_size"] == "2"


def test_what_is_missing_is_made_in_order_and_then_the_run_starts(tmp_path):
    data = tmp_path / "my data"
    (data / "benchmarks").mkdir(parents=True)
    (data / "benchmarks" / "amc23.parquet").touch()
    calls = called("run_qwen2.5_math_7b.sh", "a=1", tmp_path=tmp_path, DATA_DIR=str(data), BENCHMARKS="math-500 amc23")
    assert [call[1] for call in calls] == [
        "soup_verl.prepare_data",
        "soup_verl.prepare_data",
        "soup_verl.tasks.context_window",
        "recipe.soup.main_soup",
    ]
    assert calls[0][2:6] == ["--dataset", "math-500", "--out", f"{data}/benchmarks"]
    benchmarks = [f"{data}/benchmarks/math-500.parquet", f"{data}/benchmarks/amc23.parquet"]
    assert calls[1][-3:] == ["--benchmarks-from", *benchmarks]
    copy = ["--model", "Qwen/Qwen2.5-Math-7B", "--out", f"{data}/Qwen2.5-Math-7B_16384"]
    assert calls[2][2:] == [*copy, "--max-position-embeddings", "16384", "--rope-theta", "40000"]
    assert calls[3][-1] == "a=1"


def test_data_of_ones_own_needs_no_preparation(tmp_path):
    knobs = {"MODEL_PATH": "m", "DATA": "/d/t.parquet", "BENCHMARKS": "/d/v.parquet"}
    copied, trained = called("run.sh", tmp_path=tmp_path, **knobs, DATA_DIR=str(tmp_path / "no data"))
    assert copied[1:] == ["soup_verl.tasks.context_window", "--model", "m", "--out", str(tmp_path / "no data" / "m")]
    assert trained[:2] == ["-m", "recipe.soup.main_soup"]
    # Nothing to hold the training set against: no --benchmarks-from.
    calls = called("run.sh", tmp_path=tmp_path, **knobs | {"DATA": "gsm8k", "DATA_DIR": str(tmp_path / "d")})
    (prepared,) = (call for call in calls if "--dataset" in call)
    assert "--benchmarks-from" not in prepared and prepared[2:4] == ["--dataset", "gsm8k"]


def test_a_rehearsal_is_handed_the_very_command(tmp_path):
    knobs = {"DATA_DIR": "/data/d", "BENCHMARKS": "math-500"}
    (call,) = called("run_qwen2.5_math_7b_snapshot.sh", "x=1 2", tmp_path=tmp_path, REHEARSE="1", **knobs)
    place = call.index("--")
    assert call[place + 1 :] == script_settings("run_qwen2.5_math_7b_snapshot.sh", "x=1 2", **knobs)
    assert call[:2] == ["-m", "soup_verl.rehearsal"]
    assert call[2:8] == [
        "--out",
        "runs/rehearsals/qwen2.5_math_7b_soup_snapshot",
        "--extent",
        "1",
        "--model",
        "Qwen/Qwen2.5-Math-7B",
    ]
    made = [call[i + 1 : i + 3] for i in range(place) if call[i] == "--made"]
    assert [Path(file).name for file, _ in made] == ["math-500.parquet", "openr1-math-46k.parquet", "config.json"]
    assert [module.rpartition(".")[2] for _, module in made] == ["prepare_data", "prepare_data", "context_window"]


def test_puzzles_go_by_a_name_that_is_no_file_name(tmp_path):
    knobs = {"MODEL_PATH": "m", "DATA": "reasoning-gym:gcd", "BENCHMARKS": "reasoning-gym:gcd-test", "DATA_DIR": "d"}
    test, train, *_ = called("run.sh", tmp_path=tmp_path, **knobs)
    assert test[1:6] == ["soup_verl.prepare_data", "--dataset", "reasoning-gym:gcd-test", "--out", "d/benchmarks"]
    assert train[3] == "reasoning-gym:gcd" and train[-1] == "d/benchmarks/reasoning-gym-gcd-test.parquet"
    found = as_dict(script_settings("run.sh", **knobs))
    assert found["data.train_files"] == "d/reasoning-gym-gcd.parquet"
    assert found["data.val_files"] == "[d/benchmarks/reasoning-gym-gcd-test.parquet]"


@pytest.mark.parametrize(
    ("has_vllm", "made", "knobs", "expected"),
    [
        (True, [".venv-gpu", ".venv"], {}, "python3"),  # an environment is active
        (False, [".venv-gpu", ".venv"], {}, ".venv-gpu"),
        (False, [".venv"], {}, ".venv"),
        (False, [], {}, "python3"),
        (True, [".venv-gpu", ".venv"], {"REHEARSE": "1"}, ".venv"),
        (True, [], {"REHEARSE": "1"}, "python3"),
        (False, [".venv-gpu", ".venv"], {"PYTHON": "mine"}, "mine"),
        (False, [".venv-gpu", ".venv"], {"PYTHON": "mine", "REHEARSE": "1"}, "mine"),
    ],
)
def test_a_run_finds_its_environment(has_vllm, made, knobs, expected, tmp_path):
    root = tmp_path / "project"
    (root / "recipe/soup").mkdir(parents=True)
    for name in ("run.sh", "prepare.sh"):
        shutil.copy(ROOT / "recipe/soup" / name, root / "recipe/soup")
    commands = FakeCommands(tmp_path / "commands")
    commands.add("python3", f"if [[ $1 == -c ]]; then exit {0 if has_vllm else 1}; fi")
    commands.add("mine")
    for name in made:
        interpreter = root / name / "bin/python"
        interpreter.parent.mkdir(parents=True)
        shutil.move(commands.add(name), interpreter)
    environment = commands.environment(**OWN, **knobs)
    subprocess.run(["bash", root / "recipe/soup/run.sh"], env=environment, check=True, timeout=60)
    called = {call.partition(" ")[0] for call in commands.calls() if " -m " in call}
    assert called == {expected}
