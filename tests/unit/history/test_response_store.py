"""The response store: any sequence of operations against a model; choices, eviction and refusals by hand."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.history.response_store import CHOICES, ResponseStore, StoredResponse
from tests.unit.history.stores import LIMITS, ROOM, firsts, plain, response, store

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
