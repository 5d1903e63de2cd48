"""One step's responses, as everything in `method/` reads them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from soup_verl.method.mixing import UNLEARNED


@dataclass(frozen=True)
class StepBatch:
    """The responses of one step. Tensors are (batch, response_length), padded at the end, unless said otherwise.

    Args:
        uids: prompt of each row.
        response_mask: 1 on tokens that a policy generated.
        prefix_mask: 1 on tokens that a historical policy generated.
        policy_version: of the historical policy that generated the token, or `UNLEARNED`; -1 on every other token.
        current_version: version of the policy that generated everything else.
        behavior_log_probs: of the policy that generated the token, as the rollout engine reported them; None if it
            reported none.
        old_log_probs: of the current policy before the update.
        recomputed: `old_log_probs` are the trainer's own, not the rollout engine's (verl's `bypass_mode`).
        entropy: of the current policy in nats; None if it was not computed.
        rewards: (batch,).
        solved: (batch,) boolean.
        answers: (batch,) final answers, or None where the reward function does not report `pred`.
        cut_short: (batch,) boolean, responses whose history ended before their prefix did; None: not known.
        stale_apart: responses without a token of the current policy are a segment of their own in metrics.
    """

    uids: Sequence[Hashable]
    response_mask: Tensor
    prefix_mask: Tensor
    policy_version: Tensor
    current_version: int
    behavior_log_probs: Tensor | None
    old_log_probs: Tensor
    recomputed: bool
    entropy: Tensor | None
    rewards: Tensor
    solved: Tensor
    answers: Sequence[Hashable] | None
    cut_short: Tensor | None = None
    stale_apart: bool = False

    @property
    def is_mixed(self) -> Tensor:
        """(batch,) boolean."""
        return self.prefix_mask.bool().any(dim=-1)

    @property
    def is_stale(self) -> Tensor:
        """(batch,) boolean: mixed, and no token is the current policy's."""
        own = self.response_mask.bool() & ~self.prefix_mask.bool()
        return self.is_mixed & ~own.any(dim=-1)

    @property
    def response_version(self) -> Tensor:
        """(batch,) the newest historical policy in each response, -1 for an on-policy one."""
        if self.policy_version.shape[-1] == 0:
            return torch.full_like(self.rewards, -1, dtype=self.policy_version.dtype)
        return self.policy_version.amax(dim=-1)

    @property
    def policy_age(self) -> Tensor:
        """(batch, response_length) steps between the historical policy and the current one; -1 where it has no age."""
        has_none = (self.policy_version == UNLEARNED) | (self.policy_version == -1)
        return torch.where(has_none, -1, self.current_version - self.policy_version)

    @property
    def log_probs_to_compare(self) -> tuple[Tensor, Tensor] | None:
        """The trainer's and the engine's own log-probs; None unless there are both."""
        if not self.recomputed or self.behavior_log_probs is None:
            return None
        return self.old_log_probs, self.behavior_log_probs

    def rows(self, some: Sequence[int]) -> StepBatch:
        """Some rows, in this order; the batch itself, and no copy, if they are all of them."""
        if list(some) == list(range(len(self.uids))):
            return self
        return StepBatch(**{f.name: _rows(getattr(self, f.name), some) for f in fields(self)})


def _rows(value: Any, some: Sequence[int]) -> Any:
    if isinstance(value, Tensor):
        return value[list(some)]
    return [value[i] for i in some] if isinstance(value, list) else value
