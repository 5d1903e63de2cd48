"""What separate_async leans on in verl: its checkpoint engines, the manager that drives them, its trainer, and replicas
in a pool of their own."""

import asyncio
import inspect
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from verl.checkpoint_engine import (
    CheckpointEngine,
    CheckpointEngineManager,
    CheckpointEngineRegistry,
    CheckpointEngineWorker,
    base,
)
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerSeparateAsync, get_trainer_cls, trainer_separate_async
from verl.trainer.ppo.v1.utils import MetricsAggregator
from verl.workers.config import CheckpointEngineConfig
from verl.workers.rollout.replica import RolloutReplicaRegistry

from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.cpu import training
from soup_verl.stack.cpu.gloo_transfer import GlooCheckpointEngine
from soup_verl.stack.inflight_trainer import SoupSeparateAsyncTrainer

pytestmark = pytest.mark.contract

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "strided": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "bf16": torch.tensor([[1.5, float("nan")]], dtype=torch.bfloat16),
    "ids": torch.tensor([7, -(2**40)]),
    "a number": torch.tensor(3.25),
    "nothing": torch.zeros(0, 4),
}


class Pool:
    """A worker group of verl's as its manager sees it: each worker has an engine and a thread."""

    def __init__(self, size, threads, *, sends):
        self.world_size, self._threads = size, threads
        self.engines = [GlooCheckpointEngine(bucket_size=1, is_master=sends and rank == 0) for rank in range(size)]

    def execute_checkpoint_engine(self, method, **each):
        assert len(method) == self.world_size
        return [
            self._threads.submit(getattr(engine, method[rank]), **{name: given[rank] for name, given in each.items()})
            for rank, engine in enumerate(self.engines)
        ]


@pytest.fixture
def pools(monkeypatch):
    """verl's manager with two FSDP ranks on one side and two workers on the other, and what it waits by."""
    with ThreadPoolExecutor(8) as threads:
        trainer, rollout = Pool(2, threads, sends=True), Pool(2, threads, sends=False)
        monkeypatch.setattr(base.ray, "get", lambda futures: [future.result(timeout=60) for future in futures])
        manager = CheckpointEngineManager(CheckpointEngineConfig(backend="gloo"), trainer, replicas=[])
        yield manager, trainer, rollout, threads


def test_verls_manager_brings_every_weight_bit_for_bit_to_every_worker_of_the_other_pool(pools):
    manager, trainer, rollout, threads = pools
    gathered = [0, 0]

    def weights(rank):
        for name, weight in WEIGHTS.items():
            gathered[rank] += 1
            yield name, weight

    async def received(engine):
        return [(name, weight) async for name, weight in engine.receive_weights(global_steps=3)]

    for _ in range(2):  # groups are made anew
        manager.build_process_group(rollout)
        sent = [threads.submit(asyncio.run, e.send_weights(weights(rank))) for rank, e in enumerate(trainer.engines)]
        got = [threads.submit(asyncio.run, received(engine)) for engine in rollout.engines]
        assert [future.result(timeout=60) for future in sent] == [None, None]
        for future in got:
            arrived = future.result(timeout=60)
            assert [name for name, _ in arrived] == list(WEIGHTS)
            for name, weight in arrived:
                assert weight.dtype == WEIGHTS[name].dtype
                torch.testing.assert_close(weight, WEIGHTS[name], rtol=0, atol=0, equal_nan=True)
        for pool in (trainer, rollout):
            base.ray.get(pool.execute_checkpoint_engine(["finalize"] * 2))
    assert gathered == [12, 12]  # the rank that does not send has its part in gathering what the other sends


def test_the_engine_leaves_nothing_of_verls_interface_out():
    assert not GlooCheckpointEngine.__abstractmethods__
    for name in ("build_topology", "prepare", "finalize", "send_weights", "receive_weights"):
        verls, ours = (
            list(inspect.signature(getattr(c, name)).parameters) for c in (CheckpointEngine, GlooCheckpointEngine)
        )
        assert ours == verls, name


def test_verl_finds_the_engine_by_its_own_name_and_by_that_of_a_gpus():
    assert CheckpointEngineRegistry.get("gloo") is CheckpointEngineRegistry.get("nccl") is GlooCheckpointEngine
    with pytest.raises(ValueError, match="Checkpoint engine glooo not registered, registered backends: .*'gloo'"):
        CheckpointEngineRegistry.get("glooo")


def test_verls_workers_make_their_engine_so():
    for worker in (base.CheckpointEngineWorker.__init__, training.ActorRolloutRefWorker.init_model):
        source = inspect.getsource(inspect.unwrap(worker))
        assert "CheckpointEngineRegistry.new(" in source and "bucket_size=bucket_size" in source
    assert "is_master=(torch.distributed.get_rank() == 0)" in source


