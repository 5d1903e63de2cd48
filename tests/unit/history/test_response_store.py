import json
import math
import random
import tracemalloc
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.history import response_file
from soup_verl.history.response_file import SCHEMA, STATE
from soup_verl.history.response_store import CHOICES, ResponseStore, StoredResponse

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


# Any sequence of operations, against a model that scans lists.

KEYS = ("a", "b", "c")
additions = st.lists(
    st.tuples(
        st.sampled_from([1, 63, 64, 65, 700, 2000, 4600]),  # 4600: all 72 pages
        st.integers(0, 6),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from([-0.5, -1.0, -2.0]),
    ),
    max_size=4,
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), additions),
        st.tuples(
            st.just("choose"),
            st.sampled_from(KEYS),
            st.integers(0, 5),
            st.sampled_from(list(CHOICES)),
            st.integers(0, 99),
        ),
        st.tuples(st.just("expire"), st.integers(0, 9)),
        st.tuples(st.just("reload")),
    ),
    max_size=25,
)


class Model:
    """The store's rules over one list in the order of use."""

    def __init__(self, *, capacity_tokens, per_prompt, max_policy_age):
        self.max_responses, self.pages = capacity_tokens // ROOM, 7 * capacity_tokens // 520
        self.per_prompt, self.max_age = per_prompt, max_policy_age
        self.used, self.added, self.now = [], 0, 0
        self.evicted = {"age": 0, "per_prompt": 0, "capacity": 0}

    def of(self, key):
        return sorted((e for e in self.used if e[0] == key), key=lambda e: (e[2].policy_version, e[1]))

    def drop(self, entry, cause):
        self.used.remove(entry)
        self.evicted[cause] += 1

    def is_over(self):
        pages = sum(math.ceil(len(e[2].token_ids) / 64) for e in self.used)
        return pages > self.pages or len(self.used) > self.max_responses

    def add(self, key, responses):
        for r in responses:
            self.used.append((key, self.added, r))
            self.added += 1
            self.expire(0)
            if len(self.of(key)) > self.per_prompt:
                self.drop(self.of(key)[0], "per_prompt")
            while self.is_over():
                self.drop(self.used[0], "capacity")

    def expire(self, version):
        self.now = max(self.now, version)
        for e in [e for e in self.used if self.now - e[2].policy_version > self.max_age]:
            self.drop(e, "age")

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
            }[choice]
            entries.sort(key=lambda e: (first(e[2]), -e[2].policy_version, -e[1]))
        chosen = [entries[i % len(entries)] for i in range(count)] if entries else []
        for e in chosen:
            self.used.remove(e)
            self.used.append(e)
        return [e[2] for e in chosen]


def check_agrees(real, model):
    for key in KEYS:
        assert [plain(r) for r in real.responses_of(key)] == [plain(e[2]) for e in model.of(key)]
    stats = real.stats()
    assert len(real) == stats["responses"] == len(model.used) <= model.max_responses
    assert real.tokens == stats["tokens"] == sum(len(e[2].token_ids) for e in model.used) <= 64 * model.pages
    assert stats["prompts"] == len({e[0] for e in model.used})
    assert stats["bytes"] <= stats["bytes_bound"] == 8 * LIMITS["capacity_tokens"]
    assert {cause: stats[f"evicted_by_{cause}"] for cause in model.evicted} == model.evicted


@settings(max_examples=25)
@given(operations)
def test_any_sequence_of_operations_and_reloads_follows_the_rules(tmp_path, sequence):
    real, model = ResponseStore(**LIMITS), Model(**LIMITS)
    made = 0
    for name, *arguments in sequence:
        if name == "add":
            key, drawn = arguments
            batch = [
                response(1000 * (made + i), n, version=v, reward=r, log_prob=p) for i, (n, v, r, p) in enumerate(drawn)
            ]
            made += len(batch)
            real.add(key, batch)
            model.add(key, batch)
        elif name == "choose":
            key, count, choice, seed = arguments
            chosen = real.choose(key, count, choice=choice, seed=seed)
            assert len(chosen) == (count if model.of(key) else 0)
            assert [plain(r) for r in chosen] == [plain(r) for r in model.choose(*arguments)]
        elif name == "expire":
            real.expire(*arguments)
            model.expire(*arguments)
        else:
            real.save(tmp_path / "store.parquet")
            real = ResponseStore.load(tmp_path / "store.parquet", **LIMITS)
        check_agrees(real, model)


