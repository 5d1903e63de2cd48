"""What SoupTrainer, its workers and its task runner lean on in verl. A failure here means: read verl's change, adapt
the override, then this list. Behaviour is tried where that needs no cluster; source text is read where it would."""

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.checkpoint_engine import CheckpointEngineManager
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.plugin.platform import PlatformBase
from verl.single_controller.base.decorator import MAGIC_ATTR, Dispatch
from verl.trainer import main_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.config import validate_config
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead, FSDPEngineWithValueHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss

from soup_verl.actor_worker import SegmentLoss, SoupActorWorker
from soup_verl.cpu import training
from soup_verl.cpu.platform import PlatformCPU
from soup_verl.prompt_stream import ReadAheadLoader
from soup_verl.task_runner import SoupTaskRunner
from soup_verl.trainer import SoupTrainer

pytestmark = pytest.mark.contract

BARE_TASK_RUNNER = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


def overrides(ours, verls):
    """Names that `ours` defines and `verls` has, less what every class has."""
    return {n for n, v in vars(ours).items() if n in dir(verls) and not hasattr(object, n) and inspect.isfunction(v)}


def in_order(function, *texts):
    """Whether the source of `function` has these texts in this order."""
    source, at = inspect.getsource(function), -1
    for text in texts:
        at = source.find(text, at + 1)
        if at < 0:
            return False
    return True


OVERRIDES = [
    (
        SoupTrainer,
        PPOTrainerSync,
        "_init_dataloader _init_resource_pool_mgr on_train_begin step _validate _val_metrics_update _next_train_batch "
        "_submit_batch_to_rollout on_sample_end _balance_batch _compute_advantage _update_actor on_step_end "
        "_save_checkpoint _load_checkpoint",
    ),
    (training.CpuTrainer, PPOTrainerSync, "_build_replay_buffer _init_resource_pool_mgr"),
    (SoupActorWorker, DetachActorWorker, "init_model save_model_to_cpu restore_model_from_cpu"),
    (training._CpuEngine, FSDPEngineWithLMHead, "_build_fsdp_module"),
    (training.CpuValueModelEngine, FSDPEngineWithValueHead, "_build_module"),
    (SoupTaskRunner, BARE_TASK_RUNNER, "run"),
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
    "attribute",
    [
        "config",
        "global_steps",
        "train_dataloader",
        "total_training_steps",
        "steps_per_epoch",
        "role_worker_mapping",
        "actor_rollout_wg",
        "checkpoint_manager",
        "agent_loop_manager",
        "replay_buffer",
        "timing_raw",
    ],
)
def test_verls_trainer_sets_the_attributes_we_read(attribute):
    assert f"self.{attribute} = " in inspect.getsource(PPOTrainer) or f"self.{attribute}: " in inspect.getsource(
        PPOTrainer
    )


def test_verls_engine_leaves_out_an_update_that_is_not_finite_and_returns_its_norm():
    assert in_order(
        FSDPEngine.optimizer_step,
        "if not torch.isfinite(grad_norm):",
        "self.optimizer.zero_grad()",
        "self.optimizer.step()",
        "return grad_norm.item()",
    )
    assert "self.optimizer_step()" in inspect.getsource(FSDPEngine.__mro__[1])


# ---- order of events ----


def test_a_run_begins_counts_steps_saves_and_ends_steps_in_the_order_we_expect():
    assert in_order(
        PPOTrainer.fit,
        "self.agent_loop_manager = agent_loop_manager",
        "self.global_steps += 1",
        "self.on_train_begin()",
        "self.step(metrics, self.timing_raw)",
        "self._save_checkpoint()",
        "self.on_step_end()",
        "self._validate()",
    )
    assert in_order(PPOTrainer.step, "self.prepare_step()", "self._step_once(")
    assert in_order(
        PPOTrainer._step_once,
        "self.replay_buffer.sample(",
        "self.on_sample_end()",
        "self._balance_batch(batch, metrics=metrics)",
        "self._compute_old_log_prob(batch, metrics=metrics)",
        "self._compute_advantage(batch, metrics=metrics)",
        "self._update_actor(batch, metrics=metrics)",
    )
    assert in_order(PPOTrainer._add_batch_to_generate, "self._next_train_batch()", "self._submit_batch_to_rollout(")
    assert in_order(PPOTrainer._setup, "self._init_dataloader()", "self._init_resource_pool_mgr()")


