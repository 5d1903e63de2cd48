"""Small stores and responses for the tests of the response store."""

import numpy as np

from soup_verl.method.history import PolicyResponse
from soup_verl.method.history.response_store import ResponseStore

ROOM = 1024  # tokens of capacity that make room for one more response
LIMITS = {"capacity_tokens": 6 * ROOM, "per_prompt": 3, "max_policy_age": 4}


def response(key, first_id=0, length=2, *, version=0, reward=0.0, log_prob=-1.0, ended=True, **more):
    ids = np.arange(first_id, first_id + length, dtype=np.int32)
    return PolicyResponse(key, ids, np.full(length, log_prob, np.float32), version, float(reward), ended, **more)


def turns(key, first_id=0):
    """Five tokens: two of the policy, one of a tool, a turn of two tokens; then an end token."""
    mask = np.array([1, 1, 0, 1, 1], np.int8)
    return response(key, first_id, 5, end_token_id=2, end_log_prob=-0.5, loss_mask=mask, turn_starts=(3,))


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
    return [plain(store._block.read(entry)) for entry in store._by_use.values()]


def firsts(store, key):
    """A prompt's responses by their first token ids, by version, then insertion."""
    return [int(store._block.read(store._by_use[s]).token_ids[0]) for s in store._by_prompt.get(key, [])]


def plain(r):
    return r.token_key, r.token_ids.tolist(), r.log_probs.tolist(), r.policy_version, r.reward, r.ended


def beyond(r):
    """What only responses of several turns, or with a known end, have."""
    mask = None if r.loss_mask is None else (str(r.loss_mask.dtype), r.loss_mask.tolist())
    return r.end_token_id, r.end_log_prob, mask, r.turn_starts
