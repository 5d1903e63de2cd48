import json

import pytest
from omegaconf import OmegaConf

from soup_verl import series

BASE = {
    "soup": {"mixed_fraction": 0.5, "source": "lookahead"},
    "algorithm": {"adv_estimator": "soup", "use_kl_in_reward": False},
    "data": {"train_files": "a.parquet", "max_response_length": 16},
    "trainer": {"default_local_dir": "runs/a", "total_training_steps": 4, "nnodes": 1},
    "actor_rollout_ref": {
        "actor": {"strategy": "fsdp2", "optim": {"lr": 1e-6}, "clip_ratio_high": 0.2},
        "rollout": {
            "n": 8,
            "temperature": 1.0,
            "trace": {"backend": None},
            "agent": {"agent_loop_manager_class": series.MANAGER},
        },
    },
}


def config(**changes):
    made = OmegaConf.create(BASE)
    for key, value in changes.items():
        OmegaConf.update(made, key, value)
    return made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("soup.source", "replay"),
        ("algorithm.adv_estimator", "grpo"),
        ("data.train_files", "b.parquet"),
        ("trainer.default_local_dir", "runs/b"),
        ("actor_rollout_ref.actor.optim.lr", 1e-5),
        ("actor_rollout_ref.actor.clip_ratio_high", 0.28),
        ("actor_rollout_ref.rollout.n", 4),
    ],
)
def test_processes_are_shared_by_runs_that_differ_in_what_they_can_take_up(key, value):
    assert series.can_share(config(), config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.strategy", "fsdp"),
        ("actor_rollout_ref.rollout.max_model_len", 96),
        ("data.max_response_length", 32),
        ("trainer.nnodes", 2),
        ("algorithm.use_kl_in_reward", True),
    ],
)
def test_other_runs_have_processes_of_their_own(key, value):
    assert not series.can_share(config(), config(**{key: value}))


def test_verls_own_manager_cannot_take_up_another_run():
    own = config(**{"actor_rollout_ref.rollout.agent.agent_loop_manager_class": None})
    assert not series.can_share(own, own)


def test_traces_bear_one_name():
    traced = config(**{"actor_rollout_ref.rollout.trace.backend": "mlflow"})
    assert not series.can_share(traced, traced)


def test_stacks_keep_the_order_and_put_together_what_can_share():
    runs = [config(**{"actor_rollout_ref.actor.strategy": s, "soup.source": f"{i}"}) for i, s in enumerate("aabab")]
    assert [[c.soup.source for c in stack] for stack in series.stacks(runs)] == [["0", "1", "3"], ["2", "4"]]


def test_a_run_is_finished_when_it_made_the_steps_that_are_asked_for(tmp_path):
    run = config(**{"trainer.default_local_dir": str(tmp_path)})
    assert not series.is_finished(run)
    (tmp_path / series.FINISHED).write_text(json.dumps({"steps": 4}))
    assert series.is_finished(run)
    assert not series.is_finished(
        config(**{"trainer.default_local_dir": str(tmp_path), "trainer.total_training_steps": 8})
    )


def test_two_runs_in_one_folder_are_refused():
    with pytest.raises(ValueError, match=r"trainer.default_local_dir='runs/a': expected a folder of its own"):
        series.run_series([config(), config()])


def test_a_finished_series_starts_nothing(tmp_path):
    (tmp_path / series.FINISHED).write_text(json.dumps({"steps": 4}))
    series.run_series([config(**{"trainer.default_local_dir": str(tmp_path)})])


class Trainer:
    """What a Series needs of a trainer; remembers what was asked of it."""

    def __init__(self, folder, asked):
        self.config = config(**{"trainer.default_local_dir": str(folder)})
        self.asked, self.logger = asked, self
        folder.mkdir()

    def fit(self, manager):
        self.asked.append(("fit", self.config.trainer.default_local_dir[-1], manager.config.soup.source))

    def init(self):
        self.asked.append(("init", self.config.trainer.default_local_dir[-1]))

    def finish(self, exit_code):
        self.asked.append(("finish", exit_code))


class Manager:
    def __init__(self):
        self.config = config()

    def take_up(self, config):
        self.config = config


def test_each_run_gets_a_trainer_and_the_manager_its_settings(tmp_path, monkeypatch):
    asked = []
    further = [config(**{"trainer.default_local_dir": str(tmp_path / name), "soup.source": name}) for name in "bc"]
    monkeypatch.setattr(
        series, "on_processes_of", lambda first, c: Trainer(tmp_path / c.trainer.default_local_dir[-1], asked)
    )
    monkeypatch.setattr(series.run_log, "open_in", lambda folder: asked.append(("log", folder.name)))
    all_runs = series.Series(Trainer(tmp_path / "a", asked), further)
    all_runs.fit(Manager())
    assert asked == [
        ("fit", "a", "lookahead"),
        ("finish", 0),
        ("log", "b"),
        ("init", "b"),
        ("fit", "b", "b"),
        ("finish", 0),
        ("log", "c"),
        ("init", "c"),
        ("fit", "c", "c"),
    ]
    assert all(json.loads((tmp_path / name / series.FINISHED).read_text()) == {"steps": 4} for name in "abc")
    assert all_runs.logger.config.trainer.default_local_dir.endswith("c")
