"""What the response store keeps in memory, and what saving and loading it needs on top."""

import tracemalloc
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soup_verl.history import response_file
from soup_verl.history.response_store import ResponseStore, StoredResponse
from tests.unit.history.stores import ROOM, store


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
