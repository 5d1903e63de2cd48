"""What a series leans on in verl. A failure means that verl sets up or runs a trainer in another way: adapt it."""

import inspect
import re
from types import SimpleNamespace

import pytest
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.trainer import main_ppo
from verl.trainer.ppo.v1 import PPOTrainer
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from soup_verl import run, series
from soup_verl.actor_worker import SoupActorWorker
from soup_verl.rollout import SoupAgentLoopManager, SoupAgentLoopWorker

pytestmark = pytest.mark.contract
TASK_RUNNER = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


def names_set(function):
    """`self.NAME = ` and `self.NAME: TYPE = ` in its source."""
    return set(re.findall(r"^ +self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(function), re.MULTILINE))


def test_a_trainer_is_set_up_with_nothing_that_a_series_forgets():
    """Loaders and the dump executor are made anew; the rest belongs to the processes, or only serves to start them."""
    only_to_start = {"resource_pool_to_cls", "actor_rollout_wg", "critic_wg"}
    assert names_set(PPOTrainer._setup) - only_to_start <= set(series._OF_THE_PROCESSES)
    assert set(series._OF_THE_PROCESSES) <= names_set(PPOTrainer._setup) | names_set(PPOTrainer._init_resource_pool_mgr)


def test_the_stages_of_set_up_that_a_series_repeats():
    source = inspect.getsource(PPOTrainer._setup)
    places = [
        source.index(call)
        for call in (
            "self._init_tokenizer()",
            "self._init_dataloader()",
            "self._init_dump_executor()",
            "self.actor_rollout_wg.init_model()",
            "self.checkpoint_manager.sleep_replicas()",
            "self._load_checkpoint()",
        )
    ]
    assert places == sorted(places)
    assert [line.strip() for line in inspect.getsource(PPOTrainer.init).splitlines()[-2:]] == [
        "self._setup()",
        "self.on_init_end()",
    ]


def test_the_task_runner_fits_what_init_agent_loop_manager_leaves_as_its_trainer():
    source = inspect.getsource(TASK_RUNNER.run)
    assert source.index("self.init_agent_loop_manager()") < source.index("self.trainer.fit(self.agent_loop_manager)")
    assert 'getattr(self.trainer, "logger", None)' in source


def test_reset_builds_model_and_optimizer_from_what_the_engine_holds():
    assert "self.engine.initialize()" in inspect.getsource(TrainingWorker.reset)
    assert "self._build_model_optimizer()" in inspect.getsource(FSDPEngine.initialize)
    assert {"module", "optimizer", "lr_scheduler"} <= names_set(FSDPEngine._build_model_optimizer)
    assert "checkpoint_manager" in names_set(FSDPEngine.initialize)
    assert "self.optimizer_config" in inspect.getsource(FSDPEngine._build_optimizer)


def test_the_actors_loss_is_a_partial_of_its_configuration():
    assert "self.loss_fn = partial(ppo_loss, config=actor_config)" in inspect.getsource(
        ActorRolloutRefWorker.init_model
    )
    assert "actor_config.model_config = model_config" in inspect.getsource(ActorRolloutRefWorker.init_model)


@pytest.mark.parametrize(
    ("ours", "verls"), [(SoupAgentLoopManager, AgentLoopManager), (SoupAgentLoopWorker, AgentLoopWorker)]
)
def test_whatever_holds_settings_of_a_run_is_taken_up(ours, verls):
    """verl's constructors keep these; `model_config` and the like must not differ within a series."""
    assert {"config", "rollout_config"} <= names_set(verls.__init__)
    assert {"config", "rollout_config"} <= names_set(ours.take_up)
    assert not hasattr(verls, "take_up")


def test_no_name_of_ours_hides_one_of_verls():
    assert not hasattr(ActorRolloutRefWorker, "start_anew") and hasattr(SoupActorWorker, "start_anew")


def test_a_series_of_one_run_is_a_series_too(monkeypatch):
    """Its run is marked as finished, so that it is not made again."""
    asked = []
    monkeypatch.setattr(run, "_run_ppo", lambda config, task_runner: asked.append(task_runner))
    run.train(None, further=[])
    run.train(None)
    assert [isinstance(task_runner, SimpleNamespace) for task_runner in asked] == [True, False]
