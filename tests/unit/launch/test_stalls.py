import time
from types import SimpleNamespace

import pytest

from soup_verl.launch import stalls
from soup_verl.launch.stalls import Place, Progress, StallWatch, read, report_stages
from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import StallMinutesConfig


class Trainer:
    """As verl's in what is told; `seen` has where the run was when each method ran."""

    def __init__(self, folder):
        self.folder, self.global_steps, self.seen = folder, 3, []
        self.replay_buffer = SimpleNamespace(
            pending_keys={"train": {"a"}}, running_keys={"train": {"b", "c"}}, _wait_for_next_poll=self._poll
        )
        self.checkpoint_manager = SimpleNamespace(
            update_weights=lambda *_: self._note("update_weights"), sleep_replicas=lambda: self._note("sleep_replicas")
        )

    def _note(self, name):
        self.seen.append((name, read(self.folder)))

    def _poll(self, partition, last):
        self._note("poll")
        return last + 1

    def fit(self):
        self.step()
        self._save_checkpoint()
        self.on_step_end()
        self._validate()
        return "fitted"

    def step(self):
        self._note("step")
        assert self.replay_buffer._wait_for_next_poll("train", 7) == 8
        self.checkpoint_manager.sleep_replicas()
        self._balance_batch()

    def _balance_batch(self):
        self._note("_balance_batch")

    def _save_checkpoint(self):
        self._note("_save_checkpoint")

    def on_step_end(self):
        self._note("on_step_end")
        self.checkpoint_manager.update_weights(3)
        self._note("history")

    def _validate(self):
        self._note("_validate")


def test_a_step_tells_every_stage_and_a_weight_sync_goes_back_to_where_it_was(tmp_path):
    trainer = Trainer(tmp_path)
    report_stages(trainer, tmp_path)
    assert read(tmp_path) == Place("set-up", "set_up", 0)
    assert trainer.fit() == "fitted"
    waiting = Place("rollout", "rollout", 3, waiting=3)
    end = Place("end of the step", "rollout", 3)
    assert trainer.seen == [
        ("step", Place("rollout", "rollout", 3)),
        ("poll", waiting),
        ("sleep_replicas", Place("weight sync", "weight_sync", 3)),
        ("_balance_batch", Place("log-probs and update", "update", 3)),
        ("_save_checkpoint", Place("checkpoint", "update", 3)),
        ("on_step_end", end),
        ("update_weights", Place("weight sync", "weight_sync", 3)),
        ("history", end),
        ("_validate", Place("validation", "rollout", 3)),
    ]
    assert read(tmp_path) == Place("end of the run", "set_up", 3)


def test_the_next_run_of_a_series_tells_it_in_its_own_folder_alone(tmp_path):
    """It has the processes of the first, and their manager."""
    folders = [tmp_path / name for name in "ab"]
    trainers = []
    for folder in folders:
        folder.mkdir()
        trainer = Trainer(folder)
        if trainers:
            trainer.checkpoint_manager = trainers[0].checkpoint_manager
        report_stages(trainer, folder)
        trainer.fit()
        trainers.append(trainer)
        if len(trainers) == 1:
            (folder / stalls.FILE).unlink()
    assert read(folders[0]) is None and read(folders[1]) == Place("end of the run", "set_up", 3)


def test_weights_for_engines_in_a_pool_of_their_own_are_told_too(tmp_path):
    trainer = Trainer(tmp_path)
    trainer.standalone_checkpoint_manager, trainer.checkpoint_manager = (
        trainer.checkpoint_manager,
        SimpleNamespace(update_weights=None, sleep_replicas=None),
    )
    report_stages(trainer, tmp_path)
    trainer.standalone_checkpoint_manager.update_weights(3)
    assert trainer.seen == [("update_weights", Place("weight sync", "weight_sync", 3))]
    assert read(tmp_path) == Place("set-up", "set_up", 0)


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(stalls, "write_text", full)
    Progress(tmp_path).enter(Place())


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """(progress, look): `look(minutes)` later, what the watch says; 2 minutes are the limit, 1 for a weight sync."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = StallWatch(tmp_path)
    minutes = StallMinutesConfig(set_up=2, rollout=2, update=None, weight_sync=1)

    def look(later):
        now[0] += later * 60
        return watch.stalled(lambda: minutes)

    look.watch = watch
    return Progress(tmp_path), look


def test_a_stage_without_progress_is_named_with_its_minutes_and_key(watched):
    progress, look = watched
    progress.enter(Place("weight sync", "weight_sync", 5))
    assert look(9) is None  # seen for the first time
    assert look(0.9) is None
    assert look(0.1) == ("no progress in the weight sync of step 5 for 1 minutes (soup.stall_minutes.weight_sync)")


def test_a_prompt_that_is_answered_is_progress(watched):
    progress, look = watched
    for waiting in (3, 2, 1):
        progress.enter(Place("rollout", "rollout", 5, waiting))
        assert look(1.9) is None
    assert "of step 5 (1 prompts wait for responses) for 2 minutes" in look(2)


def test_null_is_no_limit_and_without_a_file_nothing_stalls(watched):
    progress, look = watched
    assert look(100) is None and look(100) is None
    progress.enter(Place("checkpoint", "update", 5))
    assert look(100) is None and look(100) is None


def test_a_step_that_has_begun_is_remembered(watched, tmp_path):
    progress, look = watched
    progress.enter(Place())
    look(0)
    assert not look.watch.stepped
    progress.enter(Place("rollout", "rollout", 1))
    look(0)
    (tmp_path / stalls.FILE).unlink()
    look(0)
    assert look.watch.stepped


@pytest.mark.parametrize("value", [0, -1, float("inf")])
def test_minutes_are_above_0_or_null(value):
    with pytest.raises(ConfigError, match=r"soup.stall_minutes.rollout=.*: expected minutes above 0, or null"):
        SoupConfig.parse({"stall_minutes": {"rollout": value}})
    assert SoupConfig.parse({"stall_minutes": {"rollout": None}}).stall_minutes.rollout is None


def test_restarts_are_a_number():
    with pytest.raises(ConfigError, match="soup.restarts=-1: expected an integer of at least 0"):
        SoupConfig.parse({"restarts": -1})


def test_every_stage_has_a_limit_among_the_settings():
    assert {limit for _, limit in stalls.BEFORE.values()} <= set(vars(StallMinutesConfig()))
