"""`snapshot`: a buffer of past weights; each step the rollout engine borrows one and samples the prefixes.

This is the paper's buffer of historical policies (arXiv 2601.21476). The order of a step costs one extra weight load:
after the update of step t the rollout engine is empty, so it first takes pi_h, samples the prefixes of step t + 1, and
only then takes the current weights, which it needs anyway.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from soup_verl.history.base import GroupPrefixes, PolicyEngine, PrefixSource
from soup_verl.mixing import stable_seed

BUFFER_FILE = "snapshots.json"


class SnapshotSource(PrefixSource):
    """Prefixes from a kept policy, chosen anew for every step.

    Args:
        engine: samples prefixes; keeps and borrows weights.
        every: keep the policy of every `every`-th step.
        capacity: policies in the buffer; the oldest goes first.
        choice: `uniform`, `oldest` or `latest` of the kept policies that are older than the current one.
        seed: seed of the uniform choice.
        last_step: the last step of the run.
    """

    read_ahead = 1

    def __init__(self, engine: PolicyEngine, *, every: int, capacity: int, choice: str, seed: int, last_step: int):
        self._engine = engine
        self._every = every
        self._capacity = capacity
        self._choice = choice
        self._seed = seed
        self._last_step = last_step
        self._kept: list[int] = []
        self._ready: dict[int, list[GroupPrefixes]] = {}

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def after_update(self, step: int) -> None:
        if step < self._last_step:
            self._sample_for(step + 1)
        if step % self._every == 0 and step not in self._kept:
            self._keep(step)

    def _sample_for(self, step: int) -> None:
        if not self._kept or not self._engine.wants_prefixes(step):
            return
        with self._engine.borrowed_policy(self._choose(step)):
            self._ready[step] = self._engine.sample_prefixes(step).result()

    def _choose(self, step: int) -> int:
        if self._choice == "oldest":
            return self._kept[0]
        if self._choice == "latest":
            return self._kept[-1]
        return random.Random(stable_seed("snapshot", self._seed, step)).choice(self._kept)

    def _keep(self, version: int) -> None:
        self._engine.keep_policy(version)
        self._kept.append(version)
        while len(self._kept) > self._capacity:
            self._engine.drop_policy(self._kept.pop(0))

    def save(self, folder: Path) -> None:
        (folder / BUFFER_FILE).write_text(json.dumps({"versions": self._kept}))
        self._engine.save_policies(folder, self._kept)

    def load(self, folder: Path) -> None:
        try:
            self._kept = [int(v) for v in json.loads((folder / BUFFER_FILE).read_text())["versions"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / BUFFER_FILE}: not a readable list of kept policies ({error})") from error
        self._engine.load_policies(folder, self._kept)
