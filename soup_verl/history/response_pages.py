"""Memory for tokens that cannot fragment: pages of equal size."""

from __future__ import annotations

import numpy as np

PAGE = 64  # tokens
PAGE_BYTES = PAGE * (4 + 4) + 4 + 4  # int32 ids and float32 log-probs; its number in the free list and in an entry


class Pages:
    """Tokens in pages of equal size: however lengths vary, no memory is lost between them.

    The memory is reserved at once; the system hands it out as pages are first written.
    """

    def __init__(self, count: int):
        self._ids = np.empty((count, PAGE), np.int32)
        self._log_probs = np.empty((count, PAGE), np.float32)
        assert count < 2**31, count  # pages have int32 numbers
        self._free = np.arange(count, dtype=np.int32)[::-1].copy()  # a stack; the top is at `free` - 1
        self.free = count

    def write(self, token_ids: np.ndarray, log_probs: np.ndarray) -> bytes:
        """Copy a response's tokens, (length,) each, into free pages; returns their numbers, int32."""
        needed = pages_for(len(token_ids))
        taken = self._free[self.free - needed : self.free].copy()
        self.free -= needed
        for memory, values in ((self._ids, token_ids), (self._log_probs, log_probs)):
            full = len(values) // PAGE
            memory[taken[:full]] = values[: full * PAGE].reshape(full, PAGE)
            memory[taken[full:], : len(values) - full * PAGE] = values[full * PAGE :]
        return taken.tobytes()

    def read(self, numbers: bytes, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the token ids and log-probs, (length,) each."""
        taken = np.frombuffer(numbers, np.int32)
        return self._ids[taken].reshape(-1)[:length], self._log_probs[taken].reshape(-1)[:length]

    def release(self, numbers: bytes) -> None:
        taken = np.frombuffer(numbers, np.int32)
        self._free[self.free : self.free + len(taken)] = taken
        self.free += len(taken)


def pages_for(length: int) -> int:
    return -(-length // PAGE)
