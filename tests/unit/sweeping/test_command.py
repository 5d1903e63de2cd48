"""The whole command with runs that only leave their files (runs.py); sbatch and squeue write down their calls."""

import json
from functools import partial
from pathlib import Path

import pytest

from soup_verl.launch import run
from soup_verl.launch.finished import FINISHED
from soup_verl.sweeping import command, here, plan, slurm
from soup_verl.sweeping.command import Recipe
from tests.unit.fake_commands import FakeCommands
from tests.unit.sweeping.runs import METRIC, begin, compose

RECIPE = Recipe(compose, scripts=(Path("slurm.sh"), Path("main_soup.sh")))
FILE = """
out: {out}
seeds: [0, 1]
baseline: grpo
shared: [platform=cpu]
methods:
  grpo: [soup.mixed_fraction=0]
  soup: [trainer.test_value=0.25]
slurm: [--nodes=2]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Calls the command on `tmp_path/sweep.yaml`; runs go to `tmp_path/out`."""
    monkeypatch.setattr(run, "check", lambda config: None)
    file = tmp_path / "sweep.yaml"
    file.write_text(FILE.format(out=tmp_path / "out"))
    return lambda *options: command.main([str(file), *options], RECIPE, partial(here.train, begin=begin))


def change(tmp_path, old, new):
    file = tmp_path / "sweep.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_it_trains_and_ends_with_the_table_and_the_page(tmp_path, sweep, capsys):
    """.5 and .6 against .75 and .85: .25 apart on both seeds."""
    assert sweep() == 0
    out = capsys.readouterr().out
    assert METRIC in out and "+0.2500" in out and "above" in out and "missing" not in out
    assert "page: " in out and "grpo" in (tmp_path / "out/report.html").read_text()
    said = json.loads((tmp_path / "out/sweep.json").read_text())
    assert said["baseline"] == "grpo" and said["missing"] == {}
    soup = said["rows"][1]
    assert soup["values"] == {"0": 0.75, "1": 0.85}
    assert soup["difference"]["mean"] == pytest.approx(0.25) and soup["difference"]["seeds"] == 2


def test_called_again_it_trains_nothing_and_says_the_same(tmp_path, sweep, capsys):
    sweep()
    first = capsys.readouterr().out
    order = (tmp_path / "out/order.txt").read_text()
    assert sweep() == 0
    assert capsys.readouterr().out == first and (tmp_path / "out/order.txt").read_text() == order


def test_more_seeds_train_those_alone(tmp_path, sweep):
    sweep()
    change(tmp_path, "[0, 1]", "[2, 1, 0]")
    assert sweep() == 0
    assert (tmp_path / "out/order.txt").read_text().split()[4:] == ["grpo-s2", "soup-s2"]


def test_what_failed_is_named_under_the_table_of_the_others(tmp_path, sweep, capsys):
    change(tmp_path, "  soup:", "  bad: [trainer.fails=true]\n  soup:")
    assert sweep() == 1
    out = capsys.readouterr().out
    assert "missing: bad-s0: DiskFull: no room\nmissing: bad-s1: DiskFull: no room\n" in out and "+0.2500" in out
    assert json.loads((tmp_path / "out/sweep.json").read_text())["missing"]["bad-s1"] == "DiskFull: no room"


def runs_of_seed_0(tmp_path):
    return [run for run in plan.read(tmp_path / "sweep.yaml").runs() if run.seed == 0]


def test_the_table_of_half_a_sweep_is_paired_already(tmp_path, sweep, capsys):
    begin([compose(run.overrides) for run in runs_of_seed_0(tmp_path)])
    assert sweep("--table") == 1
    out = capsys.readouterr().out
    assert "+0.2500" in out and "[" not in out and "missing: soup-s1: not begun" in out
    assert len((tmp_path / "out/order.txt").read_text().split()) == 2


def test_the_table_names_what_is_missing(sweep, capsys):
    assert sweep("--table") == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing: grpo-s0: not begun",
        "missing: soup-s0: not begun",
        "missing: grpo-s1: not begun",
        "missing: soup-s1: not begun",
    ]


def test_a_dry_run_shows_the_runs_and_leaves_nothing(tmp_path, sweep, capsys):
    assert sweep("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all: platform=cpu" and len(lines) == 5
    assert lines[2].startswith("2 of 4: soup-s0 (not begun): data.seed=0 ") and lines[2].endswith(
        " trainer.test_value=0.25"
    )
    assert not (tmp_path / "out").exists()


def test_runs_without_validation_are_said_to_have_none(tmp_path, sweep, capsys):
    sweep()
    for file in (tmp_path / "out").glob("*/metrics.jsonl"):
        file.write_text('{"step": 1, "data": {"critic/rewards/mean": 0.5}}\n')
    capsys.readouterr()
    assert sweep() == 0
    assert "no validation in the runs' metrics: trainer.test_freq" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[0, 1]", "[]", "sweep.seeds=[]: expected at least one seed"),
        ("  soup:", "  grpo: []\n  soup:", "line 8: found duplicate key grpo"),
        ("baseline: grpo", "baseline: ppo", "sweep.baseline='ppo': expected one of grpo, soup."),
        ("out: ", "outt: 1\nout: ", "sweep.outt=1: expected no such key; sweep has baseline"),
    ],
)
def test_bad_input_is_one_line(tmp_path, sweep, capsys, old, new, said):
    change(tmp_path, old, new)
    assert sweep() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'sweep.yaml'}: {said}")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert command.main(["no.yaml"], RECIPE) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no.yaml: ") and "No such file" in line


