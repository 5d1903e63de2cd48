"""Which responses take a prefix, and how long: a plan that depends on nothing but its seed and what prompts did before.

The plan of a step is a pure function of (seed, step, position of the prompt in the batch, session), so any number of
workers, a resumed run and a look-ahead all arrive at the same one. Only `when` looks at the past: `SolvedRates`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """A value over the steps of a run.

    Args:
        start: value at step 1.
        final: value from step `steps` on; None keeps `start`.
        steps: step at which `final` is reached.
        shape: `constant`, `linear` or `cosine`.
    """

    start: float
    final: float | None = None
    steps: int = 1
    shape: str = "constant"

    def at(self, step: int) -> float:
        """The value at `step`, counted from 1."""
        if self.final is None:
            return self.start
        progress = min(1.0, (step - 1) / (self.steps - 1)) if self.steps > 1 else 1.0
        return self.start + (self.final - self.start) * SHAPES[self.shape](progress)


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True)
class PrefixRequest:
    """One stretch of historical tokens to be had.

    Args:
        session: which response of the prompt it is for.
        length: at most so many tokens; 0 where `share` says it.
        share: share of the source response, above 0 and up to 1.
        head: tokens of the current policy that come before it.
        to_the_end: the historical policy writes the rest of the response; `length` is 0.
        age: steps between sampling and use, where the plan decides it; 0 where the source does.
    """

    session: int
    length: int = 0
    share: float | None = None
    head: int = 0
    to_the_end: bool = False
    age: int = 0


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
        low: shortest prefix, in tokens (whole) or as a share of the source response.
        high: longest prefix; uniform over both ends included.
        in_shares: `low` and `high` are shares.
        position: `prefix`, `middle` or `suffix`: where in the response the historical tokens stand.
        ages: ages in steps that the mixed responses of a prompt take in turn.
    """

    seed: int
    n: int
    mixed_fraction: Schedule
    low: float
    high: Schedule
    in_shares: bool = False
    position: str = "prefix"
    ages: tuple[int, ...] = (0,)

    def mixes(self, step: int) -> bool:
        """Whether any response of `step` is to be mixed."""
        return len(self._sessions(step)) > 0

    def plan_prompt(self, *, step: int, position: int) -> tuple[PrefixRequest, ...]:
        """The prefixes of the prompt at `position` (0-based) of the batch of `step`."""
        return tuple(self._request(step, position, i, s) for i, s in enumerate(self._sessions(step)))

    def plan_step(self, *, step: int, num_prompts: int) -> list[tuple[PrefixRequest, ...]]:
        """The prefixes of every prompt of `step`, in batch order."""
        return [self.plan_prompt(step=step, position=i) for i in range(num_prompts)]

    def longest(self, step: int) -> float:
        """The longest prefix that may be drawn at `step`: tokens, or a share."""
        high = max(self.low, self.high.at(step))
        return high if self.in_shares else int(high)

    def _sessions(self, step: int) -> range:
        return mixed_sessions(n=self.n, mixed_fraction=self.mixed_fraction.at(step))

    def _request(self, step: int, position: int, rank: int, session: int) -> PrefixRequest:
        age = self.ages[(position + rank) % len(self.ages)]
        drawn = self._draw("prefix_length", step, position, session)
        if self.in_shares:
            return PrefixRequest(session, share=drawn, age=age)
        if self.position == "suffix":
            return PrefixRequest(session, head=int(drawn), to_the_end=True, age=age)
        head = int(self._draw("head_length", step, position, session)) if self.position == "middle" else 0
        return PrefixRequest(session, int(drawn), head=head, age=age)

    def _draw(self, purpose: str, step: int, position: int, session: int) -> float:
        rng = random.Random(stable_seed(purpose, self.seed, step, position, session))
        if self.in_shares:
            return rng.uniform(self.low, self.longest(step))
        return rng.randint(int(self.low), int(self.longest(step)))


@dataclass
class SolvedRates:
    """The share of a prompt's responses that were right when it was last trained on; `when` decides by it.

    Args:
        when: `always`; `unsolved`: only prompts of which no response was right are mixed; `saturated`: only those of
            which every response was. A prompt that was never trained on is mixed.
        rates: prompt key -> rate, 0 to 1. Grows to one entry a prompt of the data set.
    """

    when: str = "always"
    rates: dict[str, float] = field(default_factory=dict)

    def record(self, prompt_key: str, rate: float) -> None:
        """Remember the last solved rate of a prompt."""
        if self.when != "always":
            self.rates[prompt_key] = rate

    def admits(self, prompt_key: str) -> bool:
        """Whether responses to this prompt may be mixed."""
        rate = self.rates.get(prompt_key)
        return rate is None or GATES[self.when](rate)


GATES: dict[str, Callable[[float], bool]] = {
    "always": lambda rate: True,
    "unsolved": lambda rate: rate == 0.0,
    "saturated": lambda rate: rate == 1.0,
}
