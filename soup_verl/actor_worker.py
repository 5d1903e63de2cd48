"""The FSDP worker: verl's, plus segment metrics inside the loss and past policies in host memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from soup_verl import core_algos, kept_weights, metrics

SUM_PREFIX = "soup_sum/"
"""Metrics of one micro-batch on their way to `metrics.finish_update_metrics`."""
SHAPED_GAMMA = "soup_shaped_gamma"
"""Batch entry: gamma of `prefix_objective=shaped`; 0 for any other objective."""
PREFIX_CORRECTION = "soup_prefix_correction"
"""Batch entry: `soup.prefix_correction`."""


class SegmentLoss:
    """verl's loss on tensors that SOUP may have changed, with the segment sums of `metrics.update_sums` added.

    What changes them depends on pi_theta while it moves, so it happens here: `shaped` and `prefix_correction`.

    Args:
        inner: verl's loss, a partial that holds the actor's configuration as `config`.
    """

    def __init__(self, inner: Any):
        self._inner = inner
        self._config = inner.keywords["config"]

    def __call__(self, model_output: dict, data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, dict]:
        data = self._changed(model_output, data)
        loss, loss_metrics = self._inner(model_output=model_output, data=data, dp_group=dp_group)
        if self._config.policy_loss.get("loss_mode", "vanilla") == "vanilla":  # what "clipped" means is its rule
            with torch.no_grad():
                sums = self._sums(model_output, data)
            loss_metrics |= {
                SUM_PREFIX + key: Metric(value=value, aggregation="max" if key.endswith("_max") else "sum")
                for key, value in sums.items()
            }
        return loss, loss_metrics

    @staticmethod
    def _changed(model_output: dict, data: TensorDict) -> TensorDict:
        gamma = tu.get_non_tensor_data(data, SHAPED_GAMMA, 0.0)
        correction = tu.get_non_tensor_data(data, PREFIX_CORRECTION, "none")
        if gamma == 0 and correction == "none":
            return data
        names = ("old_log_probs", "advantages", "prefix_mask", "rollout_log_probs")
        fields = data.select(*names).to_padded_tensor()
        old_log_probs, advantages = fields["old_log_probs"], fields["advantages"]
        with torch.no_grad():
            log_probs = no_padding_2_padding(model_output["log_probs"], data)
            mask = fields["prefix_mask"]
            if correction == "min_prefix":
                advantages = advantages * core_algos.min_prefix_weight(
                    log_probs, fields["rollout_log_probs"], prefix_mask=mask
                )
            if gamma > 0:
                old_log_probs, advantages = core_algos.shaped_tokens(
                    log_probs, old_log_probs, advantages, prefix_mask=mask, gamma=gamma
                )
        data = data.copy()  # shallow: the caller keeps its own fields
        data["old_log_probs"] = response_to_nested(old_log_probs, data["response_mask"])
        data["advantages"] = response_to_nested(advantages, data["response_mask"])
        return data

    def _sums(self, model_output: dict, data: TensorDict) -> dict[str, float]:
        config = self._config
        names = [k for k in ("old_log_probs", "advantages", "response_mask", "prefix_mask") if k in data]
        fields = data.select(*names).to_padded_tensor()
        low, high = config.clip_ratio_low, config.clip_ratio_high
        return metrics.update_sums(
            log_probs=no_padding_2_padding(model_output["log_probs"], data),
            old_log_probs=fields["old_log_probs"],
            advantages=fields["advantages"],
            response_mask=fields["response_mask"],
            prefix_mask=fields.get("prefix_mask", torch.zeros_like(fields["response_mask"])),
            clip_ratio_low=config.clip_ratio if low is None else low,
            clip_ratio_high=config.clip_ratio if high is None else high,
            clip_ratio_c=config.get("clip_ratio_c", 3.0),
        )


class SoupActorWorker(DetachActorWorker):
    """One FSDP rank. Kept policies are this rank's shards, in `cpu_saved_models` by version."""

    loss_fn: Any

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        self.cpu_saved_models: dict[Any, dict[str, torch.Tensor]] = {}
        if "actor" in self.role:
            self.actor.set_loss_fn(SegmentLoss(self.loss_fn))
            self._skipped_updates = 0
            self.actor.engine.optimizer_step = self._counting(self.actor.engine.optimizer_step)

    def _counting(self, optimizer_step: Callable[[], float]) -> Callable[[], float]:
        """verl's engine leaves out an update whose gradient norm is not finite, and tells nobody but its log."""

        def step() -> float:
            norm = optimizer_step()
            self._skipped_updates += not math.isfinite(norm)
            return norm

        return step

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_skipped_updates(self) -> int:
        """Updates since the last call that were left out because the gradient's norm was not finite."""
        skipped, self._skipped_updates = self._skipped_updates, 0
        return skipped

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_anew(self, config: DictConfig) -> None:
        """Initial weights, a new optimizer and another run's losses; kept policies are dropped.

        Args:
            config: `actor_rollout_ref` of that run. What the model and its sharding depend on must be as it was.
        """
        self.config = config
        actor_config = omega_conf_to_dataclass(config.actor)
        actor_config.model_config = self.loss_fn.keywords["config"].model_config
        self.loss_fn = partial(ppo_loss, config=actor_config)
        self.cpu_saved_models.clear()
        engine = self.actor.engine
        engine.module = engine.optimizer = engine.lr_scheduler = engine.checkpoint_manager = None
        gc.collect()  # FSDP modules hold themselves in cycles
        engine.optimizer_config = actor_config.optim
        self.actor.reset()
        self.actor.set_loss_fn(SegmentLoss(self.loss_fn))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_model_to_cpu(self, n: Any) -> None:
        """As verl's, and right for every strategy: a real copy also of shards in host memory, none still on its way."""
        self.cpu_saved_models[n] = kept_weights.keep(self.actor.engine.module)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def restore_model_from_cpu(self, n: Any) -> None:
        """As verl's, and the next forward pass uses these weights: verl leaves FSDP1's gathered copy as it was."""
        kept_weights.take_back(self.actor.engine.module, self.cpu_saved_models[n])

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def write_kept_policies(self, folder: str, versions: list[int]) -> None:
        """One safetensors file a version and rank."""
        for version in versions:
            tensors = {name: t.contiguous() for name, t in self.cpu_saved_models[version].items()}
            save_file(tensors, self._policy_file(folder, version))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def read_kept_policies(self, folder: str, versions: list[int]) -> None:
        """Take up what `write_kept_policies` wrote with the same number of ranks.

        Raises:
            ValueError: names a file that is missing, torn or of another model.
        """
        for version in versions:
            path = self._policy_file(folder, version)
            try:
                stored = load_file(path)
            except Exception as error:
                raise ValueError(f"{path}: not a readable snapshot ({error})") from error
            self.save_model_to_cpu(version)
            for name, tensor in self.cpu_saved_models[version].items():
                if name not in stored or stored[name].shape != tensor.shape:
                    raise ValueError(f"{path}: {name} is missing or of another shape than {tuple(tensor.shape)}")
                tensor.copy_(stored[name])

    def _policy_file(self, folder: str, version: int) -> Path:
        return Path(folder) / f"policy_{version}_rank_{self.rank}_of_{self.world_size}.safetensors"
