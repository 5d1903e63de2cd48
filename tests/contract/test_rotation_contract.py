"""Which checkpoints stay (`trainer.max_actor_ckpt_to_keep`) around verl's saves: over restarts, and past the best."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from soup_verl.method.observation import History
from soup_verl.method.step import plan_of_run
from soup_verl.stack import checkpoint
from soup_verl.stack.trainer import SoupTrainer
from tests.contract import verl_trainer
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract
METRIC = "val-soup/even/pass@8"
LOADER = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)


class Workers:
    """One rank, whose weights are a file."""

    def load_checkpoint(self, **_):
        pass

    def save_checkpoint(self, path, _remote, _step, max_ckpt_to_keep):
        assert max_ckpt_to_keep is None  # verl removes none
        os.makedirs(path, exist_ok=True)
        (Path(path) / "model.pt").write_text("weights")


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start a run, or start it again; its folder is named as people name it."""
    monkeypatch.chdir(tmp_path)

    def begin(**settings):
        settings = {"trainer__default_local_dir": "run", "soup__mixed_fraction": 0} | settings
        trainer = verl_trainer.new(files.configure(**settings), SoupTrainer)
        plan = plan_of_run(trainer._soup, n=8, response_length=16, last_step=9)
        trainer._history, trainer._settings = History(trainer._soup, plan, source=None), {}
        trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **_: None)
        trainer.train_dataloader, trainer.actor_rollout_wg = LOADER, Workers()
        trainer._load_checkpoint()
        return trainer

    return begin


def saved(trainer, *steps, values=None):
    """The checkpoints that are there after each of these steps, each validated with its value."""
    there = []
    for step in steps:
        trainer.global_steps = step
        trainer._save_checkpoint()
        if values:
            trainer._best.judge({METRIC: values[step]}, step)
        there.append(on_disk(trainer))
    return there


