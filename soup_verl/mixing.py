"""Which responses take a prefix, and how long: a plan that depends on nothing but its seed.

The plan of a step is a pure function of (seed, step, position of the prompt in the batch, session), so any number of
workers, a resumed run and a look-ahead all arrive at the same one.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class PrefixRequest:
    """One prefix to be sampled: for which session of the prompt, and at most how many tokens."""

    session: int
    length: int


def mixed_sessions(*, n: int, mixed_fraction: float) -> range:
    """The sessions of a prompt that are mixed: the last `round(mixed_fraction * n)` of `n`.

    Sessions of a prompt are exchangeable, so a fixed choice is as good as a random one. `round` is Python's: halves
    go to the even neighbour.
    """
    return range(n - round(mixed_fraction * n), n)


def stable_seed(*parts: object) -> int:
    """A 31-bit seed from the parts' text: the same in every process and Python version."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class MixingPlanner:
    """Plans a step's prefixes.

    Args:
        seed: the plan's seed.
        n: responses a prompt.
        mixed_fraction: share of them that is mixed, 0 to 1.
        low, high: prefix length in tokens, uniform over both ends included.
    """

    seed: int
    n: int
    mixed_fraction: float
    low: int
    high: int

    def mixes(self, step: int) -> bool:
        """Whether any response of `step` is to be mixed."""
        return len(mixed_sessions(n=self.n, mixed_fraction=self.mixed_fraction)) > 0

    def plan_prompt(self, *, step: int, position: int) -> tuple[PrefixRequest, ...]:
        """The prefixes of the prompt at `position` (0-based) of the batch of `step`."""
        sessions = mixed_sessions(n=self.n, mixed_fraction=self.mixed_fraction)
        return tuple(PrefixRequest(s, self._length(step, position, s)) for s in sessions)

    def plan_step(self, *, step: int, num_prompts: int) -> list[tuple[PrefixRequest, ...]]:
        """The prefixes of every prompt of `step`, in batch order."""
        return [self.plan_prompt(step=step, position=i) for i in range(num_prompts)]

    def _length(self, step: int, position: int, session: int) -> int:
        rng = random.Random(stable_seed("prefix_length", self.seed, step, position, session))
        return rng.randint(self.low, self.high)