def test_a_file_that_changed_for_what_has_finished_is_refused(tmp_path, sweep, capsys):
    sweep()
    change(tmp_path, "mixed_fraction=0", "mixed_fraction=0.1")
    capsys.readouterr()
    for options in ((), ("--table",), ("--slurm",), ("--dry-run",)):
        assert sweep(*options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "soup.mixed_fraction=0.1: expected 0, as in" in line and "grpo-s0, which has finished." in line


def test_an_interrupt_is_one_line(sweep, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(here, "check", interrupted)
    assert sweep() == 130
    assert capsys.readouterr().err == "sweep: interrupted; the same command goes on from the last checkpoint\n"


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Slurm, which numbers jobs from 41 on; what is in its queue is in the file `queue`."""
    commands = FakeCommands(tmp_path / "bin")
    commands.add("sbatch", f'echo "$((40 + $(grep -c ^sbatch "{commands.log}")));cluster"')
    commands.add("squeue", f'cat "{tmp_path}/queue"')
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", commands.environment()["PATH"])
    return commands


def test_a_job_is_sent_for_each_run_and_a_later_call_sends_no_second_one(tmp_path, sweep, queue, capsys):
    assert sweep("--slurm") == 0
    sent = queue.calls("sbatch")
    assert len(sent) == 4
    folder = tmp_path / "out/grpo-s0"
    assert sent[0] == (
        f"sbatch --parsable --job-name=grpo-s0 --output={folder}/slurm.out --nodes=2 slurm.sh main_soup.sh "
        "platform=cpu data.seed=0 soup.seed=0 soup.sampling_seed=0 actor_rollout_ref.actor.data_loader_seed=0 "
        f"soup.mixed_fraction=0 trainer.experiment_name=grpo-s0 trainer.default_local_dir={folder}"
    )
    captured = capsys.readouterr()
    assert "sweep: 1 of 4: grpo-s0: job 41\n" in captured.err and "missing: soup-s1: not begun, job 44" in captured.out
    (tmp_path / "queue").write_text("41\n42\n43\n44\n7\n")
    assert sweep("--slurm") == 0
    assert len(queue.calls("sbatch")) == 4 and "grpo-s1: job 43 is in the queue" in capsys.readouterr().err


def test_a_later_call_collects_what_has_finished_and_sends_what_ended_before_its_run(tmp_path, sweep, queue, capsys):
    sweep("--slurm")
    begin([compose(run.overrides) for run in runs_of_seed_0(tmp_path)])
    (tmp_path / "queue").write_text("43\n")
    capsys.readouterr()
    assert sweep("--slurm") == 0
    captured = capsys.readouterr()
    assert queue.calls("sbatch")[4:] == [queue.calls("sbatch")[3]]
    assert "2 of 2: soup-s1: job 45, after job 44, which ended before the run did" in captured.err
    assert "+0.2500" in captured.out and "missing: grpo-s1: not begun, job 43" in captured.out


def test_a_run_that_has_a_job_is_not_trained_here(tmp_path, sweep, queue, capsys):
    sweep("--slurm")
    capsys.readouterr()
    assert sweep() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "grpo-s0: job 41 was sent for it. Add --slurm, or remove" in line
    assert not (tmp_path / "out/grpo-s0" / FINISHED).exists()


def test_jobs_that_slurm_refuses_are_one_line_and_what_was_sent_is_known(tmp_path, sweep, queue, capsys):
    body = f'if (($(grep -c ^sbatch "{queue.log}") > 1)); then echo "no such partition" >&2; exit 1; fi; echo 41'
    queue.add("sbatch", body)
    assert sweep("--slurm") == 1
    assert (
        "sbatch refused: no such partition. The command: sbatch --parsable" in capsys.readouterr().err.splitlines()[-1]
    )
    assert (tmp_path / "out/grpo-s0" / slurm.JOB).read_text() == "41\n"
    assert not (tmp_path / "out/soup-s0" / slurm.JOB).exists()


def test_without_slurm_it_is_one_line(sweep, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert sweep("--slurm") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "squeue: not found. --slurm is for a machine that can send Slurm jobs." in line


def test_a_dry_run_with_slurm_shows_the_commands_and_sends_nothing(sweep, queue, capsys):
    assert sweep("--slurm", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[1].startswith("  sbatch --parsable --job-name=grpo-s0")
    assert queue.calls() == []
