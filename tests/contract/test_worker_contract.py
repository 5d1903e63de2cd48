"""What our FSDP worker leans on in verl's: updates that are left out, the loss, and weights that are kept."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers import engine_workers
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss

from soup_verl.stack.actor_worker import SegmentLoss, SoupActorWorker
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract

# ---- updates ----


def engine_with(gradient, clip=1.0):
    """A verl engine of one weight, 0, with a learning rate of 1 and this gradient."""
    engine = FSDPEngine.__new__(FSDPEngine)
    engine.module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(engine.module.weight)
    engine.optimizer = torch.optim.SGD(engine.module.parameters(), lr=1.0)
    engine.optimizer_config, engine._qat_enabled = SimpleNamespace(clip_grad=clip), False
    engine.module.weight.grad = torch.full((1, 1), gradient)
    return engine


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_verls_engine_leaves_out_an_update_that_is_not_finite_and_returns_its_norm(gradient):
    engine = engine_with(gradient)
    assert not np.isfinite(engine.optimizer_step())
    assert engine.module.weight.item() == 0 and engine.module.weight.grad is None


def test_verls_engine_returns_the_norm_before_it_clips():
    engine = engine_with(4.0)
    assert engine.optimizer_step() == 4.0
    assert engine.module.weight.item() == pytest.approx(-1.0)


def test_the_norm_of_the_step_is_a_metric_of_verls_batch():
    engine = engine_with(4.0)
    engine.optimizer_zero_grad = lambda: None
    engine.forward_backward_batch = lambda data, loss, forward_only: {"metrics": {}}
    engine.is_mp_src_rank_with_outputs = lambda: True
    assert engine.train_batch(TensorDict({}, batch_size=0), None)["metrics"] == {"grad_norm": 4.0}


def test_a_mini_batchs_metrics_are_joined_over_the_ranks_by_how_each_is_meant():
    """A sum becomes the mean of the ranks' sums: of all of ours alike, so that their ratios stay what they are."""

    def of_rank(value):
        return [Metric(value=value, aggregation="sum"), Metric(value=value, aggregation="max")]

    sums, largest = (list(parts) for parts in zip(of_rank(1.0), of_rank(3.0), strict=True))
    worker = SimpleNamespace(
        engine=SimpleNamespace(
            get_data_parallel_size=lambda: 1,
            get_data_parallel_rank=lambda: 0,
            train_mode=lambda **_: nullcontext(),
            is_mp_src_rank_with_outputs=lambda: True,
        ),
        profiler=SimpleNamespace(step=lambda: None),
        train_batch=lambda data: tu.get_tensordict(
            {}, {"metrics": {"sums": list(sums), "largest": list(largest), "listed": [[1.0], [2.0]]}}
        ),
    )
    data = TensorDict({"x": torch.zeros(2, 1)}, batch_size=2)
    tu.assign_non_tensor(data, num_mini_batch=2, dataloader_kwargs={"shuffle": False})
    metrics = tu.get(TrainingWorker.train_mini_batch(worker, data), "metrics")
    assert metrics == {"sums": [2.0, 2.0], "largest": [3.0, 3.0], "listed": [1.0, 2.0, 1.0, 2.0]}


def test_a_worker_starts_anew_with_what_its_engine_holds(monkeypatch):
    """`start_anew` leaves no module, and puts the settings of the optimizer there: both are read again."""
    engine = FSDPEngine.__new__(FSDPEngine)
    engine.module = engine.optimizer = engine.lr_scheduler = engine.checkpoint_manager = None
    engine._is_lora = engine._qat_enabled = engine._is_offload_param = engine._is_offload_optimizer = False
    engine.rank, engine.checkpoint_config = 1, None
    engine.engine_config = SimpleNamespace(forward_only=False)
    engine.model_config = SimpleNamespace(get_processor=lambda: None, trust_remote_code=False)
    engine._build_module = lambda: torch.nn.Linear(1, 1)
    engine._build_fsdp_module = lambda module: module
    engine._build_lr_scheduler = lambda optimizer: ("scheduler of", optimizer)
    engine.to = lambda **_: None
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(transformer_impl, "log_gpu_memory_usage", lambda *_, **__: None)
    monkeypatch.setattr(transformer_impl, "FSDPCheckpointManager", lambda **given: given)
    engine.optimizer_config = OmegaConf.create({"optimizer": "SGD", "optimizer_impl": "torch.optim", "lr": 0.5})
    build = "verl.workers.config.optimizer.build_optimizer"
    monkeypatch.setattr(build, lambda parameters, config: torch.optim.SGD(parameters, config.lr))
    TrainingWorker.reset(SimpleNamespace(engine=engine))
    assert engine.optimizer.param_groups[0]["lr"] == 0.5
    assert engine.optimizer.param_groups[0]["params"][0] is engine.module.weight
    assert engine.lr_scheduler == ("scheduler of", engine.optimizer)
    assert engine.checkpoint_manager["model"] is engine.module


