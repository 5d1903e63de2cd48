"""Where prefixes come from: the one interface all sources share, and the plain data they hand over.

A source knows neither Ray nor vLLM nor verl. It asks a `PolicyEngine` (implemented by the trainer) to sample prefixes
and to keep or borrow weights, and is told where in the step the run stands:

    prefixes(t)        the batch of step t is about to be submitted: hand over its prefixes
    after_submit(t)    the batch of step t is with the rollout engine, which holds the policy of version t - 1
    before_sleep()     the batch is complete; the rollout engine is about to give its memory back
    after_update(t)    the actor holds version t, the rollout engine holds nothing
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Prefix:
    """The head of a response as a historical policy sampled it. Token ids, never re-tokenised text.

    Args:
        token_ids: at least one, none of them an end-of-sequence token.
        log_probs: behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the policy that sampled it (verl's `global_steps` of its weights).
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    policy_version: int

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.log_probs) > 0, (len(self.token_ids), len(self.log_probs))

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class GroupPrefixes:
    """The prefixes of one prompt's responses.

    Args:
        prompt_key: fingerprint of the prompt they were sampled for.
        by_session: session -> prefix; a session that is absent is answered on-policy.
    """

    prompt_key: str
    by_session: dict[int, Prefix]


class PendingPrefixes(Protocol):
    """Prefixes being sampled."""

    def result(self) -> list[GroupPrefixes]:
        """Wait for them; one entry a prompt, in batch order."""
        ...


class PolicyEngine(Protocol):
    """What a source may ask of the run. `step` names the batch, `version` the weights."""

    def wants_prefixes(self, step: int) -> bool:
        """Whether the plan of `step` has any mixed response."""
        ...

    def sample_prefixes(self, step: int) -> PendingPrefixes:
        """Ask the policy the rollout engine holds now for the planned prefixes of the batch of `step`."""
        ...

    def keep_policy(self, version: int) -> None:
        """Copy the actor's weights to host memory under `version`."""
        ...

    def drop_policy(self, version: int) -> None: ...

    def borrowed_policy(self, version: int) -> AbstractContextManager[Any]:
        """The rollout engine holds the kept policy inside the block; afterwards the actor has its own weights back."""
        ...

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None: ...

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None: ...


class PrefixSource(ABC):
    """Hands over the prefixes of each step's batch. The rest of the code cannot tell sources apart."""

    read_ahead: int
    """How many batches ahead of the one in training the source needs to know the prompts, at least 1."""

    @abstractmethod
    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        """The prefixes of the batch of `step`, in batch order; None while there is no history yet."""

    def after_submit(self, step: int) -> None:
        """The batch of `step` has been submitted to the rollout engine."""
        return

    def before_sleep(self) -> None:
        """The rollout engine is about to give its memory back: no request of ours may be under way after this."""
        return

    def after_update(self, step: int) -> None:
        """The actor holds version `step`; the rollout engine holds no weights."""
        return

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything a resumed run needs into `folder`, which exists and is empty."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            ValueError: a file is missing or does not fit.
        """


__all__ = ["GroupPrefixes", "PendingPrefixes", "PolicyEngine", "Prefix", "PrefixSource"]
