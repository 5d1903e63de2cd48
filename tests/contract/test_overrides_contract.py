"""What we override in verl, what it calls ours with, and the names it finds ours by. A failure here means: read verl's
change, adapt the override, then the list."""

import inspect

import pytest
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import MAGIC_ATTR, Dispatch
from verl.trainer import main_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.config import validate_config
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from soup_verl.launch.task_runner import SoupTaskRunner
from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.cpu import training
from soup_verl.stack.down_sampling import DownSampling
from soup_verl.stack.dynamic_sampling import NotingReplayBuffer
from soup_verl.stack.failures import ExplainedFailures
from soup_verl.stack.history_checkpoints import HistoryCheckpoints
from soup_verl.stack.inflight_trainer import InflightStages, SoupColocateAsyncTrainer, SoupSeparateAsyncTrainer
from soup_verl.stack.keeping_worker import KeepingActorWorker
from soup_verl.stack.trainer import SoupStages
from soup_verl.stack.validation import ExplainedValidation
from tests.contract import verl_trainer

pytestmark = pytest.mark.contract

BARE_TASK_RUNNER = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


def overrides(ours, verls):
    """Names that `ours` defines and `verls` has, less what every class has."""
    return {n for n, v in vars(ours).items() if n in dir(verls) and not hasattr(object, n) and inspect.isfunction(v)}


OVERRIDES = [
    (
        SoupStages,
        PPOTrainerSync,
        "_setup _init_dataloader _init_resource_pool_mgr on_train_begin step _next_train_batch "
        "_submit_batch_to_rollout on_sample_end _balance_batch _compute_advantage _update_actor on_step_end "
        "_consume_sync_metrics _build_replay_buffer",
    ),
    (DownSampling, PPOTrainerSync, ""),
    (ExplainedValidation, PPOTrainerSync, "_validate _val_metrics_update"),
    (HistoryCheckpoints, PPOTrainerSync, "_save_checkpoint _load_checkpoint"),
    (ExplainedFailures, PPOTrainerSync, ""),
    (NotingReplayBuffer, ReplayBuffer, "_clear_groups"),
    (InflightStages, PPOTrainerColocateAsync, "_balance_batch"),
    (SoupColocateAsyncTrainer, PPOTrainerColocateAsync, "get_llm_client"),
    (SoupSeparateAsyncTrainer, PPOTrainerSeparateAsync, "get_llm_client"),
    (training.CpuTrainer, PPOTrainerSync, "_build_replay_buffer _init_resource_pool_mgr"),
    (SoupActorWorker, DetachActorWorker, "init_model"),
    (
        KeepingActorWorker,
        DetachActorWorker,
        "init_model save_model_to_cpu restore_model_from_cpu update_weights compute_log_prob",
    ),
    (training._CpuEngine, FSDPEngineWithLMHead, "_build_fsdp_module"),
    (training.CpuValueModelEngine, FSDPEngineWithValueHead, "_build_module"),
    (SoupTaskRunner, BARE_TASK_RUNNER, "run init_agent_loop_manager"),
]


@pytest.mark.parametrize(("ours", "verls", "names"), OVERRIDES, ids=[o.__name__ for o, _, _ in OVERRIDES])
def test_we_override_these_methods_of_verl_and_no_other_by_accident(ours, verls, names):
    assert overrides(ours, verls) == set(names.split())


@pytest.mark.parametrize(("ours", "verls", "names"), OVERRIDES, ids=[o.__name__ for o, _, _ in OVERRIDES])
def test_our_overrides_take_every_argument_verl_may_pass(ours, verls, names):
    for name in names.split():
        expected = inspect.signature(getattr(verls, name)).parameters.values()
        positional = [p.name for p in expected if p.kind is p.POSITIONAL_OR_KEYWORD]
        signature = inspect.signature(getattr(ours, name))
        signature.bind(*positional)
        if positional[:1] == ["self"]:
            signature.bind(None, **dict.fromkeys(positional[1:]))


@pytest.mark.parametrize(
    "name",
    [
        *("save_model_to_cpu", "restore_model_from_cpu", "clear_cpu_model", "keep_policy", "drop_policy", "kept_bytes"),
        *("hold_policy", "write_kept_policies", "read_kept_policies", "update_weights"),
    ],
)
def test_every_rank_takes_part_in_keeping_policies(name):
    assert getattr(getattr(SoupActorWorker, name), MAGIC_ATTR)["dispatch_mode"] == Dispatch.ONE_TO_ALL


@pytest.mark.parametrize("name", ["sync", "soup", "soup_cpu", "sync_cpu"])
def test_trainers_are_found_by_name(name):
    assert issubclass(get_trainer_cls(name), PPOTrainerSync)


@pytest.mark.parametrize(
    "name", ["colocate_async", "soup_colocate_async", "soup_colocate_async_cpu", "colocate_async_cpu"]
)
def test_asynchronous_trainers_too(name):
    assert issubclass(get_trainer_cls(name), PPOTrainerColocateAsync)


def test_verls_worker_constructors_take_what_ours_pass_on():
    inspect.signature(ActorRolloutRefWorker.__init__).bind(None, "config", "actor", distillation_config=None)
    inspect.signature(TrainingWorker.__init__).bind(None, "config")


def test_verls_own_checks_take_what_we_pass():
    config = verl_trainer.run_of()
    use_critic, use_reference_policy = need_critic(config), need_reference_policy(config)
    assert (use_critic, use_reference_policy) == (False, False)
    inspect.signature(validate_config).bind(config, use_reference_policy=use_reference_policy, use_critic=use_critic)
