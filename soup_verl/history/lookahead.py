"""`lookahead`: the policy of step t samples the prefixes for the prompts of step t + age.

The order of prompts is known, so the policy that will be `age` steps old by then samples their prefixes now, in the
tail in which the rollout engine waits for its longest answers. No weights are kept, none are switched, and every
prefix token is decoded once. Steps 1 .. age have no history yet and are plain on-policy.
"""

from __future__ import annotations

from pathlib import Path

from soup_verl.history.base import GroupPrefixes, PendingPrefixes, PolicyEngine, PrefixSource
from soup_verl.history.store import read_prefixes, write_prefixes

PREFIX_FILE = "pending_prefixes.parquet"


class LookaheadSource(PrefixSource):
    """Prefixes of age `age` steps for every batch from step `age + 1` on.

    Args:
        engine: samples prefixes.
        age: steps between the sampling of a prefix and its use, at least 1.
        last_step: the last step of the run; nothing is sampled for steps beyond it.
    """

    def __init__(self, engine: PolicyEngine, *, age: int, last_step: int):
        self.read_ahead = age
        self._engine = engine
        self._age = age
        self._last_step = last_step
        self._ready: dict[int, list[GroupPrefixes]] = {}
        self._under_way: dict[int, PendingPrefixes] = {}

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def after_submit(self, step: int) -> None:
        target = step + self._age
        if target <= self._last_step and self._engine.wants_prefixes(target):
            self._under_way[target] = self._engine.sample_prefixes(target)

    def before_sleep(self) -> None:
        for step, pending in self._under_way.items():
            self._ready[step] = pending.result()
        self._under_way.clear()

    def without_history(self, step: int) -> list[int]:
        """The steps from `step` on that will be plain on-policy: at the start, and where a resumed run is extended."""
        stop = min(step + self._age, self._last_step + 1)
        return [s for s in range(step, stop) if s not in self._ready and self._engine.wants_prefixes(s)]

    def save(self, folder: Path) -> None:
        assert not self._under_way, f"prefixes of steps {sorted(self._under_way)} are still being sampled"
        write_prefixes(folder / PREFIX_FILE, self._ready)

    def load(self, folder: Path) -> None:
        self._ready = read_prefixes(folder / PREFIX_FILE)
