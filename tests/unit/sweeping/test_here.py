"""Runs leave their files from real processes apart; what trains is stood in for (tests/unit/sweeping/runs.py)."""

import os
import signal
import time
from pathlib import Path

import pytest

from soup_verl.launch import run, stalls
from soup_verl.launch.finished import FINISHED, is_finished
from soup_verl.sweeping import SweepError, here
from soup_verl.sweeping.plan import Sweep, composed
from tests.unit.sweeping.runs import begin, compose, finish


def configs_of(folder, *, seeds=(0, 1), shared=(), **methods):
    given = methods or {"grpo": (), "soup": ()}
    methods = {
        name: [f"trainer.test_value={place}", *given[name]] for place, name in enumerate(given)
    }  # none are equal
    sweep = Sweep(str(folder), list(seeds), next(iter(methods)), methods, list(shared))
    return composed(list(sweep.runs()), compose)


def order(folder):
    return (folder / "order.txt").read_text().split()


OTHER_PROCESSES = ("actor_rollout_ref.actor.strategy=fsdp",)


def test_every_run_is_trained_in_order_and_said(tmp_path, capsys):
    configs = configs_of(tmp_path)
    assert here.train(configs, tmp_path / "log.txt", begin) == []
    assert order(tmp_path) == ["grpo-s0", "soup-s0", "grpo-s1", "soup-s1"]
    assert all(map(is_finished, configs.values()))
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("sweep: run ") and " of 4: " in line for line in said)


def test_the_run_under_way_is_said_with_its_number(tmp_path, monkeypatch):
    """Each goes on when it has been said."""
    lines, deadline = [], time.monotonic() + 60

    def say(line):
        lines.append(line)
        (tmp_path / line.rpartition(" ")[2]).touch()

    def begin_slowly(configs):
        for config in configs:
            while not (tmp_path / config.trainer.experiment_name).exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            finish(config)

    monkeypatch.setattr(here, "say", say)
    assert here.train(configs_of(tmp_path / "out", seeds=[7]), tmp_path / "log.txt", begin_slowly) == []
    assert lines == ["run 1 of 2: grpo-s7", "run 2 of 2: soup-s7"]


def test_what_has_finished_is_not_trained_again(tmp_path):
    configs = configs_of(tmp_path)
    finish(configs["soup-s0"])
    here.train(configs, tmp_path / "log.txt", begin)
    assert order(tmp_path) == ["grpo-s0", "grpo-s1", "soup-s1"]
    here.train(configs, tmp_path / "log.txt", lambda stack: pytest.fail("trained again"))


def test_a_run_that_fails_is_left_out_and_the_others_go_on(tmp_path, capsys):
    configs = configs_of(tmp_path, grpo=(), bad=["+trainer.fails=true"], soup=())
    for config in configs.values():
        config.trainer.fails = config.trainer.experiment_name.startswith("bad")
    assert here.train(configs, tmp_path / "log.txt", begin) == ["bad-s0", "bad-s1"]
    assert order(tmp_path) == ["grpo-s0", "soup-s0", "grpo-s1", "soup-s1"]
    assert "sweep: bad-s0 failed: DiskFull: no room\n" in capsys.readouterr().err


def test_a_run_that_dies_without_a_word_is_the_first_that_is_left(tmp_path, capsys):
    configs = configs_of(tmp_path)
    stale = Path(configs["grpo-s1"].trainer.default_local_dir) / run.ERROR_FILE
    stale.parent.mkdir()
    stale.write_text("ValueError: of an earlier call\n")

    def dies(stack):
        if stack[0].trainer.experiment_name == "soup-s0":
            os.kill(os.getpid(), signal.SIGKILL)
        begin(stack[:1])
        if stack[0].trainer.experiment_name == "grpo-s0":
            os.kill(os.getpid(), signal.SIGKILL)

    assert here.train(configs, tmp_path / "log.txt", dies) == ["soup-s0", "soup-s1"]
    assert "sweep: soup-s0 failed (its process ended by signal 9): not begun" in capsys.readouterr().err


def test_a_run_that_does_not_move_on_is_ended_with_its_stacks_and_the_others_go_on(tmp_path, capsys):
    """It hangs in its second step, behind a run that shares its processes."""
    configs = configs_of(tmp_path, seeds=[0], grpo=(), bad=["soup.stall_minutes.rollout=0.02"], soup=())
    (tmp_path / "bad-s0").mkdir()
    stalls.Progress(tmp_path / "bad-s0").enter(stalls.Place("rollout", "rollout", 1))

    def hangs(stack):
        for config in stack:
            if config.trainer.experiment_name == "bad-s0":
                folder = Path(config.trainer.default_local_dir)
                assert stalls.read(folder) is None  # of an earlier call there was one
                stalls.Progress(folder).enter(stalls.Place("rollout", "rollout", 2, waiting=3))
                time.sleep(600)
            begin([config])

    assert here.train(configs, tmp_path / "log.txt", hangs) == ["bad-s0"]
    assert order(tmp_path) == ["grpo-s0", "soup-s0"]
    folder = tmp_path / "bad-s0"
    stalled = "no progress in the rollout of step 2 (3 prompts wait for responses) for 0.02 minutes"
    assert f"bad-s0 failed: RunStalled: {stalled} (soup.stall_minutes.rollout); the stacks" in capsys.readouterr().err
    assert "in hangs" in (folder / "stacks.1.txt").read_text()


def test_a_series_that_ends_without_finishing_ends_the_sweep_too(tmp_path):
    assert here.train(configs_of(tmp_path), tmp_path / "log.txt", lambda stack: None) == [
        "grpo-s0",
        "soup-s0",
        "grpo-s1",
        "soup-s1",
    ]


def test_runs_share_processes_only_in_a_row(tmp_path):
    """a and b share, other does not: seed by seed all the same."""
    configs = configs_of(tmp_path, a=(), b=(), other=OTHER_PROCESSES)
    assert list(here.in_a_row(configs)) == ["a-s0", "b-s0"]
    here.train(configs, tmp_path / "log.txt", begin)
    assert order(tmp_path) == ["a-s0", "b-s0", "other-s0", "a-s1", "b-s1", "other-s1"]


def test_two_sweeps_in_one_folder_are_refused_and_one_after_the_other_are_not(tmp_path):
    with here.alone(tmp_path / "out"):
        with pytest.raises(SweepError, match="out: a sweep is under way there"), here.alone(tmp_path / "out"):
            pass
    with here.alone(tmp_path / "out"):
        pass


def test_the_check_names_the_run_and_leaves_out_what_has_finished(tmp_path, monkeypatch):
    configs = configs_of(tmp_path)
    finish(configs["grpo-s0"])
    looked_at = []

    def check(config):
        looked_at.append(config.trainer.experiment_name)
        if len(looked_at) == 2:
            raise ValueError("data.train_files='x': expected a file that exists.")

    monkeypatch.setattr(run, "check", check)
    with pytest.raises(SweepError, match="^grpo-s1: data.train_files='x': expected a file that exists.$"):
        here.check(configs)
    assert looked_at == ["soup-s0", "grpo-s1"] and not (tmp_path / "soup-s0" / FINISHED).exists()
