"""Stored responses on disk: plain columns, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soup_verl.history import response_file
from soup_verl.history.response_file import SCHEMA, STATE
from soup_verl.history.response_store import ResponseStore
from tests.unit.history.stores import ROOM, firsts, plain, response, store


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