def test_the_synchronous_trainer_sleeps_after_sampling_and_syncs_at_both_ends():
    assert in_order(PPOTrainerSync.on_sample_end, "self.checkpoint_manager.sleep_replicas()")
    for hook in (PPOTrainerSync.on_init_end, PPOTrainerSync.on_step_end):
        assert in_order(hook, "self.checkpoint_manager.update_weights(self.global_steps)")


def test_the_checkpoint_manager_takes_a_version_and_can_sleep():
    inspect.signature(CheckpointEngineManager.update_weights).bind(None, 3)
    inspect.signature(CheckpointEngineManager.sleep_replicas).bind(None)


@pytest.mark.parametrize(
    "function",
    [
        PPOTrainer._build_replay_buffer,
        PPOTrainer._init_dataloader,
        PPOTrainer._load_checkpoint,
        PPOTrainer._save_checkpoint,
        PPOTrainer._reissue_inflight_prompts,
        PPOTrainer._submit_batch_to_rollout,
    ],
    ids=lambda f: f.__name__,
)
def test_verl_still_compares_the_trainers_mode_with_sync(function):
    """Our trainers are called `soup` and `soup_cpu`, and tell verl `sync` for this reason alone."""
    source = inspect.getsource(function)
    assert 'self.trainer_mode == "sync"' in source or 'self.trainer_mode != "sync"' in source


def test_the_trainers_mode_is_read_in_the_constructor_from_the_key_we_set():
    assert in_order(PPOTrainer.__init__, "self.trainer_mode = self.config.trainer.v1.trainer_mode")


# ---- prompts ----


class Prompts:
    """Three batches of two prompts an epoch."""

    def __iter__(self):
        return iter({"raw_prompt": np.array([f"{i}a", f"{i}b"], dtype=object)} for i in range(3))

    def __len__(self):
        return 3

    def state_dict(self):
        return {}


def verl_trainer(loader, **data):
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.config = OmegaConf.create({"data": {"train_batch_size": 2, **data}})
    trainer.train_dataloader, trainer.train_dataloader_it, trainer.global_steps = loader, None, 7
    return trainer


def raw_prompts(batch):
    return [item.data if hasattr(item, "data") else item for item in batch["raw_prompt"]]


@pytest.mark.parametrize("loader", [Prompts, lambda: ReadAheadLoader(Prompts())], ids=["verl's", "ours"])
def test_verl_takes_batches_from_either_loader_epoch_after_epoch(loader):
    trainer = verl_trainer(loader())
    batches = [trainer._next_train_batch(None) for _ in range(5)]
    assert [raw_prompts(b)[0] for b in batches] == ["0a", "1a", "2a", "0a", "1a"]
    assert batches[0]["global_steps"] == 7
    assert len({uid for b in batches for uid in b["uid"]}) == 10


def test_verl_joins_as_many_fetches_as_a_batch_needs():
    trainer = verl_trainer(ReadAheadLoader(Prompts()), train_batch_size=4, gen_batch_size=2)
    assert raw_prompts(trainer._next_train_batch()) == ["0a", "0b", "1a", "1b"]
    trainer._fetch_one_gen_batch = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer._next_train_batch()


def test_verl_asks_nothing_else_of_its_train_loader():
    uses = [line.strip() for line in inspect.getsource(PPOTrainer).splitlines() if "self.train_dataloader" in line]
    uses = [u for u in uses if "train_dataloader_it" not in u or "iter(" in u]
    allowed = ("= StatefulDataLoader(", ".load_state_dict(", ".state_dict()", "iter(self.train_dataloader)")
    assert uses and all(any(a in use for a in allowed) for use in uses)


# ---- checkpoints ----


def test_verls_checkpoint_files_are_where_we_look():
    assert in_order(PPOTrainer._save_checkpoint, "default_local_dir", 'f"global_step_{self.global_steps}"')
    assert in_order(PPOTrainer._save_checkpoint, '.get("async_save", False)', "latest_checkpointed_iteration.txt")


