"""Where prefixes come from: the one interface all sources share, and the plain data they hand over.

A source knows neither Ray nor vLLM nor verl. It asks a `PolicyEngine` (implemented by the trainer) to sample prefixes
and to keep or hold weights, and is told where in the step the run stands:

    before_first_step(t)   the actor and the rollout engine hold version t - 1
    prefixes(t)            the batch of step t is about to be submitted: hand over its prefixes
    after_submit(t)        the batch of step t is with the rollout engine, which holds the policy of version t - 1
    before_sleep()         the batch is complete; the rollout engine is about to give its memory back
    before_update(t)       the actor still holds version t - 1, the rollout engine sleeps; responses have their rewards
    after_update(t)        the actor holds version t, the rollout engine holds nothing
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from soup_verl.mixing import PrefixRequest


@dataclass(frozen=True)
class Prefix:
    """The given head of a response; token ids, never re-tokenised text.

    Historical tokens stand from `head` to the end. With `soup.position=prefix` that is all of it, and none of them is
    an end-of-sequence token.

    Args:
        token_ids: at least one.
        log_probs: behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the historical policy (verl's `global_steps` of its weights).
        head: leading tokens that the current policy sampled.
        complete: the response ends here, nothing is to be continued.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    policy_version: int
    head: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.log_probs) > 0, (len(self.token_ids), len(self.log_probs))
        assert 0 <= self.head <= len(self.token_ids), (self.head, len(self.token_ids))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def historical(self) -> int:
        """Number of tokens of the historical policy."""
        return len(self.token_ids) - self.head


@dataclass(frozen=True)
class GroupPrefixes:
    """The prefixes of one prompt's responses.

    Args:
        prompt_key: fingerprint of the prompt they are for.
        by_session: session -> prefix; a session that is absent is answered on-policy.
    """

    prompt_key: str
    by_session: dict[int, Prefix]


@dataclass(frozen=True)
class PromptPlan:
    """One prompt of a batch to come.

    Args:
        prompt_key: fingerprint of the prompt.
        requests: its planned prefixes.
    """

    prompt_key: str
    requests: tuple[PrefixRequest, ...]


@dataclass(frozen=True, eq=False, slots=True)  # arrays have no single truth value to compare by
class PolicyResponse:
    """A response of one policy, without any historical token, with its reward; `replay` stores it as it is.

    Args:
        token_key: the prompt's data set index and a hash of its token ids.
        token_ids: (length,) int32, without the end-of-sequence token.
        log_probs: (length,) float32, behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the policy that sampled it (verl's `global_steps` of its weights).
        reward: of the whole response, as the reward function gave it.
        ended: an end-of-sequence token is known to have followed, and is left out. A response that fills the budget
            keeps what it has and counts as not ended.
    """

    token_key: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    policy_version: int
    reward: float
    ended: bool


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

    def plan(self, step: int) -> list[PromptPlan]:
        """The planned prefixes of a batch to come, in batch order."""
        ...

    def token_keys(self, step: int) -> list[str]:
        """Of every prompt of a batch to come: its data set index and a hash of its token ids."""
        ...

    def sample_heads(self, step: int) -> PendingPrefixes:
        """Ask the current policy, which the rollout engine holds now, for the heads that the plan of `step` wants."""
        ...

    def sample_prefixes(
        self, step: int, *, ages: Collection[int] | None = None, heads: list[GroupPrefixes] | None = None
    ) -> PendingPrefixes:
        """Ask the policy the rollout engine holds now for the planned prefixes of the batch of `step`.

        Args:
            step: the batch.
            ages: only the prefixes planned with one of these ages; all by default.
            heads: what the prefixes are to continue, by session.
        """
        ...

    def rescored(self, step: int, groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        """The same prefixes with the log-probs that the actor, with the weights it holds now, gives their historical
        tokens; unchanged where `soup.behavior_log_probs` is `rollout`. The rollout engine must be asleep."""
        ...

    def keep_policy(self, version: int) -> None:
        """Copy the actor's weights to host memory under `version`."""
        ...

    def drop_policy(self, version: int) -> None: ...

    def actor_holding(self, version: int) -> AbstractContextManager[Any]:
        """The actor holds the kept policy inside the block, its own weights again afterwards."""
        ...

    def rollout_awake(self, version: int) -> AbstractContextManager[Any]:
        """Inside the block the rollout engine has the actor's weights, known to it as `version`; then it sleeps."""
        ...

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None: ...

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None: ...


class PrefixSource(ABC):
    """Hands over the prefixes of each step's batch. The rest of the code cannot tell sources apart."""

    wants_responses = False
    """Whether `observe_responses` has a use for responses."""
    decodes_prefixes = True
    """Whether prefix tokens cost decoding; replayed ones do not."""

    @abstractmethod
    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        """The prefixes of the batch of `step`, in batch order; None while there is no history yet."""

    def before_first_step(self, step: int) -> None:
        """Training starts with `step`: the actor and the rollout engine hold version `step` - 1."""
        return

    def after_submit(self, step: int) -> None:
        """The batch of `step` has been submitted to the rollout engine."""
        return

    def before_sleep(self) -> None:
        """The rollout engine is about to give its memory back: no request of ours may be under way after this."""
        return

    def observe_responses(self, responses: Sequence[PolicyResponse]) -> None:
        """What the current policy answered, with rewards."""
        return

    def observe_kl(self, kl_by_age: Mapping[int, float], *, collapsed: bool) -> None:
        """Mean prefix KL (k3) of this step's batch by policy age, and whether it has been too low for too long."""
        return

    def before_update(self, step: int) -> None:
        """The actor still holds version `step` - 1; the rollout engine sleeps."""
        return

    def after_update(self, step: int) -> None:
        """The actor holds version `step`; the rollout engine holds no weights."""
        return

    def metrics(self) -> dict[str, float]:
        """Counters of the source, under their `soup/*` names."""
        return {}

    def without_history(self, step: int) -> list[int]:
        """The steps from `step` on that are known to be plain on-policy, at the start of a run."""
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything a resumed run needs into `folder`, which exists and is empty."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            ValueError: a file is missing or does not fit.
        """


__all__ = [
    "GroupPrefixes",
    "PendingPrefixes",
    "PolicyEngine",
    "PolicyResponse",
    "Prefix",
    "PrefixSource",
    "PromptPlan",
]
