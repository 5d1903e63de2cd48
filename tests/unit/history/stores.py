"""Small stores and responses for the tests of the response store."""

import numpy as np

from soup_verl.history import PolicyResponse
from soup_verl.history.response_store import ResponseStore

ROOM = 1024  # tokens of capacity that make room for one more response
LIMITS = {"capacity_tokens": 6 * ROOM, "per_prompt": 3, "max_policy_age": 4}


def response(key, first_id=0, length=2, *, version=0, reward=0.0, log_prob=-1.0, ended=True):
    ids = np.arange(first_id, first_id + length, dtype=np.int32)
    return PolicyResponse(key, ids, np.full(length, log_prob, np.float32), version, float(reward), ended)


def store(*responses, **limits):
    new = ResponseStore(**{"capacity_tokens": 100 * ROOM, "per_prompt": 100, "max_policy_age": None} | limits)
    for r in responses:
        new.add(r)
    return new


def loaded(path, **limits):
    new = store(**limits)
    new.load(path)
    return new


def held(store):
    """Everything as plain values, the least recently used first; looking is not using."""
    return [plain(store._response(entry)) for entry in store._by_use.values()]


def firsts(store, key):
    """A prompt's responses by their first token ids, by version, then insertion."""
    return [int(store._response(store._by_use[s]).token_ids[0]) for s in store._by_prompt.get(key, [])]


def plain(r):
    return r.token_key, r.token_ids.tolist(), r.log_probs.tolist(), r.policy_version, r.reward, r.ended
