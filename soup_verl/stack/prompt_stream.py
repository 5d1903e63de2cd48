"""A data loader that can be read ahead without anyone noticing.

`ReadAheadLoader` stands in for verl's stateful data loader. It hands out the same batches in the same order and
reports the same state, but lets `peek` look at batches that are still to come, across epoch ends. Its saved state is
the loader's own state right after the last batch handed out, so a checkpoint is the one that a run without reading
ahead would have written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol


class StatefulLoader(Protocol):
    """What is asked of the loader underneath (torchdata's StatefulDataLoader)."""

    def __iter__(self) -> Iterator[dict]: ...

    def __len__(self) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ReadAheadLoader:
    """Endless iterator over `loader`'s batches, epoch after epoch, with a view of those to come.

    Args:
        loader: the stateful loader underneath; nobody else may iterate it.
    """

    def __init__(self, loader: StatefulLoader):
        self._loader = loader
        self._batches: Iterator[dict] | None = None
        self._ahead: deque[tuple[dict, dict[str, Any]]] = deque()  # (batch, loader state right after it)
        self._state: dict[str, Any] | None = None  # state right after the last batch handed out

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._loader)

    def __iter__(self) -> ReadAheadLoader:
        return self

    def __next__(self) -> dict:
        """The next batch; never ends: after an epoch the next one begins."""
        if not self._ahead:
            self._read_one()
        batch, self._state = self._ahead.popleft()
        return batch

    def peek(self, start: int, stop: int) -> list[dict]:
        """The batches from `start` up to `stop` (exclusive) ahead; 0 is the one `next` would give. Takes nothing."""
        while len(self._ahead) < stop:
            self._read_one()
        return [self._ahead[i][0] for i in range(start, stop)]

    def state_dict(self) -> dict[str, Any]:
        """The loader's state right after the last batch handed out."""
        if self._state is None:
            assert not self._ahead, "nothing was handed out yet, and the loader has been read ahead"
            return self._loader.state_dict()
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)
        self._batches = None
        self._ahead.clear()
        self._state = state

    def _read_one(self) -> None:
        if self._batches is None:
            self._batches = iter(self._loader)
        try:
            batch = next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        self._ahead.append((batch, self._loader.state_dict()))
