"""Where prefixes come from: the one interface all sources share.

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
from pathlib import Path
from typing import Any, Protocol

from soup_verl.method.history.prefixes import GroupPrefixes, PolicyResponse, PromptPlan
from soup_verl.method.sections import ForgetConfig


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

    def sample_rest(self, step: int) -> PendingPrefixes:
        """Ask the current policy, which the rollout engine holds now, for the other responses of the prompts that the
        plan of `step` has prefixes for: whole, and complete heads of no historical token."""
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
        """Copy the actor's weights, newer than those of all kept policies, to host memory under `version`."""
        ...

    def drop_policy(self, version: int) -> None:
        """Forget the oldest kept policy."""
        ...

    def kept_bytes(self) -> int:
        """Host memory of the kept policies, of all ranks together."""
        ...

    def actor_holding(self, version: int) -> AbstractContextManager[Any]:
        """Inside the block the kept policy is what the rollout engine is given and what scores; the actor's own weights
        are untouched."""
        ...

    def actor_unlearned(
        self, step: int, groups: list[GroupPrefixes], settings: ForgetConfig
    ) -> AbstractContextManager[list[float]]:
        """Inside the block the actor holds its weights after unlearning steps on the responses to the batch of `step`
        in `groups`, afterwards its own, bit for bit; its optimizer is untouched. Gives the norm of each step's gradient
        before it was clipped; one that is not finite made no step. The rollout engine must be asleep."""
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
    chooses_at_submission = False
    """Whether `prefixes` needs nothing but the prompts that are about to be submitted."""

    @abstractmethod
    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        """The prefixes of the batch of `step`, in batch order; None while there is no history yet."""

    def ready(self, step: int) -> list[GroupPrefixes] | None:
        """The prefixes of `step`, if they are there and this source asks the rollout engine for nothing more until
        `step` is over; None where that is not known."""
        return None

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

    def observe_solved(self, onpolicy: Mapping[str, float], mixed: Mapping[str, float]) -> None:
        """By prompt key: the share that was right of this step's on-policy responses, and of its mixed ones."""
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
