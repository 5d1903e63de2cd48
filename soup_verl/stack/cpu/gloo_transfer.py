"""verl's checkpoint engine over gloo: weights on their way from the trainer's pool to the rollout engine's.

FSDP rank 0 -- gather, one weight at a time --> broadcast --> every worker of the rollout pool --> its engine
other FSDP ranks, which take part in the gathering
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroupGloo
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry
from verl.utils.net_utils import get_free_port

from soup_verl.stack.cpu.rendezvous import store_at

NOBODY = -1
"""Rank of a worker that is not in the group."""
LIMIT = timedelta(minutes=10)
"""For one weight: as long as verl lets a collective take by default."""


@CheckpointEngineRegistry.register("nccl")  # as verl's HCCL engine has it, so that a GPU's settings run here
@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """A group of its own for every transfer, beside the groups that a process is in.

    Args:
        bucket_size: not used: weights go one by one.
        is_master: whether this is the trainer's first rank, which sends.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self._is_master = is_master
        self._group: ProcessGroupGloo | None = None

    def prepare(self) -> tuple[str, int] | None:
        """Where the group will meet, if this is the sender: address and port."""
        if not self._is_master:
            return None
        host = ray.util.get_node_ip_address().strip("[]")
        return host, get_free_port(host)[0]

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """`rank`, `world_size` and `meet_at` of every worker of both pools; the sender's rank is 0."""
        world_size = 1 + rollout_world_size

        def of(ranks: list[int]) -> dict[str, list[Any]]:
            everywhere = {"world_size": world_size, "meet_at": metadata[0]}
            return {"rank": ranks} | {name: [value] * len(ranks) for name, value in everywhere.items()}

        return of([0] + [NOBODY] * (actor_wg_world_size - 1)), of(list(range(1, world_size)))

    def init_process_group(self, rank: int, world_size: int, meet_at: tuple[str, int]) -> None:
        if rank != NOBODY:
            self._group = ProcessGroupGloo(store_at(*meet_at, rank, world_size), rank, world_size, LIMIT)

    def finalize(self) -> None:
        self._group = None

    @torch.no_grad()
    async def send_weights(
        self, weights: Generator[tuple[str, Tensor], None, None], global_steps: int | None = None
    ) -> None:
        """Send what `weights` yields, names and whole tensors, from rank 0."""
        for name, weight in weights:  # on every rank: each has a part of each weight
            if self._group is not None:
                await self._say({"name": name, "shape": list(weight.shape), "dtype": str(weight.dtype)})
                await self._broadcast(weight.contiguous().view(-1).view(torch.uint8))
        if self._group is not None:
            await self._say(None)

    @torch.no_grad()
    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, Tensor], None]:
        """What was sent, in its order."""
        while (told := await self._listen()) is not None:
            weight = torch.empty(told["shape"], dtype=getattr(torch, told["dtype"].removeprefix("torch.")))
            await self._broadcast(weight.view(-1).view(torch.uint8))
            yield told["name"], weight

    async def _say(self, message: dict[str, Any] | None) -> None:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        await self._broadcast(torch.tensor([len(text)]))
        await self._broadcast(text)

    async def _listen(self) -> dict[str, Any] | None:
        length = torch.zeros(1, dtype=torch.long)
        await self._broadcast(length)
        text = torch.empty(int(length), dtype=torch.uint8)
        await self._broadcast(text)
        return json.loads(text.numpy().tobytes())

    async def _broadcast(self, tensor: Tensor) -> None:
        """From rank 0 into the tensors of the others; the worker answers other calls meanwhile."""
        assert self._group is not None
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        work = self._group.broadcast([tensor], options)  # type: ignore[attr-defined]  # torch's stub leaves it out
        await asyncio.to_thread(work.wait)