# Choices, by hand.


def test_choices_by_hand():
    s = store()
    s.add("p", [response(0, version=3, reward=0.5, log_prob=-1), response(10, version=1, reward=1, log_prob=-4)])
    s.add("p", [response(20, version=3, reward=0.5, log_prob=-1), response(30, version=2, reward=0, log_prob=-2)])
    s.add("q", [response(40)])
    assert firsts(s.responses_of("p")) == [10, 30, 0, 20]

    def choose(choice):
        return firsts(s.choose("p", 4, choice=choice, seed=0))

    assert choose("latest") == [20, 0, 30, 10]
    assert choose("best_reward") == [10, 20, 0, 30]
    assert choose("worst_reward") == [30, 20, 0, 10]
    assert choose("entropy") == [10, 30, 20, 0]


def test_entropy_is_a_mean_over_tokens_not_a_sum():
    s = store()
    s.add("p", [response(0, length=9, log_prob=-1), response(10, length=2, log_prob=-2)])
    assert firsts(s.choose("p", 1, choice="entropy", seed=0)) == [10]


def test_more_than_there_are_come_round_again_in_the_same_order():
    s = store()
    s.add("p", [response(i) for i in range(3)])
    for choice in CHOICES:
        chosen = firsts(s.choose("p", 8, choice=choice, seed=5))
        assert sorted(chosen[:3]) == [0, 1, 2] and chosen == (chosen[:3] * 3)[:8]


def test_uniform_depends_on_the_seed_alone_and_takes_each_about_as_often():
    s = store()
    s.add("p", [response(i) for i in range(4)])
    chosen = [tuple(firsts(s.choose("p", 2, choice="uniform", seed=seed))) for seed in range(600)]
    assert chosen == [tuple(firsts(s.choose("p", 2, choice="uniform", seed=seed))) for seed in range(600)]
    counts = np.bincount([first for first, _ in chosen], minlength=4)
    assert counts.min() > 110 and counts.sum() == 600  # 150 each, standard deviation 11


def test_a_known_choice_stays_the_same_for_ever():
    s = store()
    s.add("p", [response(i) for i in range(8)])
    assert firsts(s.choose("p", 4, choice="uniform", seed=7)) == [5, 1, 3, 0]


def test_a_prompt_without_responses_and_an_unknown_choice():
    s = store()
    assert s.choose("p", 3, choice="latest", seed=0) == [] == s.responses_of("p")
    with pytest.raises(ValueError, match=r"soup\.replay\.choice='newest'.*uniform, latest, best_reward"):
        s.choose("p", 3, choice="newest", seed=0)


def test_what_was_handed_out_or_handed_in_can_change_without_changing_the_store():
    s, mine = store(), response(5)
    s.add("p", [mine])
    mine.token_ids[:] = 99
    s.responses_of("p")[0].log_probs[:] = 99
    s.choose("p", 1, choice="latest", seed=0)[0].token_ids[:] = 99
    assert plain(s.responses_of("p")[0]) == ([5, 6], [-1, -1], 0, 0)


# Eviction, by hand.


def test_the_least_recently_added_or_chosen_goes_first():
    s = store(capacity_tokens=3 * ROOM)
    for i, key in enumerate("abc"):
        s.add(key, [response(i)])
    s.responses_of("b")  # looking is not using
    s.choose("a", 1, choice="latest", seed=0)
    s.add("d", [response(3)])
    assert [len(s.responses_of(key)) for key in "abcd"] == [1, 0, 1, 1]
    s.add("e", [response(4)])
    assert [len(s.responses_of(key)) for key in "acde"] == [1, 0, 1, 1]


