"""SOUP inference: which prefix each sample takes from an earlier checkpoint, decided by seeds alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from soup_verl.evaluation.engine import Response
from soup_verl.evaluation.samples import Key
from soup_verl.method.history.prefixes import cut_prefix
from soup_verl.method.mixing import stable_seed


def planned_length(seed: int, key: Key, low: int, high: int) -> int:
    """Tokens asked of the historical policy for this sample: uniform over low..high, both ends included."""
    return random.Random(stable_seed("evaluation_prefix_length", seed, *key)).randint(low, high)


def planned_policy(seed: int, key: Key, policies: int) -> int:
    """Which historical policy writes the sample's prefix: in turn over a problem's sessions, from a random start."""
    file, index, session = key
    return (stable_seed("evaluation_policy", seed, file, index) + session) % policies


def prefix_row(response: Response, *, wanted: int, policy: str, end_tokens: frozenset[int]) -> dict[str, Any]:
    """A line of prefixes.jsonl.

    As in training, a prefix ends before its first end token: the main model then decides whether the response ends.
    It may come out empty; the sample is then the main model's alone.
    """
    ids: Sequence[int] = response.token_ids
    cut = cut_prefix(ids, [0.0] * len(ids), wanted=wanted, eos_token_ids=end_tokens, policy_version=0)
    file, index, session = response.key
    return {
        "file": file,
        "index": index,
        "session": session,
        "policy": policy,
        "wanted": wanted,
        "decoded_tokens": len(ids),
        "prefix_ids": list(cut.token_ids) if cut else [],
    }
