"""Responses that earlier policies gave, by prompt, in bounded host memory."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from itertools import cycle, islice
from pathlib import Path

from soup_verl.method.history.prefixes import PolicyResponse, check_response
from soup_verl.method.history.response_choice import order
from soup_verl.method.history.response_file import read_responses, write_responses
from soup_verl.method.history.response_tokens import Entry, TokenBlock

TOKEN_BYTES = 10
"""Host memory of a token of capacity: an int32 id, a float32 log-prob, an eighth of them to spare, 1 for responses."""
RESPONSE_BYTES = 1024
"""Set aside for a response beside its tokens; measured: 550 to 770, with keys of 128 characters."""


class ResponseStore:
    """Responses of earlier policies, by prompt.

    Memory never exceeds `TOKEN_BYTES` x `capacity_tokens`, bookkeeping included, however lengths change.

    What goes, in this order: responses older than `max_policy_age` (`expire`); of a prompt with more than `per_prompt`,
    the oldest by version, then insertion; while the capacity runs out, the least recently added or chosen one.

    Args:
        capacity_tokens: most tokens; and most responses, times `RESPONSE_BYTES`.
        per_prompt: most responses a prompt may have, at least 1.
        max_policy_age: most versions a response's policy may lie behind the current one; None: any number.
    """

    def __init__(self, *, capacity_tokens: int, per_prompt: int, max_policy_age: int | None):
        assert capacity_tokens >= RESPONSE_BYTES and per_prompt > 0, (capacity_tokens, per_prompt)
        self._capacity_tokens = capacity_tokens
        self._per_prompt = per_prompt
        self._max_policy_age = max_policy_age
        try:
            self._block = TokenBlock(capacity_tokens)
        except MemoryError as error:
            raise ValueError(f"soup.replay.capacity_tokens={capacity_tokens}: take fewer; {error}") from error
        self._by_use: OrderedDict[int, Entry] = OrderedDict()  # by serial, the least recently used first
        self._by_prompt: dict[str, list[int]] = {}  # serials by version, then insertion
        self._next_serial = 0  # serials number the insertions
        self._current_version = 0
        self.tokens = 0
        """Tokens of all stored responses."""

    def __len__(self) -> int:
        return len(self._by_use)

    def add(self, response: PolicyResponse) -> None:
        """Store a copy. ValueError: the response is malformed (see `check_response`) or longer than the capacity."""
        check_response(response)
        self._insert(self._next_serial, response)

    def expire(self, current_version: int) -> None:
        """Drop every response with `current_version - policy_version > max_policy_age`, and refuse such from now on."""
        self._current_version = max(self._current_version, current_version)
        for serial in [serial for serial, entry in self._by_use.items() if self._is_expired(entry.facts)]:
            self._drop(serial)

    def choose(self, token_key: str, count: int, *, choice: str, seed: int) -> list[PolicyResponse]:
        """`count` responses of the prompt, distinct while they last, then the same again; they count as used now.

        Args:
            choice: one of `response_choice.CHOICES`.
            seed: of this choice alone; `uniform` depends on it.

        Returns:
            Copies, first choice first; none if the prompt has no response to choose.
        """
        serials = self._by_prompt.get(token_key, [])
        responses = [self._block.read(self._by_use[serial]) for serial in serials]
        chosen = list(islice(cycle(order(responses, choice, seed)), count))
        for i in chosen:
            self._by_use.move_to_end(serials[i])
        return [responses[i] for i in chosen]

    def save(self, path: Path) -> None:
        """Write everything into one parquet file, least recently used first."""
        rows = ((serial, self._block.read(entry)) for serial, entry in self._by_use.items())
        write_responses(path, rows, current_version=self._current_version)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote into this empty store, under its own limits; errors as `read_responses`."""
        with read_responses(path) as (self._current_version, rows):
            for serial, response in rows:
                self._insert(serial, response)

    def _is_expired(self, response: PolicyResponse) -> bool:
        age = self._current_version - response.policy_version
        return self._max_policy_age is not None and age > self._max_policy_age

    def _order(self, serial: int) -> tuple[int, int]:
        return self._by_use[serial].facts.policy_version, serial

    def _insert(self, serial: int, response: PolicyResponse) -> None:
        """Store a copy of a response that has passed `check`, after dropping what has to go to make room for it."""
        length = len(response.token_ids)
        if length > self._capacity_tokens:
            raise ValueError(
                f"soup.replay.capacity_tokens={self._capacity_tokens}: expected many times the longest response, "
                f"got one of {length} tokens"
            )
        self._next_serial = max(self._next_serial, serial + 1)
        if self._is_expired(response):
            return
        siblings = self._by_prompt.get(response.token_key, [])
        if len(siblings) == self._per_prompt:
            if (response.policy_version, serial) < self._order(siblings[0]):
                return  # the new one is the oldest
            self._drop(siblings[0])
        while self.tokens + length > self._capacity_tokens or len(self) == self._capacity_tokens // RESPONSE_BYTES:
            self._drop(next(iter(self._by_use)))
        self._by_use[serial] = self._block.write(response, self._by_use.values())
        insort(self._by_prompt.setdefault(response.token_key, []), serial, key=self._order)
        self.tokens += length

    def _drop(self, serial: int) -> None:
        entry = self._by_use.pop(serial)
        siblings = self._by_prompt[entry.facts.token_key]
        siblings.remove(serial)
        if not siblings:
            del self._by_prompt[entry.facts.token_key]
        self.tokens -= entry.length
