"""Preflight's report, and its checks of code, packages, machine and loggers."""

import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from soup_verl.launch.preflight import Hardware, memory, provenance
from soup_verl.launch.preflight.hardware import _left_in_containers
from soup_verl.launch.preflight.loggers import logger_findings
from soup_verl.launch.preflight.report import Finding, Report, fits, judged, refused
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.launch.preflight.sizing import GIB, ModelShape, product
from soup_verl.method.checks import ConfigError
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import run_with

# ---- the report ----


def test_a_verdict_no_needs_an_error_and_only_that():
    with pytest.raises(AssertionError):
        Finding("t", "n", "no", "", "")
    with pytest.raises(AssertionError):
        Finding("t", "n", "ok", "", "", error=ValueError())


def test_an_estimate_leaves_the_spare_share():
    need = product("a", (95, "bytes"))
    assert fits("t", "n", need, 100).verdict == "ok"
    assert fits("t", "n", need, 100, spare=0.1).verdict == "warning"


def test_the_first_refusal_ends_the_run():
    report = Report(
        [judged("t", "a", False, need=1, have=0), refused("t", "b", "k", 1, "2"), refused("t", "c", "l", 3, "4")]
    )
    with pytest.raises(ConfigError, match="k=1: expected 2"):
        report.raise_if_refused()
    Report(report.findings[:1]).raise_if_refused()


def test_text_that_looks_like_markup_is_shown_as_it_is(capsys):
    Report([judged("t", "n", True, need="[/red]", have="[bold]")], prompts=["[/x] a\nb"]).show()
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "[bold]" in shown and "'[/x] a\\nb'" in shown and "1 ok, 0 warning, 0 no" in shown


# ---- code, packages, machine ----


def test_the_commit_and_whether_it_was_changed(tmp_path):
    assert provenance.git_facts(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert provenance.git_facts(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert provenance.git_facts(tmp_path) == {"commit": commit, "dirty": True}


def test_versions_against_pins():
    asked = [Requirement(r) for r in ("pytest>=1", "pytest<1", "no-such-package==2.0", "pytest")]
    wrong = list(provenance._mismatches(asked))
    assert len(wrong) == 2 and wrong[0].startswith("pytest ") and wrong[0].endswith("not <1")
    assert wrong[1] == "no-such-package missing, not ==2.0"


@pytest.mark.skipif(provenance._installed(provenance.PROJECT) is None, reason="the project is not installed")
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_pins_are_those_of_the_extra(extra):
    (finding,) = provenance.version_findings(extra)
    assert finding.need.endswith(f"soup-verl[{extra}]") and int(finding.need.split()[0]) > 5
    assert "hypothesis" not in finding.have  # the extra `test` is not asked


def test_a_container_that_leaves_less_counts(tmp_path):
    assert _left_in_containers(tmp_path) == [1 << 62]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert _left_in_containers(tmp_path) == [1 << 62]
    (tmp_path / "memory.max").write_text("1000\n")
    assert min(_left_in_containers(tmp_path)) == 999


def test_this_machine_has_memory_and_a_disk(tmp_path):
    here = Hardware.detect(tmp_path / "not" / "there" / "yet")
    assert here.host_bytes > 0 and here.disk_bytes > 0 and (here.gpus > 0) == (here.gpu_bytes > 0)


SHAPES = {
    "qwen2.5_math_7b": ModelShape(7_615_616_512, 28, 3584, 18944, 28, 4, 128, 152064, False),
    "r1_distill_qwen_1.5b": ModelShape(1_777_088_000, 28, 1536, 8960, 12, 2, 128, 151936, False),
}
"""By the models' published configurations, as the run scripts are named after them."""


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("source", ["", "_snapshot"])
def test_the_disk_and_the_memory_in_a_run_scripts_head_are_preflights(model, source):
    script = f"run_{model}{source}.sh"
    run = RunSettings.parse(files.configure(*files.script_settings(script)))
    kept = run.get("trainer.max_actor_ckpt_to_keep")
    disk = memory.checkpoints(run, SHAPES[model], kept)
    head = (files.ROOT / "recipe/soup" / script).read_text().replace("\n# ", " ")
    (on_disk,) = re.findall(r"(\d+) GB of disk [a-z]+ KEEP=2", head)
    assert 1 <= int(on_disk) * 1e9 / disk.bytes < 1.2
    if source:
        (in_memory,) = re.findall(r"up to (\d+) GB of host memory a node", head)
        assert 1 <= int(in_memory) * 1e9 / memory.history(run, SHAPES[model]).bytes < 1.2


def test_the_recipes_line_for_one_gpu_of_24_gb_fits_and_without_lora_it_would_not():
    """The command is the README's own."""
    readme = (files.ROOT / "recipe/soup/README.md").read_text()
    (line,) = re.findall(r"```bash\n(GPUS=1 .*?lora_rank.*?)```", readme, re.DOTALL)
    settings = files.printed_settings(["bash", "-c", line])
    shape = SHAPES["r1_distill_qwen_1.5b"]

    def verdicts(settings):
        run = RunSettings.parse(files.compose(*settings))
        return {
            f.name: f.verdict for f in memory.memory_findings(run, Hardware(1, 24 * GIB, 64 * GIB, 99 * GIB), shape)
        }

    assert set(verdicts(settings).values()) == {"ok"}
    whole = [setting for setting in settings if "lora" not in setting]
    assert verdicts(whole)["GPU while training"] == "warning"


# ---- loggers ----


@pytest.mark.parametrize("given", ["console", ["console", "file"], ["tensorboard"], []])
def test_loggers_that_can_be_imported_are_one_line(given):
    (found,) = logger_findings(run_with({"trainer.logger": given}))
    assert (found.verdict, found.have) == ("ok", given if given == "console" else ", ".join(given) or "none")


def test_a_logger_that_verl_does_not_know_is_refused_with_those_it_knows():
    (found,) = logger_findings(run_with({"trainer.logger": ["console", "wandbb"]}))
    said = str(found.error)
    assert said.startswith("trainer.logger=['console', 'wandbb']: expected verl's loggers, which 'wandbb' is none of: ")
    assert {"wandb", "mlflow", "swanlab", "trackio", "tensorboard"} <= set(
        re.findall(r"\w+", said.partition("none of")[2])
    )


def test_a_logger_that_is_not_installed_is_refused_by_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setitem(sys.modules, "volcengine_ml_platform", None)
    found = list(logger_findings(run_with({"trainer.logger": ["file", "swanlab", "vemlp_wandb"]})))
    assert [finding.name for finding in found] == ["swanlab", "vemlp_wandb"]
    assert "which swanlab cannot (ModuleNotFoundError: " in str(found[0].error)
    assert "which volcengine_ml_platform cannot (" in str(found[1].error)


def test_a_logger_whose_package_is_broken_is_refused_with_its_first_line(tmp_path, monkeypatch):
    """As mlflow 1.27 beside protobuf 7."""
    (tmp_path / "clearml.py").write_text("raise RuntimeError('cannot find service\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clearml", raising=False)
    (found,) = logger_findings(run_with({"trainer.logger": "clearml"}))
    said = str(found.error)
    assert "which clearml cannot (RuntimeError: cannot find service)" in said and "\n" not in said
    assert "docs/metrics.md" in said
