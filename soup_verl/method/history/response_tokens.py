"""The tokens of stored responses, end to end in one block of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soup_verl.method.history.prefixes import MAX_TOKEN_ID, PolicyResponse

TOKEN_FIELDS = {"token_ids": np.int32, "log_probs": np.float32}
"""What a response has of every token."""
OTHERS, TURN = np.int32(-(2**31)), np.int32(2**30)
"""Flags of a token in the bits above its id: the policy did not generate it; a turn of the policy begins with it."""


@dataclass(slots=True)
class Entry:
    """A stored response: `facts` without what it has of every token, which is `length` long from `start` on."""

    facts: PolicyResponse
    start: int
    length: int


class TokenBlock:
    """One array for each of `TOKEN_FIELDS`, an eighth longer than `capacity`; masks and turns are flags in the ids.

    New tokens are written behind the others. When the end is reached, what is stored moves to the beginning, without
    gaps: as long as no more than `capacity` tokens are kept, at most eight move for each added one.
    """

    def __init__(self, capacity: int):
        self.end = 0  # behind the token that lies last
        self._size = capacity * 9 // 8
        self._fields = {f: np.empty(self._size, dtype) for f, dtype in TOKEN_FIELDS.items()}

    def write(self, response: PolicyResponse, kept: Iterable[Entry]) -> Entry:
        """Copy the tokens of a response; `kept` are all entries whose tokens must stay, and may move."""
        length = len(response.token_ids)
        if self.end + length > self._size:
            self.end = 0
            for entry in sorted(kept, key=lambda e: e.start):
                for field in self._fields.values():
                    field[self.end : self.end + entry.length] = field[entry.start : entry.start + entry.length]
                entry.start, self.end = self.end, self.end + entry.length
        tokens = slice(self.end, self.end + length)
        self._fields["token_ids"][tokens], self._fields["log_probs"][tokens] = _with_flags(response), response.log_probs
        self.end += length
        no_tokens: dict[str, Any] = {"token_ids": None, "log_probs": None, "loss_mask": None, "turn_starts": ()}
        return Entry(replace(response, **no_tokens), self.end - length, length)

    def read(self, entry: Entry) -> PolicyResponse:
        """A copy of the response that was written."""
        tokens = slice(entry.start, entry.start + entry.length)
        flagged, log_probs = self._fields["token_ids"][tokens], self._fields["log_probs"][tokens].copy()
        return replace(entry.facts, **_without_flags(flagged), log_probs=log_probs)


def _with_flags(response: PolicyResponse) -> np.ndarray:
    """(length,) int32: the token ids, with what `loss_mask` and `turn_starts` say in the bits above them."""
    ids = response.token_ids.copy()
    if response.loss_mask is not None:
        ids[response.loss_mask == 0] |= OTHERS
    ids[list(response.turn_starts)] |= TURN
    return ids


def _without_flags(ids: np.ndarray) -> dict[str, Any]:
    """The fields that `_with_flags` took; a mask of nothing but ones is none."""
    own = (ids & OTHERS) == 0
    return {
        "token_ids": ids & np.int32(MAX_TOKEN_ID),
        "loss_mask": None if own.all() else own.astype(np.int8),
        "turn_starts": tuple(np.flatnonzero(ids & TURN).tolist()),
    }