# ---- the loss ----


class Inner:
    """In place of the worker inside verl's."""

    def __init__(self, config):
        self.config = config

    def reset(self):
        self.is_reset = True

    def set_loss_fn(self, loss):
        self.loss_fn = loss

    def get_dispatch_collect(self):
        return {}


def worker_of_role_actor(monkeypatch, **settings):
    """verl's worker after its `init_model`, without an engine."""
    monkeypatch.setattr(engine_workers, "aggressive_empty_cache", lambda **_: None)
    monkeypatch.setattr(engine_workers, "CheckpointEngineRegistry", SimpleNamespace(new=lambda *_, **__: None))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    model = SimpleNamespace(get=lambda name, default=None: default)
    worker = ActorRolloutRefWorker.__new__(ActorRolloutRefWorker)
    worker.config = files.configure("actor_rollout_ref.rollout.n=4", **settings).actor_rollout_ref
    real = engine_workers.omega_conf_to_dataclass

    def converted(config, *given, **more):
        return model if config == worker.config.model else real(config, *given, **more)

    monkeypatch.setattr(engine_workers, "omega_conf_to_dataclass", converted)
    worker.role, worker.distillation_enabled, worker._omega_profiler_config = "actor", False, None
    worker.actor_worker_cls, worker.set_dispatch_collect = Inner, lambda **_: None
    worker.init_model()
    return worker, model


MICRO_BATCHES = {
    "actor_rollout_ref__actor__ppo_micro_batch_size_per_gpu": 4,
    "actor_rollout_ref__rollout__log_prob_micro_batch_size_per_gpu": 3,
}


def test_the_actors_loss_is_a_partial_of_its_configuration_that_we_can_wrap(monkeypatch):
    worker, model = worker_of_role_actor(monkeypatch, **MICRO_BATCHES)
    assert worker.loss_fn.func is ppo_loss and worker.actor.loss_fn is worker.loss_fn and worker.actor.is_reset
    config = worker.loss_fn.keywords["config"]
    assert config.model_config is model and config.clip_ratio == worker.config.actor.clip_ratio
    wrapped = SegmentLoss(worker.loss_fn)
    TrainingWorker.set_loss_fn(worker.actor, wrapped)
    assert worker.actor.loss_fn is wrapped


def test_both_losses_take_what_verls_engine_passes():
    inspect.signature(ppo_loss).bind(config=0, model_output=0, data=0, dp_group=0)
    inspect.signature(SegmentLoss.__call__).bind(None, model_output=0, data=0, dp_group=0)


def test_log_probs_are_computed_in_the_micro_batches_whose_size_we_read(monkeypatch):
    worker, _ = worker_of_role_actor(monkeypatch, **MICRO_BATCHES)
    engine = worker.actor.config.engine_config
    assert (engine.micro_batch_size_per_gpu, engine.infer_micro_batch_size_per_gpu) == (4, 3)
    other = "actor_rollout_ref__rollout__log_prob_use_dynamic_bsz"
    with pytest.raises(AssertionError):  # verl's: both dynamic, or neither
        worker_of_role_actor(monkeypatch, **{other: not worker.config.actor.use_dynamic_bsz}, **MICRO_BATCHES)


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
