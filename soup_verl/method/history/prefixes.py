"""The plain data that sources hand over: prefixes, what they are planned to be, and whole responses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from soup_verl.method.mixing import PrefixRequest
from soup_verl.method.validation import is_solved

MAX_KEY = 128
"""Most characters of a `token_key`."""
MAX_TOKEN_ID = 2**30 - 1
"""Far above any vocabulary: `ResponseStore` has a use for the two bits above it."""


def prompt_hash(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits that tell a prompt's token ids from others."""
    return hashlib.sha256(np.asarray(token_ids, dtype=np.int64).tobytes()).hexdigest()[:16]


class Turn(NamedTuple):
    """One turn of a policy in a prefix: its tokens are those from `start` up to `stop`.

    Args:
        start, stop: places in the prefix.
        whole: nothing of it is missing; otherwise the engine goes on from `stop`.
    """

    start: int
    stop: int
    whole: bool


@dataclass(frozen=True)
class Prefix:
    """The given head of a response; token ids, never re-tokenised text.

    Historical tokens stand from `head` to the end. With `soup.position=prefix` that is all of it, and none of them is
    an end-of-sequence token, but for those that end earlier turns.

    Args:
        token_ids: at least one; what others said between the turns, for example tools, is part of it.
        log_probs: behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the historical policy (verl's `global_steps` of its weights).
        head: leading tokens that the current policy sampled.
        complete: the last turn ends here, nothing is to be continued.
        prompt_hash: `prompt_hash` of the token ids that it continues; empty where that is not known.
        loss_mask: 1 where a policy generated the token; empty: everywhere.
        turn_starts: where the second turn and those after it begin, ascending.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    policy_version: int
    head: int = 0
    complete: bool = False
    prompt_hash: str = ""
    loss_mask: tuple[int, ...] = ()
    turn_starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.log_probs) > 0, (len(self.token_ids), len(self.log_probs))
        assert 0 <= self.head <= len(self.token_ids), (self.head, len(self.token_ids))
        assert len(self.loss_mask) in (0, len(self.token_ids)), (len(self.loss_mask), len(self.token_ids))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def historical(self) -> int:
        """Number of tokens of the historical policy."""
        return sum(self.loss_mask[self.head :]) if self.loss_mask else len(self.token_ids) - self.head

    @property
    def turns(self) -> list[Turn]:
        """The policy's turns, in order. A turn is whole if anything follows it, or if the prefix is complete."""
        turns = []
        for start, end in pairwise((0, *self.turn_starts, len(self))):
            others = (i for i in range(start, end) if self.loss_mask and not self.loss_mask[i])
            stop = next(others, end)
            turns.append(Turn(start, stop, whole=stop < len(self) or self.complete))
        return turns


@dataclass(frozen=True)
class GroupPrefixes:
    """The prefixes of one prompt's responses.

    Args:
        prompt_key: fingerprint of the chat messages of the prompt they are for.
        by_session: session -> prefix; a session that is absent is answered on-policy.
    """

    prompt_key: str
    by_session: dict[int, Prefix]

    @property
    def complete_responses(self) -> int:
        """How many responses need no continuation."""
        return sum(prefix.complete for prefix in self.by_session.values())


@dataclass(frozen=True)
class PromptPlan:
    """One prompt of a batch to come.

    Args:
        prompt_key: fingerprint of its chat messages.
        requests: its planned prefixes.
    """

    prompt_key: str
    requests: tuple[PrefixRequest, ...]


@dataclass(frozen=True, eq=False, slots=True)  # arrays have no single truth value to compare by
class PolicyResponse:
    """A response of one policy, without any historical token, with its reward; `replay` stores it as it is.

    Args:
        token_key: the prompt's data set index and a hash of the token ids that the response continues.
        token_ids: (length,) int32, without the end-of-sequence token. Those that end earlier turns are part of it.
        log_probs: (length,) float32, behaviour log-prob of each token in nats, at the sampling temperature.
        policy_version: version of the policy that sampled it (verl's `global_steps` of its weights).
        reward: of the whole response, as the reward function gave it.
        ended: an end-of-sequence token is known to have followed, and is left out. A response that fills the budget
            keeps what it has and counts as not ended.
        end_token_id: that end-of-sequence token; None if it was not kept.
        end_log_prob: its behaviour log-prob, a float32 value; None if it was not kept.
        loss_mask: (length,) int8, 1 where the policy generated the token, 0 where something else did, for example a
            tool: what `log_probs` says there means nothing. None: the policy generated all of them.
        turn_starts: where the policy's second turn and those after it begin, ascending. Empty: it is one turn.
        solved: whether it is right; None: not noted, and right if its reward is above 0.
    """

    token_key: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    policy_version: int
    reward: float
    ended: bool
    end_token_id: int | None = None
    end_log_prob: float | None = None
    loss_mask: np.ndarray | None = None
    turn_starts: tuple[int, ...] = ()
    solved: bool | None = None

    @property
    def right(self) -> bool:
        return is_solved(self.solved, self.reward)


