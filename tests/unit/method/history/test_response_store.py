"""The response store: any sequence of operations against a model; choices, eviction and refusals by hand; memory."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.method.history import PolicyResponse
from soup_verl.method.history.response_choice import CHOICES
from soup_verl.method.history.response_store import TOKEN_BYTES, ResponseStore
from tests.unit.method.history.stores import LIMITS, ROOM, beyond, firsts, held, plain, response, store, turns

# Any sequence of operations, against a model that scans lists.

KEYS = st.sampled_from("abc")
additions = st.tuples(
    st.sampled_from([1, 2, 700, 2000, 6 * ROOM]),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([-0.5, -1.0, -2.0]),
    st.booleans(),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.lists(additions, max_size=4)),
        st.tuples(st.just("choose"), KEYS, st.integers(0, 5), st.sampled_from(CHOICES), st.integers(0, 99)),
        st.tuples(st.just("expire"), st.integers(0, 9)),
        st.tuples(st.just("reload")),
    ),
    max_size=25,
)


class Model:
    """The store's rules over one list in the order of use."""

    def __init__(self, *, capacity_tokens, per_prompt, max_policy_age):
        self.capacity, self.per_prompt, self.max_age = capacity_tokens, per_prompt, max_policy_age
        self.used, self.added, self.now = [], 0, 0

    def of(self, key):
        return sorted((e for e in self.used if e[1].token_key == key), key=lambda e: (e[1].policy_version, e[0]))

    def is_over(self):
        return sum(len(r.token_ids) for _, r in self.used) > self.capacity or len(self.used) > self.capacity // ROOM

    def add(self, r):
        self.used.append((self.added, r))
        self.added += 1
        self.expire(0)
        if len(self.of(r.token_key)) > self.per_prompt:
            self.used.remove(self.of(r.token_key)[0])
        while self.is_over():
            del self.used[0]

    def expire(self, version):
        self.now = max(self.now, version)
        self.used = [e for e in self.used if self.now - e[1].policy_version <= self.max_age]

    def choose(self, key, count, choice, seed):
        entries = self.of(key)
        if choice == "uniform":
            entries = random.Random(seed).sample(entries, len(entries))
        else:
            first = {
                "latest": lambda r: 0,
                "best_reward": lambda r: -r.reward,
                "worst_reward": lambda r: r.reward,
                "entropy": lambda r: float(r.log_probs[0]),
                "latest_right": lambda r: 0,
                "latest_wrong": lambda r: 0,
                "surest_right": lambda r: -float(r.log_probs[0]),
            }[choice]
            if choice.endswith(("right", "wrong")):
                entries = [e for e in entries if (e[1].reward > 0) == choice.endswith("right")]
            entries.sort(key=lambda e: (first(e[1]), -e[1].policy_version, -e[0]))
        chosen = [entries[i % len(entries)] for i in range(count)] if entries else []
        for e in chosen:
            self.used.remove(e)
            self.used.append(e)
        return [e[1] for e in chosen]


@settings(max_examples=100)
@given(operations)
def test_any_sequence_of_operations_and_reloads_follows_the_rules(tmp_path, sequence):
    real, model = ResponseStore(**LIMITS), Model(**LIMITS)
    for name, *arguments in sequence:
        if name == "add":
            for length, version, reward, log_prob, ended in arguments[1]:
                facts = {"version": version, "reward": reward, "log_prob": log_prob, "ended": ended}
                made = response(arguments[0], 10_000 * model.added, length, **facts)
                real.add(made)
                model.add(made)
        elif name == "choose":
            key, count, choice, seed = arguments
            chosen = real.choose(key, count, choice=choice, seed=seed)
            assert [plain(r) for r in chosen] == [plain(r) for r in model.choose(*arguments)]
        elif name == "expire":
            real.expire(*arguments)
            model.expire(*arguments)
        else:
            real.save(tmp_path / "store.parquet")
            real = ResponseStore(**LIMITS)
            real.load(tmp_path / "store.parquet")
        assert held(real) == [plain(r) for _, r in model.used]
        assert (len(real), real.tokens) == (len(model.used), sum(len(r.token_ids) for _, r in model.used))
        assert all(firsts(real, key) == [e[1].token_ids[0] for e in model.of(key)] for key in "abc")


# Choices, by hand.


