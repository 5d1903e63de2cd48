"""verl's worker extension for vLLM's CPU backend, chosen by `rollout.engine_kwargs.vllm.worker_extension_cls`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from soup_verl.stack.cpu import own_socket


def _linear_that_keeps_its_weight(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = lambda x, weight, bias: F.linear(x, weight, bias)


def keep_linear_weights() -> None:
    """Patch vLLM's `dispatch_cpu_unquantized_gemm`: after loading, vLLM packs every linear layer's weight for oneDNN
    and replaces it by an empty parameter, so that no later weight update can be loaded. Keep the weight instead."""
    import vllm.model_executor.layers.utils as layer_utils

    layer_utils.dispatch_cpu_unquantized_gemm = _linear_that_keeps_its_weight


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """Applies the patch in vLLM's worker before the model is loaded; weights come through this run's own socket."""

    def __new__(cls, **kwargs: Any) -> CpuWorkerExtension:
        keep_linear_weights()
        return super().__new__(cls, **kwargs)

    def _get_zmq_handle(self) -> str:
        return own_socket(super()._get_zmq_handle())
