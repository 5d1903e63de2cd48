"""What a series leans on in verl. A failure means that verl sets up or runs a trainer in another way: adapt it."""

from types import SimpleNamespace

import pytest
import ray
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.trainer import main_ppo
from verl.workers.engine_workers import ActorRolloutRefWorker

from soup_verl.launch import task_runner
from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.rollout import SoupAgentLoopManager, SoupAgentLoopWorker
from tests.contract import verl_trainer

pytestmark = pytest.mark.contract
TASK_RUNNER = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


@pytest.mark.parametrize("reference", [False, True])
def test_a_trainer_is_set_up_with_nothing_that_a_series_forgets(monkeypatch, reference):
    """The dump executor is made anew, and the rest belongs to the processes or only serves to start them. The order of
    the stages that a series repeats: test_setup_contract.py."""
    config = verl_trainer.run_of()
    config.actor_rollout_ref.actor.use_kl_loss = reference
    trainer = verl_trainer.new(config)
    before = set(vars(trainer))
    stood_in_for = set(verl_trainer.STOOD_IN_FOR)
    verl_trainer.set_up(monkeypatch, trainer)
    made = set(vars(trainer)) - before - stood_in_for - {"_dump_executor", "_dump_futures"}
    only_to_start = {"mapping", "resource_pool_to_cls", "role_worker_mapping"}
    expected = set(task_runner._OF_THE_PROCESSES) - (set() if reference else {"ref_policy_wg"})
    assert made - only_to_start == expected


def test_whatever_holds_settings_of_a_run_is_taken_up(monkeypatch):
    """verl's constructors keep `config` and `rollout_config`; the rest must not differ within a series."""
    first, second = (verl_trainer.run_of(total_training_steps=steps) for steps in (3, 4))
    assert not hasattr(AgentLoopManager, "take_up") and not hasattr(AgentLoopWorker, "take_up")
    manager = SoupAgentLoopManager(first, None)
    settings = {name for name, value in vars(manager).items() if value is not None and not name.startswith("agent_")}
    assert {"config", "rollout_config", "model_config"} <= settings
    manager.agent_loop_workers = []
    monkeypatch.setattr(ray, "get", list)
    manager.take_up(second)
    assert manager.config is second and manager.rollout_config is second.actor_rollout_ref.rollout
    worker = verl_trainer.agent_loop_worker(monkeypatch, first, SoupAgentLoopWorker)
    assert worker.config is first and worker.rollout_config.n == 4
    second.actor_rollout_ref.rollout.n = 8
    worker.take_up(second)
    assert worker.config is second and worker.rollout_config.n == 8


def test_no_name_of_ours_hides_one_of_verls():
    assert not hasattr(ActorRolloutRefWorker, "start_anew") and hasattr(SoupActorWorker, "start_anew")


def test_a_run_alone_is_a_series_of_one(monkeypatch):
    """It is marked as finished, so that a sweep of jobs does not make it again."""
    monkeypatch.setattr(TASK_RUNNER, "init_agent_loop_manager", lambda self: None)
    monkeypatch.setattr(task_runner, "end_where_the_epochs_do", lambda trainer: None)
    monkeypatch.delenv("SOUP_RUN", raising=False)
    runner = task_runner.SoupTaskRunner()
    runner.trainer = first = SimpleNamespace(logger="its logger")
    runner.init_agent_loop_manager()
    assert isinstance(runner.trainer, task_runner.Series)
    assert runner.trainer.trainer is first and runner.trainer.logger == "its logger"