def test_choices_by_hand():
    s = store(
        response("p", 0, 9, version=3, reward=0.5, log_prob=-1),  # -9 in all, but -1 a token
        response("p", 10, version=1, reward=1, log_prob=-4),
        response("p", 20, version=3, reward=0.5, log_prob=-1),
        response("p", 30, version=2, reward=0, log_prob=-2),
        response("q", 40),
    )

    def chosen(choice, count=4, seed=0):
        return [int(r.token_ids[0]) for r in s.choose("p", count, choice=choice, seed=seed)]

    assert chosen("latest") == [20, 0, 30, 10]
    assert chosen("best_reward") == [10, 20, 0, 30]
    assert chosen("worst_reward") == [30, 20, 0, 10]
    assert chosen("entropy") == [10, 30, 20, 0]
    assert chosen("latest", 6) == [20, 0, 30, 10, 20, 0]
    counts = np.bincount([chosen("uniform", 1, seed)[0] for seed in range(600)], minlength=31)[::10]
    assert counts.min() > 110 and counts.sum() == 600  # 150 each, standard deviation 11
    assert s.choose("none", 3, choice="latest", seed=0) == []
    # a reward above 0 is right where nothing else is said
    assert chosen("latest_right") == [20, 0, 10, 20] and chosen("latest_wrong", 2) == [30, 30]
    assert chosen("surest_right") == [20, 0, 10, 20]
    assert s.choose("q", 1, choice="latest_right", seed=0) == s.choose("q", 1, choice="surest_right", seed=0) == []


def test_what_was_solved_is_what_was_noted_whatever_the_reward():
    s = store(response("p", 0, reward=1, solved=False), response("p", 10, reward=0, solved=True))
    found = {choice: s.choose("p", 1, choice=choice, seed=0)[0] for choice in ("latest_right", "latest_wrong")}
    assert {choice: int(r.token_ids[0]) for choice, r in found.items()} == {"latest_right": 10, "latest_wrong": 0}


def test_a_known_choice_stays_the_same_for_ever():
    s = store(*(response("p", i) for i in range(8)))
    assert [r.token_ids[0] for r in s.choose("p", 4, choice="uniform", seed=7)] == [5, 1, 3, 0]


def test_what_was_handed_out_or_handed_in_can_change_without_changing_the_store():
    mine = response("p", 5)
    s = store(mine)
    mine.token_ids[:] = 99
    s.choose("p", 1, choice="latest", seed=0)[0].token_ids[:] = 99
    assert held(s) == [("p", [5, 6], [-1, -1], 0, 0.0, True)]


# Several turns, and what ends a response, by hand.


def test_a_response_of_several_turns_comes_back_as_it_was_and_its_ids_are_plain():
    s = store(turns("p", 5), response("p", 40))
    one_turn, several = s.choose("p", 2, choice="latest", seed=0)
    assert plain(several) == ("p", [5, 6, 7, 8, 9], [-1] * 5, 0, 0.0, True)
    assert beyond(several) == (2, -0.5, ("int8", [1, 1, 0, 1, 1]), (3,))
    assert beyond(one_turn) == (None, None, None, ())
    assert (several.token_ids.dtype, one_turn.token_ids.dtype) == (np.int32, np.int32)


def test_a_mask_of_nothing_but_ones_is_none_and_one_of_nothing_but_zeros_stays():
    s = store(*(response("p", i, loss_mask=np.full(2, i, np.int8)) for i in (0, 1)))
    masks = [beyond(r)[2] for r in s.choose("p", 2, choice="latest", seed=0)]
    assert masks == [None, ("int8", [0, 0])]


def test_what_moves_together_keeps_its_turns():
    s = store(*(turns("p", 10 * i) for i in range(300)), capacity_tokens=6 * ROOM, per_prompt=2)
    s._block.end = 6 * ROOM * 9 // 8  # the next one finds the end of the arrays
    s.add(turns("p", 7000))
    assert firsts(s, "p") == [2990, 7000] and s._block.end == 10
    moved = s.choose("p", 2, choice="latest", seed=0)
    assert [beyond(r) for r in moved] == [(2, -0.5, ("int8", [1, 1, 0, 1, 1]), (3,))] * 2


# Eviction, by hand.


def test_the_least_recently_added_or_chosen_goes_first():
    s = store(*(response(key) for key in "abc"), capacity_tokens=3 * ROOM)
    s.choose("a", 1, choice="latest", seed=0)
    s.add(response("d"))
    assert [r[0] for r in held(s)] == ["c", "a", "d"]
    s.add(response("e", length=3 * ROOM - 2))  # all but the room for one of the others
    assert [r[0] for r in held(s)] == ["d", "e"]


def test_the_oldest_version_of_a_full_prompt_goes_even_if_it_is_the_new_one():
    s = store(response("p", 0, version=5), response("p", 1, version=4), response("p", 2, version=6), per_prompt=2)
    assert firsts(s, "p") == [0, 2]
    s.add(response("p", 3, version=4))
    assert firsts(s, "p") == [0, 2]


def test_age_counts_from_the_newest_version_ever_told():
    s = store(*(response("p", v, version=v) for v in range(4)), max_policy_age=2)
    s.expire(4)
    s.expire(1)
    s.add(response("p", 1, version=1))
    assert firsts(s, "p") == [2, 3]


# What is refused.