def check_response(response: PolicyResponse) -> None:
    """Raise ValueError unless the response meets the requirements below."""
    r, ids, log_probs, mask = response, response.token_ids, response.log_probs, response.loss_mask
    end, end_log_prob, turns = r.end_token_id, r.end_log_prob, (0, *r.turn_starts, ids.size)
    requirements = {
        f"a key in ASCII, at most {MAX_KEY} characters": r.token_key.isascii() and len(r.token_key) <= MAX_KEY,
        "as many log_probs as token_ids, at least one": ids.shape == log_probs.shape == (ids.size,) and ids.size > 0,
        "token_ids in int32, from 0 to 2**30 - 1": ids.dtype == np.int32
        and 0 <= ids.min(initial=0) <= ids.max(initial=0) <= MAX_TOKEN_ID,
        "log_probs in float32, all finite": log_probs.dtype == np.float32 and bool(np.isfinite(log_probs).all()),
        "a finite reward": math.isfinite(r.reward),
        "an end token of a response that ended, or none": end is None or (r.ended and 0 <= end <= MAX_TOKEN_ID),
        "a finite log-prob of the end token, if there is one": (end is None) == (end_log_prob is None)
        and math.isfinite(end_log_prob or 0.0),
        "a loss_mask in int8, 0 or 1 for each token": mask is None
        or (mask.dtype == np.int8 and mask.shape == ids.shape and bool(((mask == 0) | (mask == 1)).all())),
        "turn_starts ascending, behind the first token": all(a < b for a, b in zip(turns, turns[1:], strict=False)),
    }
    for expected, met in requirements.items():
        if not met:
            seen = f"token_ids {ids.dtype} {ids.shape}, log_probs {log_probs.dtype} {log_probs.shape}"
            seen += f", reward {r.reward}, ended {r.ended}, end token {end} of log-prob {end_log_prob}"
            seen += f", loss_mask {None if mask is None else (mask.dtype, mask.shape)}, turn_starts {r.turn_starts}"
            raise ValueError(f"a response to prompt {r.token_key!r}: expected {expected}; got {seen}")


def cut_prefix(
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    *,
    wanted: int,
    eos_token_ids: frozenset[int],
    policy_version: int,
) -> Prefix | None:
    """A sampled head as a prefix: it ends before the first end-of-sequence token, or where the engine stopped early.

    Returns:
        The prefix, or None if nothing is left of it.
    """
    ends = [i for i, token in enumerate(token_ids) if token in eos_token_ids]
    if ends:
        length = ends[0]
    else:  # an early stop without an end token known to us: the last token is what stopped the engine
        length = len(token_ids) if len(token_ids) >= wanted else len(token_ids) - 1
    if length <= 0:
        return None
    return Prefix(tuple(token_ids[:length]), tuple(log_probs[:length]), policy_version)


def cut_response(source: PolicyResponse, *, wanted: int, longest: int) -> Prefix:
    """The head of a stored response, inside a turn or behind a whole one: a whole turn is followed by what came next.

    Args:
        source: the response.
        wanted: tokens of the policy's own, at least one; all if it has fewer.
        longest: most tokens altogether, of others' answers too.
    """
    length = len(source.token_ids)
    mask = np.ones(length, np.int8) if source.loss_mask is None else source.loss_mask
    own = np.flatnonzero(mask)
    stop = min(int(own[min(wanted, len(own)) - 1]) + 1, longest)
    if stop < length and (not mask[stop] or stop in source.turn_starts):
        stop += 1
    return whole_response(source, stop)


def whole_response(source: PolicyResponse, stop: int | None = None) -> Prefix:
    """The tokens of a stored response up to `stop`; None: all, its end token included, and nothing is to follow."""
    ids, log_probs = source.token_ids[:stop].tolist(), source.log_probs[:stop].tolist()
    mask = [] if source.loss_mask is None else source.loss_mask[:stop].tolist()
    if stop is None and source.ended:
        assert source.end_token_id is not None and source.end_log_prob is not None, "stored without its end token"
        ids.append(source.end_token_id)
        log_probs.append(source.end_log_prob)
        mask += [1] if mask else []
    return Prefix(
        tuple(ids),
        tuple(p * m for p, m in zip(log_probs, mask, strict=True)) if mask else tuple(log_probs),
        source.policy_version,
        complete=stop is None,
        prompt_hash=source.token_key.rpartition(":")[2],
        loss_mask=tuple(mask),
        turn_starts=tuple(start for start in source.turn_starts if start < len(ids)),
    )


def extended(head: Prefix, stretch: Prefix | None) -> Prefix:
    """`head` followed by the historical policy's `stretch`; None adds nothing, and the response is on-policy."""
    if stretch is None:
        return head
    return Prefix(
        head.token_ids + stretch.token_ids,
        head.log_probs + stretch.log_probs,
        stretch.policy_version,
        head=len(head),
        complete=stretch.complete,
        prompt_hash=head.prompt_hash,
    )
