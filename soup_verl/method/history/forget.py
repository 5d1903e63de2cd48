"""`forget`: a part of each group comes from a copy of the current policy that has unlearned the other part.

A historical policy need not be older. The current policy writes the on-policy responses of the next batch; a copy of it
takes unlearning steps on them, which lower the probability of what was just sampled; the copy samples the prefixes, or
with `position: whole` the responses, of the rest of each group. Every token has the log-prob of the policy that sampled
it. Over all that it might have sampled the gradient of a policy's mean log-prob is 0: a step moves against what these
samples happen to hold too much of.

The surrogate is that of PROPS (arXiv 2311.08290), read in its authors' code, which takes many epochs of Adam up to a
target KL on control tasks. Part of a group, unlearning, the rest of the group is the order of EEPO (arXiv 2510.05837),
of which only the abstract was at hand: its own loss is not available to us. The few plain gradient steps, clipped as
the actor's, are ours.

verl starts all sessions of a prompt at once, so this happens between two steps: after the update of step t the rollout
engine takes the current weights for the on-policy responses of step t + 1, then the copy's for the prefixes, then the
current ones again for the continuations. That is two extra weight loads, one with `position: whole`, and three kinds of
tokens that wait for one another.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from soup_verl.method.history.base import PolicyEngine, PrefixSource
from soup_verl.method.history.lookahead import merged
from soup_verl.method.history.prefixes import GroupPrefixes
from soup_verl.method.mixing import UNLEARNED
from soup_verl.method.sections import ForgetConfig


class ForgetSource(PrefixSource):
    """Prefixes from a copy of the current policy, and the on-policy responses that it unlearned.

    Args:
        engine: samples, and makes the copy.
        settings: of the unlearning.
        last_step: the last step of the run.
    """

    def __init__(self, engine: PolicyEngine, settings: ForgetConfig, *, last_step: int):
        self._engine = engine
        self._settings = settings
        self._last_step = last_step
        self._ready: dict[int, list[GroupPrefixes]] = {}
        self._norms: list[float] = []

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def ready(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.get(step)

    def after_update(self, step: int) -> None:
        self._norms = []
        if step < self._last_step and self._engine.wants_prefixes(step + 1):
            self._ready[step + 1] = self._sample(step + 1)

    def _sample(self, step: int) -> list[GroupPrefixes]:
        with self._engine.rollout_awake(step - 1):
            own = self._engine.sample_rest(step).result()
        if not any(group.by_session for group in own):  # `soup.when` keeps every prompt out
            return own
        with self._engine.actor_unlearned(step, own, self._settings) as self._norms:
            with self._engine.rollout_awake(UNLEARNED):
                groups = self._engine.sample_prefixes(step).result()
            return merged(own, self._engine.rescored(step, groups))

    def without_history(self, step: int) -> list[int]:
        return [1] if step == 1 and self._engine.wants_prefixes(1) else []

    def metrics(self) -> dict[str, float]:
        """Of this step's prefixes: unlearning steps behind them, without those whose gradient was not finite."""
        taken = [norm for norm in self._norms if math.isfinite(norm)]
        found = {"soup/unlearning_steps_total": float(len(taken))}
        return found | ({"soup/unlearning_grad_norm_mean": fmean(taken)} if taken else {})

    def save(self, folder: Path) -> None:
        """Nothing: a resumed run samples and unlearns anew."""

    def load(self, folder: Path) -> None:
        """Nothing."""
