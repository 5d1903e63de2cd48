import json

import pytest
from omegaconf import OmegaConf

from soup_verl.launch import finished, run, series, stacks, task_runner

BASE = {
    "soup": {"mixed_fraction": 0.5, "source": "lookahead"},
    "algorithm": {"adv_estimator": "soup", "use_kl_in_reward": False},
    "data": {"train_files": "a.parquet", "max_response_length": 16},
    "trainer": {
        "default_local_dir": "runs/a",
        "device": "cpu",
        "total_training_steps": 4,
        "total_epochs": 30,
        "nnodes": 1,
        "v1": {"trainer_mode": "soup_cpu"},
    },
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
DONE = {"steps": 4, "asked": {"steps": 4, "epochs": 30}}


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
        ("actor_rollout_ref.rollout.name", "sglang"),  # not taken for `rollout.n`
        ("algorithm.use_kl_in_reward", True),
        ("trainer.v1.trainer_mode", "soup_colocate_async_cpu"),
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


@pytest.mark.parametrize("kind", ["colocate_async", "separate_async"])
def test_an_asynchronous_run_leaves_responses_under_way(kind):
    interrupted = config(**{"trainer.v1.trainer_mode": f"soup_{kind}_cpu"})
    assert not series.can_share(interrupted, interrupted)


def test_stacks_keep_the_order_and_put_together_what_can_share():
    runs = [config(**{"actor_rollout_ref.actor.strategy": s, "soup.source": f"{i}"}) for i, s in enumerate("aabab")]
    assert [[c.soup.source for c in stack] for stack in series.stacks(runs)] == [["0", "1", "3"], ["2", "4"]]


def test_a_run_is_finished_when_it_made_the_steps_that_are_asked_for(tmp_path):
    asked = config(**{"trainer.default_local_dir": str(tmp_path)})
    assert not series.is_finished(asked)
    (tmp_path / finished.FINISHED).write_text(json.dumps(DONE))
    assert series.is_finished(asked)
    assert not series.is_finished(
        config(**{"trainer.default_local_dir": str(tmp_path), "trainer.total_training_steps": 8})
    )


def test_what_an_earlier_version_wrote_still_says_that_a_run_is_finished(tmp_path):
    (tmp_path / finished.FINISHED).write_text(json.dumps(DONE["asked"]))
    assert series.is_finished(config(**{"trainer.default_local_dir": str(tmp_path)}))


def test_a_run_whose_epochs_end_first_has_their_last_step_for_its_own_and_claims_no_other(tmp_path):
    """3 batches, one epoch, 10 steps asked for: verl would save and validate at step 10 alone."""
    trainer = Trainer(tmp_path / "made", [])
    trainer.config.trainer.update({"total_epochs": 1, "total_training_steps": 10})
    trainer.total_training_steps = 10
    finished.end_where_the_epochs_do(trainer)
    assert trainer.total_training_steps == 3
    task_runner.Series(trainer, []).fit(Manager())
    said = json.loads((tmp_path / "made" / finished.FINISHED).read_text())
    assert said == {"steps": 3, "asked": {"steps": 10, "epochs": 1}} and series.is_finished(trainer.config)
    trainer.config.trainer.total_epochs = 2
    assert not series.is_finished(trainer.config)  # three more steps to make


def test_a_run_that_only_validates_has_made_no_step(tmp_path):
    trainer = Trainer(tmp_path / "made", [])
    trainer.config.trainer.val_only = True
    finished.mark_finished(trainer)
    assert json.loads((tmp_path / "made" / finished.FINISHED).read_text())["steps"] == 0


def test_without_a_number_of_steps_the_epochs_say_whether_a_run_is_finished(tmp_path):
    ten, twenty = (
        config(
            **{
                "trainer.default_local_dir": str(tmp_path),
                "trainer.total_training_steps": None,
                "trainer.total_epochs": epochs,
            }
        )
        for epochs in (10, 20)
    )
    trainer = Trainer(tmp_path / "made", [])
    trainer.config = ten
    task_runner.Series(trainer, []).fit(Manager())
    assert series.is_finished(ten) and not series.is_finished(twenty)


def refused(runs, monkeypatch):
    """What a series says that is refused before any run is looked at."""
    monkeypatch.setattr(run, "prepare", lambda config: pytest.fail("a run was looked at"))
    with pytest.raises(SystemExit) as caught:
        series.run_series(runs)
    return caught.value.code


def test_two_runs_in_one_folder_are_refused(monkeypatch):
    assert refused([config(), config()], monkeypatch) == (
        "error: ConfigError: trainer.default_local_dir='runs/a': expected a folder of its own for every run."
    )


def test_runs_of_two_platforms_are_refused_by_the_folder_of_the_first_that_differs(monkeypatch):
    folders = {"runs/a": "cpu", "runs/b": "cpu", "runs/c": "cuda"}
    runs = [config(**{"trainer.default_local_dir": f, "trainer.device": d}) for f, d in folders.items()]
    assert refused(runs, monkeypatch) == (
        "error: ConfigError: trainer.device='cuda': expected 'cpu' in 'runs/c', as in 'runs/a': the runs of a series "
        "have one platform. Start a series for each."
    )


def test_a_series_that_is_to_start_again_by_itself_is_refused(monkeypatch):
    assert refused([config(**{"soup.restarts": 3})], monkeypatch) == (
        "error: ConfigError: soup.restarts=3: expected 0 in a series, which nothing supervises. Start the same command "
        "again: it goes on where it was."
    )


def test_a_finished_series_starts_nothing(tmp_path):
    (tmp_path / finished.FINISHED).write_text(json.dumps(DONE))
    series.run_series([config(**{"trainer.default_local_dir": str(tmp_path)})])


class Trainer:
    """What a Series needs of a trainer; remembers what was asked of it."""

    def __init__(self, folder, asked):
        self.config = config(**{"trainer.default_local_dir": str(folder)})
        self.asked, self.logger = asked, self
        self.steps_per_epoch, self.total_training_steps, self.global_steps = 3, 4, 0
        folder.mkdir()

    def fit(self, manager):
        self.asked.append(("fit", self.config.trainer.default_local_dir[-1], manager.config.soup.source))
        self.global_steps = self.total_training_steps + 1  # as verl leaves it

    def init(self):
        self.asked.append(("init", self.config.trainer.default_local_dir[-1]))

    def finish(self, exit_code):
        self.asked.append(("finish", exit_code))


class Manager:
    def __init__(self):
        self.config = config()

    def take_up(self, config):
        self.config = config


@pytest.mark.parametrize("looked_after", [False, True])
def test_each_run_tells_its_stages_in_its_own_folder_where_somebody_looks(tmp_path, monkeypatch, looked_after):
    if looked_after:
        monkeypatch.setenv(stacks.RUN, "mark")
    told = []
    monkeypatch.setattr(task_runner.stalls, "report_stages", lambda trainer, folder: told.append(folder))
    monkeypatch.setattr(task_runner, "on_processes_of", lambda first, c: Trainer(tmp_path / "b", []))
    monkeypatch.setattr(task_runner.run_log, "open_in", lambda folder: None)
    further = [config(**{"trainer.default_local_dir": str(tmp_path / "b")})]
    task_runner.Series(Trainer(tmp_path / "a", []), further).fit(Manager())
    assert told == ([tmp_path / "a", tmp_path / "b"] if looked_after else [])


def test_each_run_gets_a_trainer_and_the_manager_its_settings(tmp_path, monkeypatch):
    asked = []
    further = [config(**{"trainer.default_local_dir": str(tmp_path / name), "soup.source": name}) for name in "bc"]
    monkeypatch.setattr(
        task_runner, "on_processes_of", lambda first, c: Trainer(tmp_path / c.trainer.default_local_dir[-1], asked)
    )
    monkeypatch.setattr(task_runner.run_log, "open_in", lambda folder: asked.append(("log", folder.name)))
    all_runs = task_runner.Series(Trainer(tmp_path / "a", asked), further)
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
    assert all(json.loads((tmp_path / name / finished.FINISHED).read_text()) == DONE for name in "abc")
    assert all_runs.logger.config.trainer.default_local_dir.endswith("c")
