"""`snapshot`: a buffer of past weights; each step the rollout engine borrows one and samples the prefixes.

This is the paper's buffer of historical policies (arXiv 2601.21476). The order of a step costs one extra weight load:
after the update of step t the rollout engine is empty, so it first takes pi_h, samples the prefixes of step t + 1, and
only then takes the current weights, which it needs anyway. Historical tokens in the middle or at the end of a response
cost a second one: the current policy samples the heads first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from soup_verl.method.history.base import PolicyEngine, PrefixSource
from soup_verl.method.history.kl_control import KlByAge
from soup_verl.method.history.prefixes import GroupPrefixes
from soup_verl.method.mixing import stable_seed
from soup_verl.method.sections import SnapshotConfig

BUFFER_FILE = "snapshots.json"


class SnapshotSource(PrefixSource):
    """Prefixes from a kept policy, chosen anew for every step.

    Args:
        engine: samples prefixes; keeps and holds weights.
        settings: how often a policy is kept, how many, and which of those older than the current one samples.
        seed: seed of the choice `uniform`.
        last_step: the last step of the run.
        target_kl: what the choice `auto` aims at, nats a token.
        heads_first: the historical tokens do not stand at the start of the response.
        keep_first: a policy is kept before the next prefixes are sampled, so that these may be its own: with one kept
            policy, the latest, the rollout policy is held for `settings.every` steps, of ages 0 to `every` - 1.
        warm_start: the initial policy serves until the first policy is kept.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        settings: SnapshotConfig,
        *,
        seed: int,
        last_step: int,
        target_kl: float | None = None,
        heads_first: bool = False,
        keep_first: bool = False,
        warm_start: bool = False,
    ):
        self._engine = engine
        self._settings = settings
        self._seed = seed
        self._last_step = last_step
        self._target_kl = target_kl
        self._heads_first = heads_first
        self._keep_first = keep_first
        self._warm_start = warm_start
        self._kept: list[int] = []
        self._kl_by_age = KlByAge()
        self._collapsed = False
        self._ready: dict[int, list[GroupPrefixes]] = {}

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def ready(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.get(step)

    def before_first_step(self, step: int) -> None:
        if step == 1 and self._warm_start:
            self._keep(0)

    def observe_kl(self, kl_by_age: Mapping[int, float], *, collapsed: bool) -> None:
        self._kl_by_age.observe(kl_by_age)
        self._collapsed = collapsed

    def after_update(self, step: int) -> None:
        if self._keep_first:
            self._keep_if_due(step)
        if step < self._last_step and self._kept and self._engine.wants_prefixes(step + 1):
            self._ready[step + 1] = self._sample(step + 1)
        self._keep_if_due(step)

    def _keep_if_due(self, step: int) -> None:
        if step % self._settings.every == 0 and step not in self._kept:
            self._keep(step)

    def _sample(self, step: int) -> list[GroupPrefixes]:
        heads = None
        if self._heads_first:
            with self._engine.rollout_awake(step - 1):
                heads = self._engine.sample_heads(step).result()
        version = self._choose(step)
        with self._engine.actor_holding(version) if version < step - 1 else nullcontext():
            with self._engine.rollout_awake(version):
                groups = self._engine.sample_prefixes(step, heads=heads).result()
            return self._engine.rescored(step, groups)

    def _choose(self, step: int) -> int:
        choice = "oldest" if self._collapsed else self._settings.choice
        if choice == "oldest":
            return self._kept[0]
        if choice == "latest":
            return self._kept[-1]
        if choice == "auto":
            assert self._target_kl is not None
            current = step - 1
            older = [current - v for v in self._kept if v < current]
            return current - self._kl_by_age.nearest(older, self._target_kl) if older else current
        return random.Random(stable_seed("snapshot", self._seed, step)).choice(self._kept)

    def _keep(self, version: int) -> None:
        if self._warm_start and self._kept == [0]:  # the initial policy has done its turn
            self._engine.drop_policy(self._kept.pop())
        while len(self._kept) >= self._settings.capacity:  # first: memory is for `capacity` policies
            self._engine.drop_policy(self._kept.pop(0))
        self._engine.keep_policy(version)
        self._kept.append(version)

    def metrics(self) -> dict[str, float]:
        kept = {"soup/kept_policies_total": len(self._kept), "soup/kept_policies_bytes": self._engine.kept_bytes()}
        return {name: float(value) for name, value in kept.items()}

    def save(self, folder: Path) -> None:
        state = {
            "versions": self._kept,
            "kl_by_age": {str(age): kl for age, kl in self._kl_by_age.means.items()},
            "collapsed": self._collapsed,
        }
        (folder / BUFFER_FILE).write_text(json.dumps(state))
        self._engine.save_policies(folder, self._kept)

    def load(self, folder: Path) -> None:
        try:
            state = json.loads((folder / BUFFER_FILE).read_text())
            self._kept = [int(v) for v in state["versions"]]
            self._kl_by_age = KlByAge({int(age): float(kl) for age, kl in state["kl_by_age"].items()})
            self._collapsed = bool(state["collapsed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / BUFFER_FILE}: not a readable list of kept policies ({error})") from error
        self._engine.load_policies(folder, self._kept)
