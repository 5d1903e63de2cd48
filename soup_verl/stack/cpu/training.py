"""verl's training side on a CPU: FSDP engines, worker classes and the trainers that use them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import ray
import torch
from tensordict import NonTensorStack, TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry

from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.cpu import (
    gloo_transfer,  # noqa: F401  registers
    own_socket,
    shared_prompts,
)
from soup_verl.stack.cpu.attention import use_for_sdpa
from soup_verl.stack.cpu.rendezvous import join_gloo_group
from soup_verl.stack.inflight_trainer import SoupColocateAsyncTrainer, SoupSeparateAsyncTrainer
from soup_verl.stack.trainer import SoupTrainer, verls_name

_FSDP1 = "torch.distributed.fsdp._init_utils"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
_ROWS = 1024
"""Positions whose log-probs are normalised together: bounds what is copied of the logits."""

use_for_sdpa()


class _CpuEngine:
    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Build as verl does, less three things it hard-codes for accelerators: FSDP1 refuses to broadcast CPU
        parameters, and a reference model asks for CPU offload with pinned memory."""
        with (
            mock.patch(f"{_FSDP1}._check_module_states_for_sync_module_states", lambda _: None),
            mock.patch("torch.distributed.fsdp.CPUOffload", lambda **kwargs: None),
            mock.patch(f"{_ENGINE}.CPUOffloadPolicy", lambda **kwargs: None),
        ):
            module = super()._build_fsdp_module(module)  # type: ignore[misc]
        # "Placement is owned elsewhere": verl then skips moving FSDP1 parameters to the device "cpu:cpu".
        self._uses_fsdp2_cpu_offload_policy = True
        return module


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cpu"])
class CpuLanguageModelEngine(_CpuEngine, FSDPEngineWithLMHead):
    """verl's engine; packed micro-batches of prompts and responses have each prompt once (`shared_prompts.py`)."""

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        self._may_share_prompts = shared_prompts.is_possible(module) and not self.use_ulysses_sp
        return module

    def forward_step(self, micro_batch: TensorDict, *args: Any, **kwargs: Any) -> Any:
        """Without the data set's columns: verl moves each of their values, row by row, to the device it is on."""
        columns = {name for name, value in micro_batch.items() if isinstance(value, NonTensorStack)}
        return super().forward_step(micro_batch.exclude(*columns - {"multi_modal_inputs"}), *args, **kwargs)

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        options = ("use_fused_kernels", "distillation_use_topk", "calculate_sum_pi_squared")
        if (
            self._may_share_prompts
            and "responses" in micro_batch
            and micro_batch["responses"].is_nested
            and output_args.get("pad_size") == 0  # packed, and to no fixed length
            and not any(tu.get_non_tensor_data(micro_batch, option, False) for option in options)
        ):
            input_ids = micro_batch["input_ids"]
            lengths = input_ids.offsets().diff() - micro_batch["responses"].offsets().diff()
            layout = output_args["layout"] = shared_prompts.share_prompts(input_ids, lengths)
            for name in ("input_ids", "position_ids"):
                inputs[name] = inputs[name][:, layout.tokens]
            for name in ("input_ids_rmpad_rolled", "temperature_rmpad"):
                output_args[name] = output_args[name][layout.targets]
            inputs["logits_to_keep"] = layout.logits
        return inputs, output_args

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict:
        if getattr(output, "logits", None) is not None:  # fused kernels have none
            # As flash-attn's cross-entropy does it on a GPU: from logits in bf16, log-probs in fp32. What verl falls
            # back to here would give them in bf16, and TransferQueue takes one type a field.
            output.logits = output.logits.float()
        layout = output_args.get("layout")
        if layout is not None:
            micro_batch = micro_batch.copy()
            micro_batch["input_ids"] = micro_batch["responses"]  # verl takes the outputs' offsets from these
        with mock.patch(f"{_ENGINE}.logprobs_from_logits", log_probs_of_labels):
            found = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return found if layout is None else {name: layout.spread(values.values()) for name, values in found.items()}


