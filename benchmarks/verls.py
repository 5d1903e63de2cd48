"""verl's own losses and advantages, called as its trainer calls them; loaded only for points that name one.

The import takes some seconds, once a process.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.update import LossSettings


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, settings: LossSettings
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a mini-batch by `settings.mode`, aggregated by verl, and verl's metrics of it.

    Args:
        log_probs, old_log_probs, advantages: (batch, response_length), as `method.step` leaves them.
        mask: boolean, tokens that count in the loss.

    Raises:
        ValueError: verl has no such loss.
    """
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    assert settings.mode is not None, "a loss of method.policy_losses"
    config = _actor(settings)
    of_batch = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(mask)}
    config.global_batch_info.update(of_batch, loss_scale_factor=settings.loss_scale_factor)
    zero = torch.zeros_like(log_probs)  # verl multiplies by the mask: nothing outside of it may be infinite
    return get_policy_loss_fn(settings.mode)(
        old_log_prob=torch.where(mask, old_log_probs, zero),
        log_prob=torch.where(mask, log_probs, zero),
        advantages=torch.where(mask, advantages, zero),
        response_mask=mask,
        loss_agg_mode=config.loss_agg_mode,
        config=config,
    )


def _actor(settings: LossSettings) -> Any:
    """verl's configuration of the actor, as far as a loss reads it."""
    from omegaconf import OmegaConf
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

    own = dict(settings.actor or {})
    return FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        optim=OmegaConf.create({}),
        clip_ratio=settings.clip_ratio_low,
        clip_ratio_low=settings.clip_ratio_low,
        clip_ratio_high=settings.clip_ratio_high,
        clip_ratio_c=settings.clip_ratio_c,
        loss_agg_mode=settings.loss_agg_mode or "token-mean",
        loss_scale_factor=settings.loss_scale_factor,
        policy_loss=PolicyLossConfig(**own.pop("policy_loss")),
        **own,
    )


def advantages(estimator: str, rewards: Tensor, uids: Sequence[Hashable], mask: Tensor, *, norm_by_std: bool) -> Tensor:
    """verl's advantages of each token, (batch, response_length).

    Args:
        estimator: verl's name, such as `opo`.
        rewards: (batch,).
        uids: the prompt of each row.
        mask: (batch, response_length), 1 on the tokens of the response.

    Raises:
        ValueError: verl has no such estimator.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    of_tokens = torch.zeros(mask.shape)
    of_tokens[:, 0] = rewards  # verl adds up a response's tokens
    found, _ = get_adv_estimator_fn(estimator)(
        token_level_rewards=of_tokens,
        response_mask=mask.float(),
        index=np.array(uids, dtype=object),
        config=OmegaConf.create({"norm_adv_by_std_in_grpo": norm_by_std}),
    )
    return found