def on_disk(trainer):
    return sorted(int(path.name.rpartition("_")[2]) for path in trainer._root.glob("global_step_*"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_best_stays_beside_the_newest_and_goes_when_another_is_better(start, keep):
    values = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.3, 5: 0.8, 6: 0.1, 7: 0.2, 8: 0.3}
    trainer = start(trainer__max_actor_ckpt_to_keep=keep, soup__keep_best=METRIC)
    left = saved(trainer, *range(1, 9), values=values)
    assert left[3] == {1: [2, 4], 2: [2, 3, 4], 3: [1, 2, 3, 4]}[keep]
    assert left[7] == {1: [5, 8], 2: [5, 7, 8], 3: [5, 6, 7, 8]}[keep]
    assert max(map(len, left)) <= keep + 1
    assert trainer.config.trainer.max_actor_ckpt_to_keep == keep  # as it was asked for
    for name in ("best", "global_step_8"):
        checkpoint.verify(trainer._root / name)


@pytest.mark.parametrize(("keep", "left"), [(1, [2]), (2, [2]), (3, [1, 2])])
def test_while_one_is_written_the_newest_before_it_is_there(start, keep, left):
    """A run that dies within the save goes on from it."""
    trainer = start(trainer__max_actor_ckpt_to_keep=keep)
    saved(trainer, 1, 2)
    trainer._save_history = lambda folder: 1 / 0
    with pytest.raises(checkpoint.CheckpointNotWritten):
        saved(trainer, 3)
    assert on_disk(trainer) == [*left, 3]
    assert start().global_steps == 2


@pytest.mark.parametrize("keep_best", ["null", METRIC])
def test_starts_again_leave_no_more_than_one_start(start, keep_best):
    settings = {"trainer__max_actor_ckpt_to_keep": 2, "soup__keep_best": keep_best}
    values = {1: 0.5} | dict.fromkeys(range(2, 9), 0.1) if keep_best == METRIC else None
    best = [1] if keep_best == METRIC else []
    assert saved(start(**settings), 1, 2, 3, values=values)[-1] == [*best, 2, 3]
    second = start(**settings)
    assert second.global_steps == 3
    assert saved(second, 4, values=values) == [[*best, 3, 4]]
    assert saved(start(**settings), 5, 6, values=values) == [[*best, 4, 5], [*best, 5, 6]]


def test_what_was_written_after_the_step_it_goes_on_from_is_not_counted(start):
    """It is written anew; until then the intact one before it is the newest."""
    saved(start(trainer__max_actor_ckpt_to_keep=3), 2, 4, 6)
    torn = start()._root / "global_step_6" / "actor" / "model.pt"
    torn.write_text("weigh")
    again = start(trainer__max_actor_ckpt_to_keep=2)
    assert again.global_steps == 4
    assert saved(again, 5, 6, 7) == [[4, 5, 6], [5, 6], [6, 7]]


@pytest.mark.parametrize("keep_best", ["null", METRIC])
@pytest.mark.parametrize(
    ("resume", "until"),
    [
        ({"trainer__resume_mode": "disable"}, 0),
        ({"trainer__resume_mode": "resume_path", "trainer__resume_from_path": "run/global_step_4"}, 4),
    ],
)
def test_a_run_that_begins_anew_or_from_another_runs_checkpoint_removes_only_what_it_writes(
    start, keep_best, resume, until
):
    saved(start(), 2, 4)
    saved(start(trainer__default_local_dir="other"), 1, 3)
    settings = {"trainer__max_actor_ckpt_to_keep": 1, "soup__keep_best": keep_best}
    other = start(trainer__default_local_dir="other", **settings, **resume)
    assert other.global_steps == until
    values = {5: 0.1, 6: 0.2, 7: 0.3, 8: 0.1} if keep_best == METRIC else None
    best = [7] if keep_best == METRIC else []
    assert saved(other, 5, 6, 7, 8, values=values)[-1] == [1, 3, *best, 8]
    assert on_disk(start()) == [2, 4]


def test_what_is_left_of_an_abandoned_history_is_neither_counted_nor_gone_on_from(start):
    saved(start(), 2, 4, 6, 8)
    back = {"trainer__resume_mode": "resume_path", "trainer__resume_from_path": "run/global_step_4"}
    assert saved(start(trainer__max_actor_ckpt_to_keep=2, **back), 5) == [[4, 5, 6, 8]]
    again = start(trainer__max_actor_ckpt_to_keep=2)
    assert again.global_steps == 5
    assert saved(again, 7, 8) == [[5, 6, 7, 8], [6, 7, 8]]


def test_what_was_there_before_a_run_that_began_anew_stays_through_its_later_starts(start):
    saved(start(), 1, 2)
    settings = {"trainer__max_actor_ckpt_to_keep": 1}
    assert saved(start(trainer__resume_mode="disable", **settings), 4) == [[1, 2, 4]]
    assert saved(start(**settings), 5, 6) == [[1, 2, 5], [1, 2, 6]]


def test_a_checkpoint_of_an_earlier_version_of_this_project_does_not_say_what_was_written_before_it(start):
    saved(start(), 1, 2)
    state = start()._root / "global_step_2" / "soup" / "state.json"
    manifest = json.loads((state.parent / "manifest.json").read_text())
    state.write_text(
        json.dumps({key: value for key, value in json.loads(state.read_text()).items() if key != "written"})
    )
    manifest["files"]["soup/state.json"] = {"bytes": state.stat().st_size}
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    assert saved(start(trainer__max_actor_ckpt_to_keep=1), 3, 4) == [[1, 3], [1, 4]]


def test_a_step_that_is_written_again_has_no_history_of_before_meanwhile(start):
    saved(start(), 2, 4)
    back = start(trainer__resume_mode="resume_path", trainer__resume_from_path="run/global_step_2")
    back._save_history = lambda folder: 1 / 0
    with pytest.raises(checkpoint.CheckpointNotWritten):
        saved(back, 4)
    with pytest.raises(checkpoint.TornCheckpoint):
        checkpoint.verify(back._root / "global_step_4")


def test_the_folder_of_the_run_may_be_a_link(start, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    saved(start(trainer__max_actor_ckpt_to_keep=1), 1)
    named = {"trainer__resume_mode": "resume_path", "trainer__resume_from_path": "elsewhere/global_step_1"}
    assert saved(start(trainer__max_actor_ckpt_to_keep=1, **named), 2) == [[2]]


def test_a_checkpoint_that_is_there_by_a_link_stays_where_it_is(start, tmp_path):
    saved(start(trainer__default_local_dir="other"), 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "global_step_1").symlink_to("../other/global_step_1")
    saved(start(trainer__max_actor_ckpt_to_keep=1), 2, 3)
    assert saved(start(trainer__max_actor_ckpt_to_keep=1), 4) == [[1, 4]]
    checkpoint.verify(tmp_path / "other" / "global_step_1")


def test_without_a_number_all_stay(start):
    assert saved(start(), 1, 2, 3)[-1] == [1, 2, 3]