def test_a_response_longer_than_the_whole_capacity_is_refused():
    s = store(response("p", length=2 * ROOM), capacity_tokens=2 * ROOM)
    with pytest.raises(ValueError, match=r"soup\.replay\.capacity_tokens=2048: .*got one of 2049 tokens"):
        s.add(response("p", length=2 * ROOM + 1))
    assert len(s) == 1


def test_a_capacity_beyond_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"soup\.replay\.capacity_tokens=1000000000000000: take fewer; .*allocate"):
        store(capacity_tokens=10**15)


IDS, LOG_PROBS = np.ones(2, np.int32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("key", "ids", "log_probs", "reward", "named"),
    [
        ("p", IDS, LOG_PROBS + np.float32("nan"), 0, r"log_probs in float32, all finite"),
        ("p", IDS, LOG_PROBS - np.float32("inf"), 0, r"log_probs in float32, all finite"),
        ("p", IDS, np.zeros(2), 0, r"log_probs in float32.* got .*log_probs float64 \(2,\)"),
        ("p", IDS, LOG_PROBS[:1], 0, r"as many .* got token_ids int32 \(2,\), log_probs float32 \(1,\)"),
        ("p", IDS[:0], LOG_PROBS[:0], 0, "at least one"),
        ("p", IDS[None], LOG_PROBS[None], 0, r"as many .*\(1, 2\)"),
        ("p", IDS * 1.0, LOG_PROBS, 0, "token_ids in int32"),
        ("p", -IDS, LOG_PROBS, 0, "token_ids in int32, from 0"),
        ("p", IDS * 2**30, LOG_PROBS, 0, r"token_ids in int32, from 0 to 2\*\*30 - 1"),
        ("p", IDS, LOG_PROBS, np.nan, "a finite reward.*reward nan"),
        ("k" * 129, IDS, LOG_PROBS, 0, "'kkk.*ASCII, at most 128"),
        ("ü", IDS, LOG_PROBS, 0, "'ü'.*ASCII"),
    ],
)
def test_a_malformed_response_is_refused(key, ids, log_probs, reward, named):
    s = store()
    with pytest.raises(ValueError, match=named):
        s.add(PolicyResponse(key, ids, log_probs, 0, reward, True))
    assert len(s) == 0


ENDS = {"end_token_id": 2, "end_log_prob": -1.0}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"end_token_id": 2}, "a finite log-prob of the end token.*end token 2 of log-prob None"),
        ({"end_log_prob": -1.0}, "if there is one"),
        (ENDS | {"ended": False}, "of a response that ended"),
        (ENDS | {"end_token_id": -1}, "an end token.*got .*end token -1"),
        (ENDS | {"end_log_prob": float("nan")}, "a finite log-prob"),
        ({"loss_mask": np.ones(2)}, r"loss_mask in int8.*got .*loss_mask \(dtype\(.float64.\), \(2,\)\)"),
        ({"loss_mask": np.ones(3, np.int8)}, "for each token"),
        ({"loss_mask": np.full(2, 2, np.int8)}, "0 or 1"),
        ({"turn_starts": (0,)}, r"behind the first token.*turn_starts \(0,\)"),
        ({"turn_starts": (1, 1)}, "ascending"),
        ({"turn_starts": (2,)}, "ascending"),
    ],
)
def test_ends_masks_and_turns_that_fit_no_response_are_refused(more, named):
    s = store()
    with pytest.raises(ValueError, match=named):
        s.add(response("p", **more))
    assert len(s) == 0


# Memory.


@pytest.mark.e2e
@pytest.mark.parametrize("lengths", [(3,), (1024,), (3, 8000, 3), (8000, 3), (40, 400, 4000, 40_000)], ids=str)
def test_memory_stays_under_10_bytes_a_token_of_capacity(lengths):
    """Each response is its prompt's and its version's only one, with the longest key, an end and two turns: the most
    bookkeeping."""
    room = 700
    key, arrays = "{:0>128}", (np.zeros(40_000, np.int32), np.zeros(40_000, np.float32))
    mask = np.zeros(40_000, np.int8)
    tracemalloc.start()
    s = ResponseStore(capacity_tokens=room * ROOM, per_prompt=8, max_policy_age=None)
    for length in lengths:
        for i in range(room * 3 // 2):
            ids, log_probs = (array[:length] for array in arrays)
            turns = {"end_token_id": 10**6 + i, "end_log_prob": -i / 7, "loss_mask": mask[:length], "turn_starts": (1,)}
            version = 10**6 * length + i
            s.add(PolicyResponse(key.format(f"{length}-{i}"), ids, log_probs, version, i + 0.5, True, **turns))
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert TOKEN_BYTES == 10
    assert 9 * room * ROOM < now <= peak < 10 * room * ROOM
    assert len(s) == min(room, room * ROOM // lengths[-1])