def log_probs_of_labels(logits: torch.Tensor, labels: torch.Tensor, inplace_backward: bool = True) -> torch.Tensor:
    """Log-probs in nats, in the shape of `labels` (...), from logits (..., vocabulary).

    verl's `logprobs_from_logits` without flash-attn, which goes position by position: for small vocabularies the same
    numbers, in a small part of the time.
    """
    of_labels = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    normalizers = [rows.logsumexp(-1) for rows in logits.flatten(0, -2).split(_ROWS)]
    return of_labels - torch.cat(normalizers).view_as(labels)


@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device=["cpu"])
class CpuValueModelEngine(_CpuEngine, FSDPEngineWithValueHead):
    def _build_module(self) -> torch.nn.Module:
        with mock.patch("verl.utils.model.load_valuehead_model", _load_value_model_with_sdpa):
            return super()._build_module()


def _load_value_model_with_sdpa(
    local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool
) -> torch.nn.Module:
    """verl asks for flash_attention_2 here, whatever the configuration says."""
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        torch_dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )


class _CpuWorker:
    """Mixin for a worker: ranks meet over gloo, weights go to the engine through this run's own socket."""

    rollout: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        join_gloo_group()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()  # type: ignore[misc]
        if self.rollout is not None:
            self.rollout.zmq_handle = own_socket(self.rollout.zmq_handle)


class CpuActorRolloutRefWorker(_CpuWorker, ActorRolloutRefWorker):
    pass


class CpuDetachActorWorker(_CpuWorker, DetachActorWorker):
    pass


class CpuSoupActorWorker(_CpuWorker, SoupActorWorker):
    pass


class CpuTrainingWorker(TrainingWorker):
    def __init__(self, config: Any):
        join_gloo_group()
        super().__init__(config)


_CPU_WORKERS = {
    ActorRolloutRefWorker: CpuActorRolloutRefWorker,
    DetachActorWorker: CpuDetachActorWorker,
    SoupActorWorker: CpuSoupActorWorker,
    TrainingWorker: CpuTrainingWorker,
}


def on_cpu(worker_class: Any) -> Any:
    """The CPU counterpart of a Ray actor class of verl's or ours."""
    plain = worker_class.__ray_metadata__.modified_class.__ray_actor_class__
    return ray.remote(_CPU_WORKERS[plain])


def _cpu_replica() -> type[RolloutReplica]:
    from soup_verl.stack.cpu.standalone import CpuReplica  # imports vLLM, which FSDP workers do without

    return CpuReplica


RolloutReplicaRegistry.register("vllm", _cpu_replica)


class CpuTrainer:
    """Mixin for a trainer: CPU workers, and no two-second naps while polling for finished responses."""

    role_worker_mapping: dict[Any, Any]

    def __init__(self, config: Any):
        config.trainer.v1.trainer_mode = verls_name(self)
        super().__init__(config)  # type: ignore[call-arg]

    def _build_replay_buffer(self) -> Any:
        replay_buffer = super()._build_replay_buffer()  # type: ignore[misc]
        replay_buffer.poll_interval = 0.05  # seconds; verl's default of 2.0 has no configuration key
        return replay_buffer

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()  # type: ignore[misc]
        self.role_worker_mapping = {role: on_cpu(cls) for role, cls in self.role_worker_mapping.items()}


@register_trainer("soup_cpu")
class CpuSoupTrainer(CpuTrainer, SoupTrainer):
    """SOUP on a CPU."""


@register_trainer("sync_cpu")
class CpuSyncTrainer(CpuTrainer, PPOTrainerSync):
    """verl's own synchronous trainer on a CPU, untouched otherwise: the baseline to compare with."""


@register_trainer("soup_colocate_async_cpu")
class CpuSoupColocateAsyncTrainer(CpuTrainer, SoupColocateAsyncTrainer):
    """The same where updates interrupt responses."""


@register_trainer("colocate_async_cpu")
class CpuColocateAsyncTrainer(CpuTrainer, PPOTrainerColocateAsync):
    """verl's own."""


@register_trainer("soup_separate_async_cpu")
class CpuSoupSeparateAsyncTrainer(CpuTrainer, SoupSeparateAsyncTrainer):
    """The same with pools of their own for training and rollout."""


@register_trainer("separate_async_cpu")
class CpuSeparateAsyncTrainer(CpuTrainer, PPOTrainerSeparateAsync):
    """verl's own."""