def test_the_oldest_version_of_a_full_prompt_goes_even_if_it_is_the_new_one():
    s = store(per_prompt=2)
    s.add("p", [response(0, version=5), response(1, version=4)])
    s.add("p", [response(2, version=6)])
    assert firsts(s.responses_of("p")) == [0, 2]
    s.add("p", [response(3, version=4)])
    assert firsts(s.responses_of("p")) == [0, 2]
    assert s.stats()["evicted_by_per_prompt"] == 2


def test_age_counts_from_the_newest_version_ever_told():
    s = store(max_policy_age=2)
    s.add("p", [response(v, version=v) for v in range(4)])
    s.expire(4)
    assert firsts(s.responses_of("p")) == [2, 3]
    s.expire(1)
    s.add("p", [response(1, version=1)])
    assert firsts(s.responses_of("p")) == [2, 3]
    assert s.stats()["evicted_by_age"] == 3
    assert firsts(s.choose("p", 3, choice="uniform", seed=0)).count(1) == 0


def test_without_an_age_limit_nothing_expires():
    s = store(max_policy_age=None)
    s.add("p", [response(0, version=0)])
    s.expire(10**6)
    assert len(s) == 1


def test_a_response_longer_than_the_whole_capacity_is_refused_and_nothing_of_its_batch_kept():
    s = store(capacity_tokens=2 * ROOM)
    s.add("p", [response(0, length=24 * 64)])  # 2 * 6272 // 520 pages
    with pytest.raises(ValueError, match=r"soup\.replay\.capacity_tokens=1792.* 1537 tokens.* 1536 "):
        s.add("p", [response(1), response(2, length=24 * 64 + 1)])
    assert firsts(s.responses_of("p")) == [0]


def test_a_capacity_without_room_for_one_response_is_refused():
    with pytest.raises(ValueError, match=r"soup\.replay\.capacity_tokens=895.*at least 896"):
        store(capacity_tokens=895)


def test_a_capacity_beyond_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"soup\.replay\.capacity_tokens=1000000000000000: .*allocate"):
        store(capacity_tokens=10**15)


# What is not a response.

ONE = np.ones(2, np.int32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("ids", "log_probs", "reward", "named"),
    [
        (ONE[0], [0, np.nan], 0, "log_probs must be finite"),
        (ONE[0], [0, -np.inf], 0, "log_probs must be finite"),
        (ONE[0], [0, -1e39], 0, "log_probs must be finite"),  # not a float32
        (ONE[0], [0], 0, r"token_ids \(2,\) and log_probs \(1,\)"),
        ([], [], 0, "at least one token"),
        ([[1, 2]], [[0, 0]], 0, "must both be"),
        ([1.0, 2.0], ONE[1], 0, "integers"),
        ([-1, 2], ONE[1], 0, "integers"),
        ([1, 2**31], ONE[1], 0, "integers"),
        (*ONE, np.nan, "reward must be finite"),
    ],
)
def test_a_malformed_response_is_refused_and_nothing_of_its_batch_kept(ids, log_probs, reward, named):
    s = store()
    with pytest.raises(ValueError, match=named) as caught:
        s.add("p1", [response(), StoredResponse(np.asarray(ids), np.asarray(log_probs), 0, reward)])
    assert "'p1'" in str(caught.value)
    assert len(s) == 0


@pytest.mark.parametrize("key", ["k" * 129, "ü"])
def test_a_key_that_needs_more_memory_than_is_set_aside_is_refused(key):
    with pytest.raises(ValueError, match="ASCII, at most 128"):
        store().add(key, [response()])


def test_other_integer_and_float_types_and_strides_are_taken():
    s = store()
    s.add("p", [StoredResponse(np.arange(6, dtype=np.int64)[::2], np.arange(6.0)[::-2], np.int64(3), np.float32(0.5))])
    (kept,) = s.responses_of("p")
    assert plain(kept) == ([0, 2, 4], [5, 3, 1], 3, 0.5)
    assert (kept.token_ids.dtype, kept.log_probs.dtype) == (np.int32, np.float32)


# Memory.


def fill(s, count, length, key_length=128):
    """Responses that are each their prompt's and their version's only one: the most bookkeeping."""
    ids, log_probs = np.zeros(length, np.int32), np.zeros(length, np.float32)
    for i in range(count):
        s.add(
            f"{length}-{i}".rjust(key_length, "0"),
            [StoredResponse(ids, log_probs, 10**6 + 10**5 * length + i, i + 0.5)],
        )