def test_verl_resumes_from_exactly_the_path_it_is_given_or_not_at_all():
    trainer = verl_trainer(None)
    trainer.config.trainer = {"resume_mode": "disable"}
    trainer._load_checkpoint()
    assert trainer.global_steps == 0
    assert in_order(PPOTrainer._load_checkpoint, '"resume_path"', "self.config.trainer.resume_from_path")


# ---- registration and start ----


@pytest.mark.parametrize("name", ["sync", "soup", "soup_cpu", "sync_cpu"])
def test_trainers_are_found_by_name(name):
    assert issubclass(get_trainer_cls(name), PPOTrainerSync)


def test_verl_runs_the_task_runner_it_is_given_with_the_registered_trainer():
    inspect.signature(main_ppo.run_ppo).bind("config", task_runner_class="class")
    assert in_order(
        BARE_TASK_RUNNER.run, "get_trainer_cls(config.trainer.v1.trainer_mode)", "trainer_cls(config=config)"
    )
    assert in_order(BARE_TASK_RUNNER.init_agent_loop_manager, "agent_loop_manager_class", ".create(")


def test_verls_own_checks_take_what_we_pass():
    inspect.signature(validate_config).bind("config", use_reference_policy=False, use_critic=False)
    for function in (need_critic, need_reference_policy):
        inspect.signature(function).bind("config")


# ---- workers ----


def test_the_actor_role_runs_a_class_we_can_replace_and_its_loss_a_partial_we_can_wrap():
    assert issubclass(SoupActorWorker, ActorRolloutRefWorker)
    assert in_order(PPOTrainer._init_resource_pool_mgr, "ray.remote(ActorRolloutRefWorker)")
    assert in_order(
        ActorRolloutRefWorker.init_model, "partial(ppo_loss, config=actor_config)", "set_loss_fn(self.loss_fn)"
    )
    inspect.signature(ppo_loss).bind(config=0, model_output=0, data=0, dp_group=0)
    inspect.signature(SegmentLoss.__call__).bind(None, model_output=0, data=0, dp_group=0)
    assert "self.loss_fn = loss_fn" in inspect.getsource(TrainingWorker.set_loss_fn)


@pytest.mark.parametrize(
    "name",
    ["save_model_to_cpu", "restore_model_from_cpu", "clear_cpu_model", "write_kept_policies", "read_kept_policies"],
)
def test_every_rank_takes_part_in_keeping_policies(name):
    assert getattr(getattr(SoupActorWorker, name), MAGIC_ATTR)["dispatch_mode"] == Dispatch.ONE_TO_ALL


def test_verls_worker_constructors_take_what_ours_pass_on():
    inspect.signature(ActorRolloutRefWorker.__init__).bind(None, "config", "actor", distillation_config=None)
    assert list(inspect.signature(TrainingWorker.__init__).parameters) == ["self", "config"]


# ---- the CPU platform ----


def test_the_cpu_platform_leaves_nothing_of_verls_interface_out():
    assert not PlatformCPU.__abstractmethods__
    for name in PlatformBase.__abstractmethods__:
        verls, ours = getattr(PlatformBase, name), getattr(PlatformCPU, name)
        if inspect.isfunction(verls):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(verls).parameters), name


def test_verl_asks_torch_for_a_backend_that_it_refuses_on_a_cpu_and_leaves_an_existing_group_alone():
    from verl.utils import distributed

    function = distributed.initialize_global_process_group_ray
    assert 'f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in inspect.getsource(function)
    assert in_order(function, "if not torch.distributed.is_initialized():", "init_process_group(")


def test_what_the_cpu_engines_patch_is_what_verl_looks_up_when_it_builds():
    from torch.distributed.fsdp import _init_utils
    from verl.utils.model import load_valuehead_model
    from verl.workers.engine.fsdp import transformer_impl

    assert callable(_init_utils._check_module_states_for_sync_module_states)
    assert callable(transformer_impl.CPUOffloadPolicy)
    build = FSDPEngineWithLMHead._build_fsdp_module
    assert in_order(build, "from torch.distributed.fsdp import CPUOffload", "CPUOffload(", "CPUOffloadPolicy(")
    assert "_uses_fsdp2_cpu_offload_policy" in inspect.getsource(transformer_impl.FSDPEngine)
    assert in_order(
        FSDPEngineWithValueHead._build_module,
        "from verl.utils.model import load_valuehead_model",
        "load_valuehead_model(",
    )
    expected = list(inspect.signature(load_valuehead_model).parameters)
    assert list(inspect.signature(training._load_value_model_with_sdpa).parameters) == expected


