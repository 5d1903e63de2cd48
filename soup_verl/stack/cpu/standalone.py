"""A replica of the rollout engine in a pool of its own, on a CPU."""

from __future__ import annotations

from typing import Any

import ray
from verl.checkpoint_engine import CheckpointEngineWorker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica

from soup_verl.stack.cpu import (
    gloo_transfer,  # noqa: F401  registers
    own_socket,
)
from soup_verl.stack.cpu.rendezvous import join_gloo_group


class CpuCheckpointEngineWorker(CheckpointEngineWorker):
    """Takes weights from the trainer's pool, and hands them to its engine through this run's own socket."""

    def __init__(self, *args: Any, **kwargs: Any):
        join_gloo_group()
        super().__init__(*args, **kwargs)
        self.server_adapter.zmq_handle = own_socket(self.server_adapter.zmq_handle)


class CpuReplica(vLLMReplica):
    """verl's, with such workers where it has workers of its own."""

    def get_ray_class_with_init_args(self) -> RayClassWithInitArgs:
        made = super().get_ray_class_with_init_args()
        made.cls = ray.remote(CpuCheckpointEngineWorker)
        return made
