"""The FSDP worker: verl's that keeps policies (keeping_worker.py), plus segment metrics inside the loss."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn
from verl.single_controller.base.decorator import register as remote
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from soup_verl.method import core_algos, metrics, step_size
from soup_verl.method.policy_losses import ClipRange, LossTokens, loss_of_tokens
from soup_verl.method.sections import ForgetConfig, StepSizeConfig
from soup_verl.method.step import InLoss, moved_with_policy
from soup_verl.stack import register
from soup_verl.stack.keeping_worker import KeepingActorWorker

SUM_PREFIX = "soup_sum/"
"""Metrics of one micro-batch on their way to `metrics.finish_update_metrics`."""
MEASURED_PREFIX = "soup_measured/"
"""The same of a policy loss of ours, on their way to `metrics.finish_measured`."""
IN_LOSS = "soup_in_loss"
"""Batch entry: `step.InLoss`; absent where nothing is mixed and the policy loss is verl's."""

FORGET = "soup_forget"
"""The same: `sections.ForgetConfig`, for `SoupActorWorker.unlearn`."""


class SegmentLoss:
    """verl's loss on tensors that SOUP may have changed, with the segment sums of `metrics.update_sums` added.

    What changes them depends on pi_theta while it moves, so it happens here: `step.moved_with_policy`.

    Args:
        inner: verl's loss, a partial that holds the actor's configuration as `config`.
    """

    def __init__(self, inner: Any):
        self._inner = inner
        self._config = inner.keywords["config"]
        self._log_sums: list[torch.Tensor] = []
        self._step_size = StepSizeConfig()

    def __call__(self, model_output: dict, data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, dict]:
        settings = tu.get_non_tensor_data(data, IN_LOSS, InLoss())
        self._step_size = settings.step_size
        if self._step_size.rule != "none":
            self._log_sums.append(self._log_sums_of(model_output, data))
        data, sums = (data, {}) if settings.changes_nothing else self._changed(model_output, data, settings)
        with register.losing_with(partial(self._own_loss, data, sums)):
            loss, loss_metrics = self._inner(model_output=model_output, data=data, dp_group=dp_group)
        loss_metrics |= {MEASURED_PREFIX + key: Metric(value=value, aggregation="sum") for key, value in sums.items()}
        if self._config.policy_loss.get("loss_mode", "vanilla") == "vanilla":  # what "clipped" means is its rule
            with torch.no_grad():
                of_update = self._sums(model_output, data)
            loss_metrics |= {
                SUM_PREFIX + key: Metric(value=value, aggregation="max" if key.endswith("_max") else "sum")
                for key, value in of_update.items()
            }
        return loss, loss_metrics

    @staticmethod
    def _log_sums_of(model_output: dict, data: TensorDict) -> torch.Tensor:
        fields = data.select("prefix_mask", "rollout_log_probs").to_padded_tensor()
        log_probs = no_padding_2_padding(model_output["log_probs"], data)
        return step_size.log_sums(log_probs, fields["rollout_log_probs"], prefix_mask=fields["prefix_mask"])

    def take_step_size(self) -> tuple[float, float] | None:
        """(effective share of the mixed responses, factor on the learning rate) of the update that is about to be made,
        over all its micro-batches and ranks; None without a rule or without mixed responses. Every rank must ask."""
        if not self._log_sums:
            return None
        own, self._log_sums = step_size.joined(self._log_sums), []
        parts = [own]
        if torch.distributed.is_initialized():
            parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, own)
        share = step_size.effective_share(step_size.joined(parts))
        rule, rho_base = self._step_size.rule, self._step_size.rho_base
        return None if share is None else (share, step_size.scale(share, rule=rule, rho_base=rho_base))

    @staticmethod
    def _changed(model_output: dict, data: TensorDict, settings: InLoss) -> tuple[TensorDict, dict[str, float]]:
        """What verl's loss is to read, and the sums of what was measured."""
        names = ("old_log_probs", "advantages", "response_mask", "prefix_mask", "rollout_log_probs")
        fields = data.select(*names).to_padded_tensor()
        with torch.no_grad():
            moved = moved_with_policy(
                no_padding_2_padding(model_output["log_probs"], data),
                fields["old_log_probs"],
                fields["advantages"],
                prefix_mask=fields["prefix_mask"],
                behavior_log_probs=fields["rollout_log_probs"],
                settings=settings,
            )
            masks = {"trained": fields["response_mask"], "prefix_mask": fields["prefix_mask"]}
            apart = settings.stale_apart
            sums = metrics.measured_sums(moved.measured, **masks, stale_apart=apart) if moved.measured else {}
        data = data.copy()  # shallow: the caller keeps its own fields
        for name in ("old_log_probs", "advantages"):
            data[name] = response_to_nested(getattr(moved, name), data["response_mask"])
        return data, sums

    def _own_loss(
        self,
        data: TensorDict,
        sums: dict[str, float],
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        advantages: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each token by `soup.policy_loss`; what it measured is added to `sums`."""
        in_loss = tu.get_non_tensor_data(data, IN_LOSS, InLoss())
        settings = in_loss.policy_loss
        assert settings.name is not None, "loss_mode=soup without a name, which run_rules refuses"
        names = [k for k in ("response_mask", "prefix_mask", "rollout_log_probs") if k in data]
        fields = data.select(*names).to_padded_tensor()
        trained = fields["response_mask"].bool()
        tokens = LossTokens(
            log_probs=log_probs,
            old_log_probs=old_log_probs,
            advantages=advantages,
            trained=trained,
            prefix_mask=fields["prefix_mask"].bool() if "prefix_mask" in data else torch.zeros_like(trained),
            behavior_log_probs=fields.get("rollout_log_probs", old_log_probs),
        )
        found = loss_of_tokens(tokens, settings, self._clip)
        with torch.no_grad():
            sums |= metrics.measured_sums(
                found.measured, trained=trained, prefix_mask=tokens.prefix_mask, stale_apart=in_loss.stale_apart
            )
        return found.loss

    @property
    def _clip(self) -> ClipRange:
        config = self._config
        low, high = config.clip_ratio_low, config.clip_ratio_high
        return ClipRange(
            low=config.clip_ratio if low is None else low,
            high=config.clip_ratio if high is None else high,
            c=config.get("clip_ratio_c", 3.0),
        )

    def _sums(self, model_output: dict, data: TensorDict) -> dict[str, float]:
        clip = self._clip
        names = [k for k in ("old_log_probs", "advantages", "response_mask", "prefix_mask") if k in data]
        fields = data.select(*names).to_padded_tensor()
        return metrics.update_sums(
            log_probs=no_padding_2_padding(model_output["log_probs"], data),
            old_log_probs=fields["old_log_probs"],
            advantages=fields["advantages"],
            response_mask=fields["response_mask"],
            prefix_mask=fields.get("prefix_mask", torch.zeros_like(fields["response_mask"])),
            clip_ratio_low=clip.low,
            clip_ratio_high=clip.high,
            clip_ratio_c=clip.c,
            stale_apart=tu.get_non_tensor_data(data, IN_LOSS, InLoss()).stale_apart,
        )


def unlearning_loss_of_micro_batch(
    model_output: dict, data: TensorDict, dp_group: Any = None, *, clip: float
) -> tuple[torch.Tensor, dict]:
    """As verl's losses: this micro-batch's part of the mean over all tokens of the batch, times the number of ranks,
    whose gradients are averaged."""
    log_probs = no_padding_2_padding(model_output["log_probs"], data)
    fields = data.select("old_log_probs", "response_mask").to_padded_tensor()
    loss = core_algos.unlearning_loss(log_probs, fields["old_log_probs"], clip=clip)
    total = torch.where(fields["response_mask"].bool(), loss, 0.0).sum()
    return total / data["batch_num_tokens"] * data["dp_size"], {}


@contextmanager
def _learning_rates_times(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Inside the block every learning rate is multiplied; afterwards they are what they were."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group, lr in zip(optimizer.param_groups, before, strict=True):
        group["lr"] = lr * factor
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr


class SoupActorWorker(KeepingActorWorker):
    """One FSDP rank."""

    loss_fn: Any

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        if "actor" in self.role:
            self._segment_loss = SegmentLoss(self.loss_fn)
            self.actor.set_loss_fn(self._segment_loss)
            self._skipped_updates = 0
            self._step_sizes: list[tuple[float, float]] = []
            self._plain_optimizer_step = self.actor.engine.optimizer_step
            self.actor.engine.optimizer_step = self._watched(self._plain_optimizer_step)

    def _watched(self, optimizer_step: Callable[[], float]) -> Callable[[], float]:
        """An update with its learning rate as `soup.step_size` wants it for this once, and counted if it was left out:
        verl's engine does so where the gradient's norm is not finite, and tells nobody but its log."""

        def step() -> float:
            taken = self._segment_loss.take_step_size()
            if taken is not None:
                self._step_sizes.append(taken)
            with _learning_rates_times(self.actor.engine.optimizer, 1.0 if taken is None else taken[1]):
                norm = optimizer_step()
            self._skipped_updates += not math.isfinite(norm)
            return norm

        return step

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_step_sizes(self) -> list[tuple[float, float]]:
        """(effective share, factor on the learning rate) of each update since the last call; none without a rule."""
        taken, self._step_sizes = self._step_sizes, []
        return taken

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_skipped_updates(self) -> int:
        """Updates since the last call that were left out because the gradient's norm was not finite."""
        skipped, self._skipped_updates = self._skipped_updates, 0
        return skipped

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_anew(self, config: DictConfig) -> None:
        """Initial weights, a new optimizer and another run's losses; kept policies are dropped.

        Args:
            config: `actor_rollout_ref` of that run. What the model and its sharding depend on must be as it was.
        """
        self.config = config
        actor_config = omega_conf_to_dataclass(config.actor)
        actor_config.model_config = self.loss_fn.keywords["config"].model_config
        self.loss_fn = partial(ppo_loss, config=actor_config)
        self._kept.clear()
        engine = self.actor.engine
        engine.module = engine.optimizer = engine.lr_scheduler = engine.checkpoint_manager = None
        gc.collect()  # FSDP modules hold themselves in cycles
        engine.optimizer_config = actor_config.optim
        self.actor.reset()
        self._segment_loss = SegmentLoss(self.loss_fn)
        self.actor.set_loss_fn(self._segment_loss)

    @remote(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def unlearn(self, data: TensorDict) -> TensorDict | None:
        """Plain gradient steps of `unlearning_loss` on all rows, clipped and micro-batched as an update. The weights
        are others afterwards; optimizer, learning rates, their schedule and random numbers are as they were.

        Returns:
            `metrics`: `grad_norms`, one a step, before the clip; one that is not finite made no step.
        """
        settings: ForgetConfig = tu.get_non_tensor_data(data, FORGET, ForgetConfig())
        training, engine = self.actor, self.actor.engine
        held = training.loss_fn, engine.optimizer, engine.optimizer_step
        training.loss_fn = partial(unlearning_loss_of_micro_batch, clip=settings.clip)
        engine.optimizer = torch.optim.SGD(engine.module.parameters(), lr=settings.lr)
        engine.optimizer_step = self._plain_optimizer_step
        try:
            with torch.random.fork_rng():  # dropout
                outputs = [training.train_batch(data) for _ in range(settings.steps)]
        finally:
            training.loss_fn, engine.optimizer, engine.optimizer_step = held
        if outputs[0] is None:
            return None
        norms = [tu.get(output, "metrics")["grad_norm"] for output in outputs]
        return tu.get_tensordict({}, {"metrics": {"grad_norms": norms}})
