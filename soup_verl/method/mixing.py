"""Which responses of a prompt take a prefix, and how long each prefix is to be.

The plan of a step is a pure function of (seed, step, place of the prompt in the batch, session), so any number of
workers, a resumed run and a look-ahead all arrive at the same one. Under dynamic sampling, where nobody knows which
prompts a step will take, the whole stream is one batch, `STREAM`, and a prompt's place in it is its ordinal
(`history.ordinals`). With `soup.when` other than `always` a prompt's plan is used or dropped by how its responses did
at its last visit (`SolvedRates`); nothing else looks at the past.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

STREAM = 0
"""In place of a step, which are counted from 1: all prompts of a run are one batch, and a place in it is an ordinal."""
UNLEARNED = 1 << 30
"""In place of a policy's version: a copy of the current one that has unlearned (`history.forget`), which has no age."""


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
        position: `prefix`, `middle`, `suffix` or `whole`: where in the response the historical tokens stand.
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

    def plan_prompt(self, *, step: int, place: int, batch: int | None = None) -> tuple[PrefixRequest, ...]:
        """The prefixes of the prompt at `place` (0-based) of `batch`, which is that of `step` or `STREAM`; what is
        scheduled is as it is at `step`."""
        batch = step if batch is None else batch
        return tuple(self._request(step, batch, place, i, s) for i, s in enumerate(self._sessions(step)))

    def plan_step(
        self, *, step: int, num_prompts: int, batch: int | None = None, first: int = 0
    ) -> list[tuple[PrefixRequest, ...]]:
        """The prefixes of every prompt of `step`, in batch order; the first one's place is `first`."""
        return [self.plan_prompt(step=step, place=i, batch=batch) for i in range(first, first + num_prompts)]

    def rest(self, requests: tuple[PrefixRequest, ...], *, response_length: int) -> tuple[PrefixRequest, ...]:
        """The prompt's other responses as heads of all of `response_length`; none where nothing is mixed."""
        mixed = {r.session for r in requests}
        return tuple(PrefixRequest(s, head=response_length) for s in range(self.n) if mixed and s not in mixed)

    def longest(self, step: int) -> float:
        """The longest prefix that may be drawn at `step`: tokens, or a share."""
        high = max(self.low, self.high.at(step))
        return high if self.in_shares else int(high)

    def _sessions(self, step: int) -> range:
        return mixed_sessions(n=self.n, mixed_fraction=self.mixed_fraction.at(step))

    def _request(self, step: int, batch: int, place: int, rank: int, session: int) -> PrefixRequest:
        age = self.ages[(place + rank) % len(self.ages)]
        if self.position == "whole":
            return PrefixRequest(session, to_the_end=True, age=age)
        drawn = self._draw("prefix_length", step, batch, place, session)
        if self.in_shares:
            return PrefixRequest(session, share=drawn, age=age)
        if self.position == "suffix":
            return PrefixRequest(session, head=int(drawn), to_the_end=True, age=age)
        head = int(self._draw("head_length", step, batch, place, session)) if self.position == "middle" else 0
        return PrefixRequest(session, int(drawn), head=head, age=age)

    def _draw(self, purpose: str, step: int, batch: int, place: int, session: int) -> float:
        rng = random.Random(stable_seed(purpose, self.seed, batch, place, session))
        if self.in_shares:
            return rng.uniform(self.low, self.longest(step))
        return rng.randint(int(self.low), int(self.longest(step)))


@dataclass
class SolvedRates:
    """The share of a prompt's responses that were right when it was last trained on; `when` decides by it.

    Args:
        when: `always`; `unsolved`: only prompts of which no response was right are mixed; `saturated`: only those of
            which every response was; `medium`: only those in between. A prompt that was never trained on is mixed.
        start_above: nothing is mixed until more than this share of a batch's responses was right; None: no wait.
        rates: prompt key -> rate, 0 to 1. Grows to one entry a prompt of the data set.
    """

    when: str = "always"
    start_above: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    started: bool = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.start_above is None

    def record(self, prompt_key: str, rate: float) -> None:
        """Remember the last solved rate of a prompt."""
        if self.when != "always":
            self.rates[prompt_key] = rate

    def record_batch(self, rate: float) -> None:
        """Take in the solved rate of a whole batch: mixing starts with the first that is high enough, for good."""
        self.started = self.started or (self.start_above is not None and rate > self.start_above)

    def admits(self, prompt_key: str) -> bool:
        """Whether responses to this prompt may be mixed."""
        rate = self.rates.get(prompt_key)
        return self.started and (rate is None or GATES[self.when](rate))


GATES: dict[str, Callable[[float], bool]] = {
    "always": lambda rate: True,
    "unsolved": lambda rate: rate == 0.0,
    "saturated": lambda rate: rate == 1.0,
    "medium": lambda rate: 0.0 < rate < 1.0,
}