def test_a_replica_in_a_pool_of_its_own_has_our_workers():
    kind = RolloutReplicaRegistry.get("vllm")
    replica = kind.__new__(kind)
    replica.config, replica.model_config, replica.replica_rank = 1, 2, 3
    made = replica.get_ray_class_with_init_args()
    worker = made.cls.__ray_metadata__.modified_class.__ray_actor_class__
    assert worker is sys.modules[kind.__module__].CpuCheckpointEngineWorker and issubclass(
        worker, CheckpointEngineWorker
    )
    assert made.kwargs == {"rollout_config": 1, "model_config": 2, "replica_rank": 3}


@pytest.mark.parametrize(
    "name", ["separate_async", "separate_async_cpu", "soup_separate_async", "soup_separate_async_cpu"]
)
def test_trainers_are_found_by_name(name):
    assert issubclass(get_trainer_cls(name), PPOTrainerSeparateAsync)


def without_hybrid_engines(monkeypatch, kind=PPOTrainerSeparateAsync):
    """A trainer as verl's own `_setup` leaves it; nothing is started."""
    monkeypatch.setattr(PPOTrainer, "_setup", lambda self: None)
    replicas = SimpleNamespace(get_replicas=lambda: ["replica"], server_addresses=[])
    monkeypatch.setattr(trainer_separate_async.LLMServerManager, "create", lambda **given: replicas)
    made = kind.__new__(kind)
    made._enable_hybrid_replicas, made.actor_rollout_wg = False, "workers"
    made.llm_server_manager = SimpleNamespace(rollout_replicas=[])
    engine = {"_target_": "verl.workers.config.CheckpointEngineConfig", "backend": "gloo"}
    rollout = {"checkpoint_engine": engine, "prometheus": {"enable": False}}
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    return made


def test_without_hybrid_engines_verls_log_raises_unless_it_is_quiet(monkeypatch):
    """Why `inflight_trainer` sets its level; if this fails, verl has mended it and the level can go."""
    log = logging.getLogger(PPOTrainerSeparateAsync.__module__)
    assert log is trainer_separate_async.logger and log.level == logging.WARNING
    made = without_hybrid_engines(monkeypatch)
    made._setup()
    assert made.standalone_checkpoint_manager.replicas == ["replica"]
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(TypeError, match="flush"):
            made._setup()
    finally:
        log.setLevel(logging.WARNING)


def test_the_weights_that_the_engines_get_have_the_version_that_colocate_async_gives_them(monkeypatch):
    made = without_hybrid_engines(monkeypatch)
    made._setup()
    asked = []
    made.standalone_checkpoint_manager = SimpleNamespace(update_weights=lambda version: asked.append(version))
    made.hybrid_rollout_config = SimpleNamespace(enable_switch=False)
    made.global_steps, made.prev_step_profile, made.timing_raw = 0, False, {}
    made.on_init_end()
    made.global_steps = 1
    made.on_step_end()
    assert asked == [0, 1]  # step t is sampled by version t - 1, as `SoupStages._read` has it


def test_old_log_probs_are_those_of_the_last_weights_that_the_engines_got(monkeypatch):
    """Between two syncs the actor moves on: verl takes its weights back for the log-probs of later mini-batches."""
    events = []
    workers = SimpleNamespace(
        **{
            name: lambda key, name=name: events.append((name, key))
            for name in ("save_model_to_cpu", "restore_model_from_cpu", "clear_cpu_model")
        }
    )
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: events.append("log-probs"))
    made = PPOTrainerSeparateAsync.__new__(PPOTrainerSeparateAsync)
    made.actor_rollout_wg, made.config = workers, OmegaConf.create({"algorithm": {}})
    for made.local_trigger_step in (0, 1):
        made._compute_old_log_prob(None, {})
    assert events == [
        ("save_model_to_cpu", 0),
        "log-probs",
        ("save_model_to_cpu", 1),
        ("restore_model_from_cpu", 0),
        "log-probs",
        ("restore_model_from_cpu", 1),
        ("clear_cpu_model", 1),
    ]
    assert issubclass(SoupActorWorker, DetachActorWorker)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("soup/alignment_error_max", 3.0),
        ("soup/stale_tokens_total", 4.0),
        ("soup/policy_age_mean", 2.5),  # 3 of 4 responses in the second mini-batch
    ],
)
def test_how_verl_joins_our_metrics_of_the_mini_batches_between_two_syncs(name, expected):
    joined = MetricsAggregator()
    for value, responses in ((1.0, 1), (3.0, 3)):
        joined.add_step_metrics({name: value}, sample_count=responses)
    assert joined.get_aggregated_metrics() == {name: expected}


def test_our_trainer_asks_the_other_pool():
    made = SoupSeparateAsyncTrainer.__new__(SoupSeparateAsyncTrainer)
    made.standalone_server_manager = SimpleNamespace(get_client=lambda client_cls: client_cls.__name__)
    assert made.get_llm_client() == "RecordingClient"
