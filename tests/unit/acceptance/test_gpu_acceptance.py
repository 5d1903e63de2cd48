import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soup_verl.acceptance import __main__ as gpu_acceptance
from soup_verl.acceptance.outcome import FAIL, PASS, SKIP, Check, Outcome, Skip, carry_out

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def fails(device):
    assert device.type == "cuda", f"on {device}"


def skips(device):
    raise Skip("no vLLM")


@pytest.mark.parametrize(
    ("function", "result", "told"),
    [
        (lambda device: f"0.1 on {device}", PASS, "0.1 on cpu"),
        (fails, FAIL, "on cpu"),
        (skips, SKIP, "no vLLM"),
        (lambda device: 1 / 0, FAIL, "division by zero"),
    ],
)
def test_what_comes_of_a_check(function, result, told):
    outcome = carry_out(Check("name", function), CPU)
    assert (outcome.check, outcome.result, outcome.device) == ("name", result, "cpu")
    assert outcome.told.startswith(told)


def outcomes(*results):
    return [Outcome(f"check {i}", result, device, 1.0, "") for i, (result, device) in enumerate(results)]


@pytest.mark.parametrize(
    ("results", "without_gpu", "wrong"),
    [
        ([(PASS, "cuda"), (SKIP, "cuda")], False, None),
        ([(PASS, "cuda"), (FAIL, "cuda"), (FAIL, "cuda")], False, "failed: check 1, check 2"),
        ([(FAIL, "cpu")], True, "failed: check 0"),
        ([(PASS, "cpu")], True, None),
        ([(PASS, "cpu")], False, "nothing ran on a GPU"),
        ([(SKIP, "cuda")], False, "nothing ran on a GPU"),
    ],
)
def test_the_verdict(results, without_gpu, wrong):
    told = gpu_acceptance.verdict(outcomes(*results), without_gpu=without_gpu)
    assert told is None if wrong is None else told.startswith(wrong)


@pytest.mark.e2e  # two minutes
def test_without_a_gpu_all_that_is_pure_passes_and_nothing_of_verl_is_touched(tmp_path):
    """The command itself, where verl, vLLM and Ray cannot be imported."""
    for package in ("verl", "vllm", "ray", "tensordict", "hydra", "omegaconf"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')\n")
    out = tmp_path / "out.json"
    done = subprocess.run(
        ["bash", "scripts/gpu_acceptance.sh", "--cpu", "--out", str(out)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    results = {check["check"]: check["result"] for check in written["checks"]}
    skipped = {"flash-attn against sdpa, log-probs", "three steps, lookahead and snapshot"}
    assert results == {check.name: SKIP if check.name in skipped else PASS for check in gpu_acceptance.CHECKS}
    assert written["installed"]["torch"] == torch.__version__ and written["wrong"] is None
    assert all(f"{check['result']} " in done.stdout and check["check"] in done.stdout for check in written["checks"])


def test_nothing_on_a_gpu_is_an_error_unless_that_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_acceptance, "CHECKS", (Check("nothing", lambda device: "fine"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = ["--out", str(tmp_path / "out.json")]
    assert gpu_acceptance.main(out) == 1
    assert "nothing ran on a GPU" in capsys.readouterr().out
    assert gpu_acceptance.main(["--cpu", *out]) == 0
