"""SOUP on verl's asynchronous trainers: rollout goes on while batches wait, updates interrupt it (`inflight.py`)."""

from __future__ import annotations

import logging
from typing import Any

import ray
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.checkpoint_engine import CheckpointEngineRegistry
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, register_trainer
from verl.utils.device import get_resource_name
from verl.utils.import_utils import import_external_libs
from verl.workers.rollout.llm_server import LLMServerClient

from soup_verl.method.checks import ConfigError, require
from soup_verl.stack.inflight import RecordingClient
from soup_verl.stack.trainer import SoupStages

# With `hybrid_engine=false` verl 0.9.1 passes `flush` to this logger, which raises where the line would be written.
logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)


class InflightStages(SoupStages):
    """Mixin over verl's asynchronous trainers: a batch has prompts of several steps, and others are under way."""

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Prompts that were submitted in this step and before; others are under way, or verl's buffer has dropped them.
        Those that verl took up from a checkpoint come first, in the order it gives them."""
        here = dict.fromkeys(key.split("_")[0] for key in batch.keys)
        known = self.replay_buffer.prompt_global_steps[batch.partition_id].keys() - here.keys()
        under_way = {uid: place for uid, place in self._place_of_uid.items() if uid in known}
        in_order = [
            *(uid for uid in here if uid not in self._place_of_uid),
            *(u for u in self._place_of_uid if u in here),
        ]
        self._place_of_uid = {uid: place for place, uid in enumerate(in_order)}
        batch = super()._balance_batch(batch, *args, **kwargs)
        self._place_of_uid = under_way
        return batch


@register_trainer("soup_colocate_async")
class SoupColocateAsyncTrainer(InflightStages, PPOTrainerColocateAsync):
    """On verl's asynchronous trainer whose rollout and training share their devices."""

    def get_llm_client(self) -> LLMServerClient:
        return self.llm_server_manager.get_client(client_cls=RecordingClient)


@register_trainer("soup_separate_async")
class SoupSeparateAsyncTrainer(InflightStages, PPOTrainerSeparateAsync):
    """On the one whose rollout has devices of its own: weights get there through a checkpoint engine of verl's."""

    def __init__(self, config: DictConfig):
        check_pools(config)
        super().__init__(config)

    def get_llm_client(self) -> LLMServerClient:
        return self.standalone_server_manager.get_client(client_cls=RecordingClient)


def check_pools(config: DictConfig) -> None:
    """What only the processes of a run can tell: the cluster has both pools, and verl the checkpoint engine.

    Raises:
        ConfigError: it has not; verl would find out with its workers started.
    """
    key, trainer, rollout = "actor_rollout_ref.rollout", config.trainer, config.actor_rollout_ref.rollout
    name, engine = get_resource_name(), rollout.checkpoint_engine
    needed = trainer.nnodes * trainer.n_gpus_per_node + rollout.nnodes * rollout.n_gpus_per_node
    there = int(ray.cluster_resources().get(name, 0))
    require(
        needed <= there,
        f"{key}.n_gpus_per_node",
        rollout.n_gpus_per_node,
        f"{there} {name}s at most on both sides: the cluster has no more, trainer and rollout ask for {needed}",
        "They have pools of their own.",
    )
    import_external_libs(engine.custom_backend_module or None)
    try:
        CheckpointEngineRegistry.get(engine.backend)
    except ValueError as error:
        expected = f"a checkpoint engine that can be used here ({error})"
        raise ConfigError(f"{key}.checkpoint_engine.backend", engine.backend, expected) from None
