"""Prefixes by the ordinals of their prompts, for dynamic sampling (`algorithm.filter_groups`).

verl replaces a group whose rewards are all alike by new prompts, so a step takes as many prompts as it happens to, and
nobody knows ahead which step will take which. What is known is the order: a prompt's ordinal is the number of prompts
that were handed out before it, over all epochs. A source goes on asking for the prefixes of step t, which here are
those of a block of ordinals. It is fixed when a source first asks for it, in step s:

    first ordinal of s + (t - s) * B   up to   first ordinal of s + (t - s + 1) * C
    with B the prompts that a step trains on, and C the most that one of the last `RECENT` steps took

without those of other blocks: from the first prompt that step t can take to the last that it takes if steps go on as
they did. If they take more, a prompt beyond the last block is answered on-policy; if fewer, a prefix waits, and is
older than was planned. No log-prob depends on that: every prefix has its policy's version.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

from soup_verl.method.history.base import PrefixSource
from soup_verl.method.history.lookahead import merged
from soup_verl.method.history.prefixes import GroupPrefixes
from soup_verl.method.history.store import read_prefixes, write_prefixes

RECENT = 4
STATE_FILE = "ordinals.json"
PREFIX_FILE = "prefixes_by_ordinal.parquet"


class PromptBlocks:
    """Which prompts a source samples for, and what is ready for them.

    Args:
        prompts_a_step: prompts that a step trains on. A step before the first is taken to have taken twice as many.
    """

    def __init__(self, prompts_a_step: int):
        self.handed = 0
        """Prompts that were handed out so far: the ordinal of the next one."""
        self._prompts_a_step = prompts_a_step
        self._refilled_mixed = 0
        self._step, self._first = 1, 0  # the step under way, and the ordinal of its first prompt
        self._taken = deque([2 * prompts_a_step], maxlen=RECENT)
        self._blocks: dict[int, range] = {}  # by step; those that are not handed out yet
        self._ready: dict[int, GroupPrefixes] = {}

    def block(self, step: int) -> range:
        """The ordinals of the prompts that are sampled for as those of `step`, without those handed out already."""
        block = self._blocks.setdefault(step, self._next_block(step))
        return range(max(block.start, self.handed), max(block.stop, self.handed))

    def has_prompts(self, step: int) -> bool:
        """Whether `block` has any; not so where earlier blocks reach further than a step. Fixes nothing."""
        block = self._blocks.get(step, self._next_block(step))
        return block.stop > max(block.start, self.handed)

    def _next_block(self, step: int) -> range:
        ahead, batch, most = step - self._step, self._prompts_a_step, max(self._taken)
        earlier = [b.stop for s, b in self._blocks.items() if s < step]
        later = [b.start for s, b in self._blocks.items() if s > step]
        start = max(self._first + ahead * batch, self.handed, *earlier)
        return range(start, max(start, min([self._first + (ahead + 1) * most, *later])))

    def take(self, count: int, source: PrefixSource) -> list[GroupPrefixes | None]:
        """Hand out the next `count` prompts: the prefixes that are ready for each of them."""
        ordinals = range(self.handed, self.handed + count)
        if source.chooses_at_submission:
            self._blocks = {self._step: ordinals}
        self._collect(source)
        groups = [self._ready.pop(ordinal, None) for ordinal in ordinals]
        if self.handed > self._first:
            self._refilled_mixed += sum(group is not None and len(group.by_session) > 0 for group in groups)
        self.handed = ordinals.stop
        return groups

    def metrics(self) -> dict[str, float]:
        """Of the step under way: prompts that it took in place of others, and those of them that have prefixes."""
        return {
            "soup/refilled_prompts_total": float(self.handed - self._first - self._prompts_a_step),
            "soup/refilled_mixed_prompts_total": float(self._refilled_mixed),
        }

    def end_step(self, step: int, source: PrefixSource) -> None:
        """All prompts that `step` takes were handed out; what the source has sampled meanwhile is taken over."""
        self._collect(source)
        if self.handed > self._first:
            self._taken.append(self.handed - self._first)
        self._step, self._first, self._refilled_mixed = step + 1, self.handed, 0
        self._blocks = {s: block for s, block in self._blocks.items() if block.stop > self.handed}

    def _collect(self, source: PrefixSource) -> None:
        """Take over what the source has sampled and the engine has scored, which is of no prompt that is gone."""
        for step, block in self._blocks.items():
            groups = source.prefixes(step) or []  # of the block's last prompts: some may have been gone when it asked
            for ordinal, group in zip(range(block.stop - len(groups), block.stop), groups, strict=True):
                known = self._ready.get(ordinal)
                self._ready[ordinal] = merged([known], [group])[0] if known else group

    def save(self, folder: Path, source: PrefixSource) -> None:
        """Write what a resumed run needs; the source has then nothing left that it sampled."""
        self._collect(source)
        state = {
            "handed": self.handed,
            "step": self._step,
            "first": self._first,
            "taken": list(self._taken),
            "blocks": {step: [block.start, block.stop] for step, block in self._blocks.items()},
        }
        (folder / STATE_FILE).write_text(json.dumps(state))
        write_prefixes(folder / PREFIX_FILE, {ordinal: [group] for ordinal, group in self._ready.items()})

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; raises ValueError if a file is missing or does not fit."""
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            self.handed, self._step, self._first = (int(state[name]) for name in ("handed", "step", "first"))
            self._taken = deque(map(int, state["taken"]), maxlen=RECENT)
            self._blocks = {int(step): range(*block) for step, block in state["blocks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / STATE_FILE}: not the state of a stream of prompts ({error})") from error
        self._ready = {ordinal: groups[0] for ordinal, groups in read_prefixes(folder / PREFIX_FILE).items()}