@pytest.mark.e2e
@pytest.mark.parametrize(
    "lengths", [(3,), (8000,), (3, 8000, 3), (8000, 3)], ids=["short", "long", "short-long-short", "long-short"]
)
def test_memory_stays_under_8_bytes_a_token_of_capacity(lengths):
    room = 700
    capacity = room * ROOM
    fill(store(), 3, 3)  # what Python and numpy allocate once
    tracemalloc.start()
    s = ResponseStore(capacity_tokens=capacity, per_prompt=8, max_policy_age=None)
    for length in lengths:
        fill(s, room * 3 // 2, length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(s) == (room if lengths[-1] == 3 else s.stats()["bytes_bound"] * 7 // 8 // 520 // 125)
    assert 0.875 * 8 * capacity < peak < 8 * capacity


@pytest.mark.e2e
def test_prompts_and_versions_long_gone_leave_nothing_behind():
    s = store(capacity_tokens=20 * ROOM)
    tracemalloc.start()
    fill(s, 100, 3)
    before = tracemalloc.get_traced_memory()[0]
    fill(s, 2000, 4)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(s) == 20 and grown < 8000  # 4 bytes each


def test_the_batch_a_response_was_cut_from_is_not_kept_alive():
    s, batch = store(), np.zeros(10**6, np.int32)
    alive = weakref.ref(batch)
    s.add("p", [StoredResponse(batch[:2], np.zeros(2, np.float32), 0, 0.0)])
    del batch
    assert alive() is None and len(s) == 1


_POOLS = []  # for ever: a buffer that outlives the test is given back to the pool it came from


@pytest.fixture
def arrow_peak():
    """Most bytes that pyarrow held since the test began."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    yield pool.max_memory
    pa.set_memory_pool(usual)


@pytest.mark.e2e
def test_saving_and_loading_need_a_small_part_of_the_stores_memory(tmp_path, monkeypatch, arrow_peak):
    monkeypatch.setattr(response_file, "_CHUNK_TOKENS", 1 << 14)
    limits = {"capacity_tokens": 1 << 21, "per_prompt": 8, "max_policy_age": None}
    s = ResponseStore(**limits)
    fill(s, 1, 3)
    s.save(tmp_path / "first")  # imports what saving needs
    s = ResponseStore(**limits)
    fill(s, 400, 4000)
    held = 8 * s.tokens
    tracemalloc.start()
    s.save(tmp_path / "s")
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert python_peak < held / 8
    ResponseStore.load(tmp_path / "s", **limits)
    assert 0 < arrow_peak() < held / 8
    assert pq.ParquetFile(tmp_path / "s").num_row_groups == 100


# Files.


@pytest.fixture
def saved(tmp_path):
    s = store()
    s.add("p", [response(0, length=100), response(200, version=2)])
    s.save(tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def load(path, **limits):
    return ResponseStore.load(
        path, **{"capacity_tokens": 100 * ROOM, "per_prompt": 100, "max_policy_age": None} | limits
    )


def test_the_file_is_plain_columns_in_the_order_of_use(saved):
    s = load(saved)
    s.choose("p", 1, choice="worst_reward", seed=0)
    s.choose("p", 2, choice="latest", seed=0)
    s.save(saved)
    rows = pq.read_table(saved).to_pylist()
    assert [(row["prompt_key"], row["serial"], row["policy_version"], row["reward"]) for row in rows] == [
        ("p", 1, 2, 0.0),
        ("p", 0, 0, 0.0),
    ]
    assert rows[0]["token_ids"] == [200, 201] and rows[0]["log_probs"] == [-1, -1]


def test_an_empty_store_is_a_file_too(tmp_path):
    store().save(tmp_path / "s")
    assert len(load(tmp_path / "s")) == 0


def test_every_row_survives_many_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(response_file, "_CHUNK_RESPONSES", 3)
    s = store()
    for i in range(10):
        s.add(f"p{i}", [response(i, length=i + 1)])
    s.save(tmp_path / "s")
    again = load(tmp_path / "s")
    assert pq.ParquetFile(tmp_path / "s").num_row_groups == 4
    for i in range(10):
        assert [plain(r) for r in again.responses_of(f"p{i}")] == [plain(r) for r in s.responses_of(f"p{i}")]


def test_what_is_added_after_loading_counts_as_added_last(tmp_path):
    s = store(per_prompt=2)
    s.add("p", [response(i) for i in range(6)])
    s.save(tmp_path / "s")
    again = load(tmp_path / "s", per_prompt=2)
    again.add("p", [response(6)])
    assert firsts(again.responses_of("p")) == [5, 6]


def test_tighter_limits_apply_when_loading(tmp_path):
    s = store()
    s.add("p", [response(i, version=i) for i in range(4)])
    s.add("q", [response(9, version=9)])
    s.expire(9)
    s.choose("p", 1, choice="latest", seed=0)
    s.save(tmp_path / "s")
    assert firsts(load(tmp_path / "s", per_prompt=2).responses_of("p")) == [2, 3]
    assert firsts(load(tmp_path / "s", max_policy_age=7).responses_of("p")) == [2, 3]
    small = load(tmp_path / "s", capacity_tokens=2 * ROOM)
    assert firsts(small.responses_of("p")) == [3] and firsts(small.responses_of("q")) == [9]
    assert small.stats()["evicted_by_capacity"] == 3


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_torn_file_is_refused_by_its_path(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=str(saved)):
        load(saved)


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "none")):
        load(tmp_path / "none")


def row(**changes):
    sound = {"prompt_key": "p", "serial": 0, "policy_version": 0, "reward": 0.0, "token_ids": [1], "log_probs": [-1.0]}
    return sound | changes


STATE_OF_ONE = {"format": 1, "current_version": 0, "evicted": {"age": 0, "per_prompt": 0, "capacity": 0}}


def write_by_hand(path, one, *, schema=SCHEMA, state=STATE_OF_ONE):
    metadata = {STATE: json.dumps(state)} if state else {}
    pq.write_table(pa.Table.from_pylist([one], schema=schema.with_metadata(metadata)), path)


def test_a_file_written_by_hand_is_taken(tmp_path):
    write_by_hand(tmp_path / "s", row())
    assert plain(load(tmp_path / "s").responses_of("p")[0]) == ([1], [-1.0], 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"log_probs": [float("nan")]}, "finite"),
        ({"log_probs": [-1.0, -1.0]}, r"token_ids \(1,\) and log_probs \(2,\)"),
        ({"token_ids": [], "log_probs": []}, "at least one token"),
        ({"token_ids": None}, "empty cells"),
        ({"token_ids": [None]}, "empty cells"),
        ({"prompt_key": None}, "empty cells"),
        ({"prompt_key": "ü"}, "ASCII"),
    ],
)
def test_an_unsound_row_is_refused_by_the_files_path(tmp_path, changes, named):
    write_by_hand(tmp_path / "s", row(**changes))
    with pytest.raises(ValueError, match=f"{tmp_path / 's'}.*{named}"):
        load(tmp_path / "s")


def test_other_columns_types_and_formats_are_refused_by_the_files_path(tmp_path):
    path = tmp_path / "s"
    pq.write_table(pa.table({"prompt": ["a"]}), path)
    with pytest.raises(ValueError, match=rf"{path}.*\['prompt'\], expected \['prompt_key'"):
        load(path)
    write_by_hand(path, row(), schema=SCHEMA.set(4, pa.field("token_ids", pa.list_(pa.int64()))))
    with pytest.raises(ValueError, match=f"{path}.*its columns"):
        load(path)
    for state in (None, {"format": 2}):
        write_by_hand(path, row(), state=state)
        with pytest.raises(ValueError, match=f"{path}.*format is not 1"):
            load(path)


def test_a_stored_response_too_long_for_a_smaller_capacity_is_refused(saved):
    s = load(saved)
    s.add("p", [response(0, length=5000)])
    s.save(saved)
    with pytest.raises(ValueError, match=rf"{saved}.*soup\.replay\.capacity_tokens"):
        load(saved, capacity_tokens=2 * ROOM)