def test_the_replay_buffer_naps_as_long_as_we_say():
    assert "time.sleep(self.poll_interval)" in inspect.getsource(ReplayBuffer)


def test_every_worker_class_has_a_cpu_counterpart():
    import ray

    for worker_class in (ActorRolloutRefWorker, SoupActorWorker, TrainingWorker):
        plain = training.on_cpu(ray.remote(worker_class)).__ray_metadata__.modified_class.__ray_actor_class__
        assert issubclass(plain, worker_class) and plain is not worker_class


@pytest.mark.e2e  # a process of its own that imports verl
def test_a_gpu_run_never_imports_the_cpu_package():
    code = (
        "import sys, soup_verl.register, soup_verl.run, soup_verl.task_runner, soup_verl.trainer\n"
        "print([name for name in sys.modules if name.startswith('soup_verl.cpu')])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr[-2000:]


# ---- keeping weights ----


@pytest.fixture
def one_rank_group(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model_of(strategy):
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    if strategy == "fsdp2":
        torch.distributed.fsdp.fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    return module


def values(module):
    weight = module.weight
    return (weight.to_local() if hasattr(weight, "to_local") else weight).detach().flatten().tolist()


def worker_of(cls, module, strategy):
    worker = cls.__new__(cls)
    worker._strategy_handlers = None
    worker.config = OmegaConf.create({"actor": {"strategy": strategy}})
    worker.actor = SimpleNamespace(engine=SimpleNamespace(module=module))
    worker.cpu_saved_models = {}
    return worker


def test_verls_fsdp2_helper_still_hands_back_the_live_weights_on_a_cpu(one_rank_group):
    """A reason for our own `save_model_to_cpu`; the others are in test_kept_weights_contract.py."""
    module = model_of("fsdp2")
    worker = worker_of(DetachActorWorker, module, "fsdp2")
    worker.save_model_to_cpu(1)
    shards, spec = worker.cpu_saved_models[1]
    assert set(shards) == {"weight"} and shards["weight"][1] is not None and spec is not None
    assert shards["weight"][0].data_ptr() == module.weight.to_local().data_ptr()


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_a_kept_policy_stays_as_it_was_and_can_be_taken_back(one_rank_group, strategy):
    module = model_of(strategy)
    worker = worker_of(SoupActorWorker, module, strategy)
    worker.save_model_to_cpu(1)
    with torch.no_grad():
        module.weight.add_(1.0)
    worker.save_model_to_cpu("current")
    assert values(module) == [2, 2]
    worker.restore_model_from_cpu(1)
    assert values(module) == [1, 1]
    with torch.no_grad():
        module.weight.add_(5.0)  # training goes on: the kept policy must not follow
    worker.restore_model_from_cpu("current")
    assert values(module) == [2, 2]
    worker.restore_model_from_cpu(1)
    assert values(module) == [1, 1]
    worker.clear_cpu_model(1)
    assert list(worker.cpu_saved_models) == ["current"]


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_a_kept_policy_survives_on_disk_in_verls_format(one_rank_group, tmp_path, monkeypatch, strategy):
    monkeypatch.setattr(SoupActorWorker, "rank", 0)
    monkeypatch.setattr(SoupActorWorker, "world_size", 1)
    first = worker_of(SoupActorWorker, model_of(strategy), strategy)
    first.save_model_to_cpu(3)
    first.write_kept_policies(str(tmp_path), [3])
    module = model_of(strategy)
    with torch.no_grad():
        module.weight.fill_(9.0)
    second = worker_of(SoupActorWorker, module, strategy)
    second.read_kept_policies(str(tmp_path), [3])
    assert values(module) == [9, 9]
    second.restore_model_from_cpu(3)
    assert values(module) == [1, 1]
