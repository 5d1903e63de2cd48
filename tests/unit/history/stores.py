"""Small stores and responses for the tests of the response store."""

import numpy as np

from soup_verl.history.response_store import ResponseStore, StoredResponse

ROOM = 896  # tokens of capacity that make room for one more response; with it come 6272 bytes of pages, 520 each
LIMITS = {"capacity_tokens": 6 * ROOM, "per_prompt": 3, "max_policy_age": 4}


def response(first_id=0, length=2, *, version=0, reward=0.0, log_prob=-1.0):
    ids = np.arange(first_id, first_id + length, dtype=np.int32)
    return StoredResponse(ids, np.full(length, log_prob, np.float32), version, reward)


def store(**limits):
    return ResponseStore(**{"capacity_tokens": 100 * ROOM, "per_prompt": 100, "max_policy_age": None} | limits)


def firsts(responses):
    """A response by its first token id."""
    return [int(r.token_ids[0]) for r in responses]


def plain(r):
    return r.token_ids.tolist(), r.log_probs.tolist(), r.policy_version, r.reward
