"""Dynamic sampling (`algorithm.filter_groups`) with mixing: what of it touches verl.

verl's replay buffer takes groups whose rewards are all alike out of a step, asks the trainer for new prompts in their
place, and throws away what is finished beyond the batch. `history.ordinals` decides which prompts get prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from soup_verl.method.history import GroupPrefixes, PromptBlocks
from soup_verl.method.mixing import STREAM
from soup_verl.stack.policy_engine import TrainerPolicyEngine


class NotingReplayBuffer(ReplayBuffer):
    """verl's buffer; groups that it drops are shown before they are gone.

    Args:
        buffer: as verl made it.
        note: is given the responses of the groups that are dropped.
    """

    def __init__(self, buffer: ReplayBuffer, note: Callable[[KVBatchMeta], None]):
        self.__dict__.update(vars(buffer))
        self._note = note

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        rows = {key: tag for key, tag in self.partitions[partition_id].items() if key.split("_")[0] in uids}
        if rows:
            self._note(KVBatchMeta(partition_id=partition_id, keys=list(rows), tags=list(rows.values())))
        super()._clear_groups(partition_id, uids)


@dataclass
class DynamicPolicyEngine(TrainerPolicyEngine):
    """The batch of a step to come is a block of the stream of prompts, of which verl's loader gives one at a time."""

    blocks: PromptBlocks = field(kw_only=True)

    def wants_prefixes(self, step: int) -> bool:
        return super().wants_prefixes(step) and self.blocks.has_prompts(step)

    def rescored(self, step: int, groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        """As ever, of the prompts that were not handed out while their prefixes were sampled: the last ones."""
        return super().rescored(step, groups[len(groups) - len(self.blocks.block(step)) :])

    def _place(self, step: int) -> tuple[int, int]:
        return STREAM, self.blocks.block(step).start

    def _batches(self, step: int) -> list[dict[str, Any]]:
        block, handed = self.blocks.block(step), self.blocks.handed
        return self.loader.peek(block.start - handed, block.stop - handed)
