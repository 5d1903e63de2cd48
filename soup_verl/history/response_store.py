"""Responses that earlier policies gave, by prompt, in bounded host memory and in one file on disk.

A stored response is a member of three structures, none of which is ever scanned as a whole:

    its prompt's list   by version, then insertion    choose; the first one goes when the prompt has too many
    the chain by use    least recently used first     the first one goes when the capacity is exceeded; order on disk
    its version's chain                               expire
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soup_verl.history.response_choice import CHOICES
from soup_verl.history.response_file import StoredResponse, checked, read_responses, read_state, write_responses
from soup_verl.history.response_pages import PAGE, PAGE_BYTES, Pages, pages_for

RESPONSE_BYTES = 896
"""Set aside for a response beside its pages.

Measured (CPython 3.11, prompt keys of 128 characters, the tables' growth included): 460 bytes for one of many responses
of a prompt and a version, 750 for the only one of its prompt and its version.
"""


class _Entry:
    """A stored response without its tokens, and its places in the store's structures."""

    __slots__ = (
        "colder",
        "elder",
        "hotter",
        "length",
        "pages",
        "policy_version",
        "prompt_key",
        "reward",
        "serial",
        "surprisal",
        "younger",
    )

    def __init__(self, prompt_key: str, response: StoredResponse, serial: int, pages: bytes):
        self.prompt_key = prompt_key
        self.policy_version = response.policy_version
        self.reward = response.reward
        self.surprisal = -float(response.log_probs.mean(dtype=np.float64))
        self.length = len(response.token_ids)
        self.serial = serial
        self.pages = pages

    @property
    def order(self) -> tuple[int, int]:
        """By version, then insertion."""
        return self.policy_version, self.serial


class _Chain:
    """A doubly linked list through two attributes of its members: O(1) everywhere, and no table of its own."""

    __slots__ = ("first", "last")
    before: ClassVar[str]
    after: ClassVar[str]

    def __init__(self) -> None:
        self.first: _Entry | None = None
        self.last: _Entry | None = None

    def append(self, entry: _Entry) -> None:
        setattr(entry, self.before, self.last)
        setattr(entry, self.after, None)
        if self.last is None:
            self.first = entry
        else:
            setattr(self.last, self.after, entry)
        self.last = entry

    def remove(self, entry: _Entry) -> None:
        before, after = getattr(entry, self.before), getattr(entry, self.after)
        if before is None:
            self.first = after
        else:
            setattr(before, self.after, after)
        if after is None:
            self.last = before
        else:
            setattr(after, self.before, before)

    def __iter__(self) -> Iterator[_Entry]:
        entry = self.first
        while entry is not None:
            yield entry
            entry = getattr(entry, self.after)


class _ByUse(_Chain):
    __slots__ = ()
    before, after = "colder", "hotter"


class _OfVersion(_Chain):
    __slots__ = ()
    before, after = "elder", "younger"


class ResponseStore:
    """Responses of earlier policies, by prompt.

    Memory: it never takes more than 8 bytes x `capacity_tokens`, bookkeeping included, whatever the order and lengths
    of what is added. Seven eighths are pages of 64 tokens; the last eighth is the bookkeeping of at most
    `capacity_tokens` / 896 responses. So it holds up to 0.86 x `capacity_tokens` tokens of responses that are longer
    than some 800 tokens on average, and proportionally fewer tokens of shorter ones.

    What goes, in this order: responses older than `max_policy_age` (`expire`); of a prompt with more than `per_prompt`,
    the oldest by version, then insertion; while pages or bookkeeping run out, the least recently added or chosen one.

    Every operation costs O(log n) bookkeeping a response it adds, drops or considers; saving and loading walk all once.

    Args:
        capacity_tokens: see above.
        per_prompt: most responses a prompt may have, at least 1.
        max_policy_age: most versions a response's policy may lie behind the current one; None: any number.

    Raises:
        ValueError: the capacity has no room for a single response, or is more than the machine has.
    """

    def __init__(self, *, capacity_tokens: int, per_prompt: int, max_policy_age: int | None):
        assert per_prompt > 0, per_prompt
        assert max_policy_age is None or max_policy_age >= 0, max_policy_age
        self._capacity_tokens = capacity_tokens
        self._max_responses, self._max_pages = _limits(capacity_tokens)
        self._per_prompt = per_prompt
        self._max_policy_age = max_policy_age
        self._pages = _reserve(self._max_pages, capacity_tokens)
        self._by_prompt: dict[str, list[_Entry]] = {}
        self._by_version: dict[int, _OfVersion] = {}
        self._by_use = _ByUse()
        self._responses = 0
        self._tokens = 0
        self._next_serial = 0
        self._current_version = 0
        self._evicted = {"age": 0, "per_prompt": 0, "capacity": 0}

    def __len__(self) -> int:
        return self._responses

    @property
    def tokens(self) -> int:
        """Tokens of all stored responses."""
        return self._tokens

    def stats(self) -> dict[str, int]:
        """Counts: what is stored, the bytes it takes of those it may take, and what was evicted since the start."""
        used_pages = self._max_pages - self._pages.free
        return {
            "responses": self._responses,
            "prompts": len(self._by_prompt),
            "tokens": self._tokens,
            "bytes": used_pages * PAGE_BYTES + self._responses * RESPONSE_BYTES,
            "bytes_bound": 8 * self._capacity_tokens,
        } | {f"evicted_by_{cause}": count for cause, count in self._evicted.items()}

    def responses_of(self, prompt_key: str) -> list[StoredResponse]:
        """The prompt's responses by version, then insertion; does not count as use."""
        return [self._response(entry) for entry in self._by_prompt.get(prompt_key, ())]

    def add(self, prompt_key: str, responses: Sequence[StoredResponse]) -> None:
        """Store copies of a prompt's responses, in this order; all of them or, on an error, none.

        Raises:
            ValueError: a response is malformed (see `checked`), or longer than the whole capacity.
        """
        sound = [checked(prompt_key, response) for response in responses]
        for response in sound:
            self._check_fits(response)
        for response in sound:
            self._insert(prompt_key, response, self._next_serial)

    def expire(self, current_version: int) -> None:
        """Drop every response with `current_version - policy_version > max_policy_age`, and refuse such from now on."""
        self._current_version = max(self._current_version, current_version)
        for version in [v for v in self._by_version if self._is_expired(v)]:
            for entry in list(self._by_version[version]):
                self._evict(entry, "age")

    def choose(self, prompt_key: str, count: int, *, choice: str, seed: int) -> list[StoredResponse]:
        """`count` responses of the prompt, distinct while they last, then the same again; they count as used now.

        Args:
            choice: a name of `CHOICES`.
            seed: of this choice alone; `uniform` depends on it.

        Returns:
            Copies, first choice first; none if the prompt has no response.

        Raises:
            ValueError: there is no such choice.
        """
        if choice not in CHOICES:
            raise ValueError(f"soup.replay.choice={choice!r}: expected one of {', '.join(CHOICES)}")
        entries = self._by_prompt.get(prompt_key)
        if entries is None:
            return []
        order = CHOICES[choice](entries, seed)
        chosen = [entries[order[i % len(order)]] for i in range(count)]
        for entry in chosen:
            self._by_use.remove(entry)
            self._by_use.append(entry)
        return [self._response(entry) for entry in chosen]

    def save(self, path: Path) -> None:
        """Write everything into one parquet file, least recently used first, a few megabytes at a time."""
        rows = ((entry.prompt_key, entry.serial, self._response(entry)) for entry in self._by_use)
        write_responses(path, rows, {"current_version": self._current_version, "evicted": self._evicted})

    @classmethod
    def load(cls, path: Path, *, capacity_tokens: int, per_prompt: int, max_policy_age: int | None) -> ResponseStore:
        """The store that `save` wrote: with the same limits it behaves as the saved one would have from there on.

        Tighter limits apply at once. Reads a few megabytes at a time.

        Raises:
            ValueError: the file is missing, torn or not a file of stored responses; names it.
        """
        store = cls(capacity_tokens=capacity_tokens, per_prompt=per_prompt, max_policy_age=max_policy_age)
        try:
            with pq.ParquetFile(path) as file:
                state = read_state(file)
                store._current_version, store._evicted = state["current_version"], state["evicted"]
                for prompt_key, serial, response in read_responses(file):
                    store._check_fits(response)
                    store._insert(prompt_key, response, serial)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not usable as a file of stored responses ({error})") from error
        return store

    def _is_expired(self, version: int) -> bool:
        return self._max_policy_age is not None and self._current_version - version > self._max_policy_age

    def _response(self, entry: _Entry) -> StoredResponse:
        return StoredResponse(*self._pages.read(entry.pages, entry.length), entry.policy_version, entry.reward)

    def _check_fits(self, response: StoredResponse) -> None:
        length = len(response.token_ids)
        if pages_for(length) > self._max_pages:
            raise ValueError(
                f"soup.replay.capacity_tokens={self._capacity_tokens}: a response of {length} tokens is longer than "
                f"the {self._max_pages * PAGE} that fit; raise it to many times the longest response"
            )

    def _insert(self, prompt_key: str, response: StoredResponse, serial: int) -> None:
        """Store one response that is in order, after making room for it."""
        self._next_serial = max(self._next_serial, serial + 1)
        if self._is_expired(response.policy_version):
            self._evicted["age"] += 1
            return
        siblings = self._by_prompt.get(prompt_key, [])
        if len(siblings) == self._per_prompt:
            if (response.policy_version, serial) < siblings[0].order:
                self._evicted["per_prompt"] += 1  # the new one is the oldest
                return
            self._evict(siblings[0], "per_prompt")
        needed = pages_for(len(response.token_ids))
        while self._pages.free < needed or self._responses == self._max_responses:
            assert self._by_use.first is not None, (self._pages.free, needed)
            self._evict(self._by_use.first, "capacity")
        self._link(_Entry(prompt_key, response, serial, self._pages.write(response.token_ids, response.log_probs)))

    def _link(self, entry: _Entry) -> None:
        insort(self._by_prompt.setdefault(entry.prompt_key, []), entry, key=lambda e: e.order)
        self._by_version.setdefault(entry.policy_version, _OfVersion()).append(entry)
        self._by_use.append(entry)
        self._responses += 1
        self._tokens += entry.length

    def _evict(self, entry: _Entry, cause: str) -> None:
        self._evicted[cause] += 1
        siblings = self._by_prompt[entry.prompt_key]
        del siblings[bisect_left(siblings, entry.order, key=lambda e: e.order)]
        if not siblings:
            del self._by_prompt[entry.prompt_key]
        chain = self._by_version[entry.policy_version]
        chain.remove(entry)
        if chain.first is None:
            del self._by_version[entry.policy_version]
        self._by_use.remove(entry)
        self._pages.release(entry.pages)
        self._responses -= 1
        self._tokens -= entry.length


def _limits(capacity_tokens: int) -> tuple[int, int]:
    """The most responses and the most pages that fit together.

    Raises:
        ValueError: not one of either.
    """
    bookkeeping = capacity_tokens  # bytes: an eighth of 8 a token
    max_responses, max_pages = bookkeeping // RESPONSE_BYTES, (8 * capacity_tokens - bookkeeping) // PAGE_BYTES
    if max_responses < 1:
        raise ValueError(
            f"soup.replay.capacity_tokens={capacity_tokens}: expected at least {RESPONSE_BYTES}, the room for one "
            "response; take many times the longest response"
        )
    return max_responses, max_pages


def _reserve(max_pages: int, capacity_tokens: int) -> Pages:
    try:
        return Pages(max_pages)
    except MemoryError as error:
        raise ValueError(
            f"soup.replay.capacity_tokens={capacity_tokens}: this machine cannot set aside 8 bytes for each ({error}); "
            "take fewer"
        ) from error


__all__ = ["CHOICES", "ResponseStore", "StoredResponse"]
