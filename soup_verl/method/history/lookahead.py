"""`lookahead`: the policy of step t samples the prefixes for the prompts of step t + age.

The order of prompts is known, so the policy that will be `age` steps old by then samples their prefixes now, where the
rollout engine has room beside the step's own responses, which go first (`prefix_sampler.PRIORITY`). No weights are
kept, none are switched, and every prefix token is decoded once. Until step `age` + 1 there is no history yet: those
steps are plain on-policy, or start from the initial policy if `warm_start` asks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from soup_verl.method.history.base import PendingPrefixes, PolicyEngine, PrefixSource
from soup_verl.method.history.prefixes import GroupPrefixes
from soup_verl.method.history.store import read_prefixes, write_prefixes

PREFIX_FILE = "pending_prefixes.parquet"


class LookaheadSource(PrefixSource):
    """Prefixes of one or more ages for every batch to come.

    Args:
        engine: samples prefixes.
        ages: steps between the sampling of a prefix and its use, each at least 1; the plan says which prefix has which.
        last_step: the last step of the run; nothing is sampled for steps beyond it.
        warm_start: at step 1 the initial policy samples whatever would find no policy old enough.
    """

    def __init__(self, engine: PolicyEngine, *, ages: Sequence[int], last_step: int, warm_start: bool = False):
        self._engine = engine
        self._ages = tuple(ages)
        self._last_step = last_step
        self._warm_start = warm_start
        self._ready: dict[int, list[GroupPrefixes]] = {}
        self._under_way: list[tuple[int, PendingPrefixes]] = []
        self._new: list[tuple[int, list[GroupPrefixes]]] = []  # sampled, with the rollout engine's own log-probs

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def after_submit(self, step: int) -> None:
        for age in self._ages:
            self._ask(step + age, {age})
        if step == 1 and self._warm_start:
            for target in range(2, max(self._ages) + 1):
                self._ask(target, {age for age in self._ages if age >= target})

    def _ask(self, target: int, ages: Collection[int]) -> None:
        if target <= self._last_step and self._engine.wants_prefixes(target):
            self._under_way.append((target, self._engine.sample_prefixes(target, ages=ages)))

    def before_sleep(self) -> None:
        self._new += [(step, pending.result()) for step, pending in self._under_way]
        self._under_way.clear()

    def before_update(self, step: int) -> None:
        for target, groups in self._new:
            groups = self._engine.rescored(target, groups)
            self._ready[target] = merged(self._ready[target], groups) if target in self._ready else groups
        self._new.clear()

    def without_history(self, step: int) -> list[int]:
        """At the start, and where a resumed run is extended."""
        warm = step == 1 and self._warm_start
        stop = 2 if warm else step + min(self._ages)
        steps = range(step, min(stop, self._last_step + 1))
        return [s for s in steps if s not in self._ready and self._engine.wants_prefixes(s)]

    def save(self, folder: Path) -> None:
        assert not self._under_way and not self._new, "prefixes are still being sampled"
        write_prefixes(folder / PREFIX_FILE, self._ready)

    def load(self, folder: Path) -> None:
        self._ready = read_prefixes(folder / PREFIX_FILE)


def merged(some: list[GroupPrefixes], others: list[GroupPrefixes]) -> list[GroupPrefixes]:
    """The prefixes of the same prompts, taken together."""
    groups = []
    for a, b in zip(some, others, strict=True):
        assert a.prompt_key == b.prompt_key and not a.by_session.keys() & b.by_session.keys(), (a, b)
        groups.append(GroupPrefixes(a.prompt_key, a.by_session | b.by_session))
    return groups
