"""SOUP's advantage estimator and policy loss in verl's registries; the trainer and its workers import them.

The agent loop `soup_agent` is registered by `soup_verl.stack.rollout`, the trainer `soup` by `soup_verl.stack.trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss
from verl.utils.torch_functional import masked_mean

Estimate = Callable[[Tensor, list[str], Tensor], Tensor]
"""Rewards (batch,), uids and response mask (batch, response_length) -> advantages (batch, response_length)."""

_estimate: ContextVar[Estimate] = ContextVar("soup_estimate")

LossOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""log_probs, old_log_probs and advantages -> loss of each token, all (batch, response_length)."""

_loss_of: ContextVar[LossOf] = ContextVar("soup_loss_of")


@contextmanager
def _holding(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def estimating_with(estimate: Estimate) -> AbstractContextManager[None]:
    """Inside the block the estimator `soup` is `estimate`.

    verl gives an estimator the rewards, the mask and the uid of each row. Which rows are mixed and what their prefix
    tokens weigh is known to the trainer alone, so the trainer makes a function of it for the call at hand.
    """
    return _holding(_estimate, estimate)


@register_adv_est("soup")
def compute_soup_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[str], config: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator `soup`: group-relative, per token, prefix tokens carry their weight.

    Args:
        token_level_rewards, response_mask: (batch, response_length).
        index: (batch,) prompt uid of each row.

    Returns:
        Advantages and returns, the same tensor, (batch, response_length).
    """
    estimate = _estimate.get(None)
    if estimate is None:
        raise ValueError("algorithm.adv_estimator=soup needs a trainer of SOUP, such as trainer.v1.trainer_mode=soup.")
    spread = estimate(token_level_rewards.sum(dim=-1), list(index), response_mask)
    return spread, spread


def losing_with(loss_of: LossOf) -> AbstractContextManager[None]:
    """Inside the block the policy loss `soup` is `loss_of`, which knows the settings and where prefixes are."""
    return _holding(_loss_of, loss_of)


@register_policy_loss("soup")
def compute_soup_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's policy loss `soup`: that of `soup.policy_loss.name`, weighted and aggregated as verl does with its own.

    Args:
        old_log_prob, log_prob, advantages, response_mask, rollout_is_weights: (batch, response_length).
        loss_agg_mode: verl's.
        config: the actor's.

    Returns:
        The loss and verl's `actor/ppo_kl`.
    """
    loss_of = _loss_of.get(None)
    if loss_of is None:
        raise ValueError(
            "actor_rollout_ref.actor.policy_loss.loss_mode=soup needs soup.policy_loss.name and "
            "a trainer of SOUP, such as trainer.v1.trainer_mode=soup."
        )
    losses = loss_of(log_prob, old_log_prob, advantages)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    kl = masked_mean((old_log_prob - log_prob.detach()).clamp(-20, 20), response_mask)
    return loss, {"actor/ppo_kl": kl.item()}
