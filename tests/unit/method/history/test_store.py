import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.method.history import GroupPrefixes, Prefix
from soup_verl.method.history.store import read_prefixes, write_prefixes

prefixes = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 0, width=32)), min_size=1, max_size=5).flatmap(
    lambda tokens: st.builds(
        Prefix,
        st.just(tuple(t for t, _ in tokens)),
        st.just(tuple(p for _, p in tokens)),
        st.integers(-1, 10**6),
        head=st.integers(0, len(tokens)),
        complete=st.booleans(),
        prompt_hash=st.sampled_from(["", "b71ba5fb265ccd91"]),
    )
)
groups = st.builds(GroupPrefixes, st.text(max_size=8), st.dictionaries(st.integers(0, 15), prefixes, max_size=3))
steps = st.dictionaries(st.integers(1, 10**6), st.lists(groups, min_size=1, max_size=4), max_size=3)


def group(key="k", **sessions):
    return GroupPrefixes(key, {int(s[1:]): prefix for s, prefix in sessions.items()})


PREFIX = Prefix((5, 6), (-0.5, -0.25), 2)


def test_a_file_from_before_prompts_were_checked_is_read(tmp_path):
    write_prefixes(tmp_path / "p.parquet", {3: [group(s1=PREFIX)]})
    table = pq.read_table(tmp_path / "p.parquet")
    pq.write_table(table.drop_columns(["prompt_hash"]), tmp_path / "old.parquet")
    assert read_prefixes(tmp_path / "old.parquet") == {3: [group(s1=PREFIX)]}


@settings(max_examples=25)
@given(steps)
def test_what_was_written_is_read(tmp_path, by_step):
    write_prefixes(tmp_path / "p.parquet", by_step)
    assert read_prefixes(tmp_path / "p.parquet") == by_step


def test_log_probs_are_rounded_to_float32_once(tmp_path):
    write_prefixes(tmp_path / "p.parquet", {1: [group(s0=Prefix((1,), (-0.1,), 0))]})
    once = read_prefixes(tmp_path / "p.parquet")
    assert once[1][0].by_session[0].log_probs == (struct.unpack("f", struct.pack("f", -0.1))[0],)
    assert once[1][0].by_session[0].log_probs == (float(np.float32(-0.1)),)
    write_prefixes(tmp_path / "q.parquet", once)
    assert read_prefixes(tmp_path / "q.parquet") == once


def test_prompts_without_prefixes_keep_their_place(tmp_path):
    by_step = {4: [group("a"), group("b", s3=PREFIX), group("c"), group("d")]}
    write_prefixes(tmp_path / "p.parquet", by_step)
    assert read_prefixes(tmp_path / "p.parquet") == by_step


def test_heads_and_complete_responses_come_back(tmp_path):
    by_step = {2: [group("a", s0=Prefix((5, 6, 7), (-0.5, -0.25, -1.0), 2, head=1, complete=True), s1=PREFIX)]}
    write_prefixes(tmp_path / "p.parquet", by_step)
    assert read_prefixes(tmp_path / "p.parquet") == by_step
    columns = pq.read_table(tmp_path / "p.parquet", columns=["head", "complete"]).to_pydict()
    assert columns == {"head": [1, 0], "complete": [True, False]}


def test_nothing_pending_is_an_empty_file_of_prefixes(tmp_path):
    write_prefixes(tmp_path / "p.parquet", {})
    assert read_prefixes(tmp_path / "p.parquet") == {}


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_torn_file_is_refused_by_its_path(tmp_path, kept):
    path = tmp_path / "torn.parquet"
    write_prefixes(path, {1: [group(s0=PREFIX)]})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=str(path)):
        read_prefixes(path)


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "none.parquet")):
        read_prefixes(tmp_path / "none.parquet")


def test_a_parquet_file_of_something_else_is_refused_by_its_path(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]}), path)
    with pytest.raises(ValueError, match=str(path)):
        read_prefixes(path)
