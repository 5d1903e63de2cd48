"""Stored responses on disk: plain columns, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soup_verl.method.history import response_file
from soup_verl.method.history.response_file import SCHEMA, STATE
from tests.unit.method.history.stores import ROOM, beyond, firsts, held, loaded, response, store, turns


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "s.parquet"
    store(response("p", 0, 100), response("p", 200, version=2, ended=False)).save(path)
    return path


def test_the_file_is_plain_columns_in_the_order_of_use(saved):
    s = loaded(saved)
    s.choose("p", 1, choice="worst_reward", seed=0)
    s.choose("p", 2, choice="latest", seed=0)
    s.save(saved)
    first, second = pq.read_table(saved).to_pylist()
    assert first == row(token_key="p", serial=1, policy_version=2, token_ids=[200, 201], log_probs=[-1, -1])
    assert (second["serial"], second["token_ids"], second["ended"]) == (0, list(range(100)), True)


def test_every_row_survives_many_row_groups_and_none(tmp_path, monkeypatch):
    monkeypatch.setattr(response_file, "ROW_GROUP", 3)
    for count in (10, 0):
        s = store(*(response(f"p{i}", i, i + 1, version=i, reward=i / 4, ended=i % 2 == 0) for i in range(count)))
        s.save(tmp_path / "s")
        assert pq.ParquetFile(tmp_path / "s").num_row_groups == -(-count // 3)
        assert held(loaded(tmp_path / "s")) == held(s)


def test_what_is_added_after_loading_counts_as_added_last(tmp_path):
    s = store(*(response("p", i) for i in range(6)))
    s.choose("p", 6, choice="latest", seed=0)  # the first one was used last
    s.save(tmp_path / "s")
    again = loaded(tmp_path / "s", per_prompt=2)
    again.add(response("p", 6))
    assert firsts(again, "p") == [5, 6]


def test_tighter_limits_apply_when_loading(tmp_path):
    s = store(*(response("p", i, version=i) for i in range(4)), response("q", 9, version=9))
    s.expire(9)
    s.choose("p", 1, choice="latest", seed=0)
    s.save(tmp_path / "s")
    assert firsts(loaded(tmp_path / "s", per_prompt=2), "p") == [2, 3]
    assert firsts(loaded(tmp_path / "s", max_policy_age=7), "p") == [2, 3]
    assert [r[:2] for r in held(loaded(tmp_path / "s", capacity_tokens=2 * ROOM))] == [("q", [9, 10]), ("p", [3, 4])]


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_torn_file_is_refused_by_its_path(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=str(saved)):
        loaded(saved)


def row(**changes):
    """A response of format 4."""
    sound = {"token_key": "p", "serial": 0, "policy_version": 0, "reward": 0.0, "token_ids": [1], "log_probs": [-1.0]}
    more = {"end_token_id": None, "end_log_prob": None, "loss_mask": None, "turn_starts": []}
    more |= {"solved": None}
    return sound | {"ended": False} | more | changes


def write_by_hand(path, *rows, schema=SCHEMA, form=4):
    metadata = {STATE: json.dumps({"format": form, "current_version": 4})}
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)), path)


def test_a_file_of_the_first_format_is_taken_and_none_of_it_is_known_to_have_ended(tmp_path):
    types = {"prompt_key": pa.string(), "serial": pa.int64(), "policy_version": pa.int64(), "reward": pa.float64()}
    types |= {"token_ids": pa.list_(pa.int32()), "log_probs": pa.list_(pa.float32())}
    rows = [row(prompt_key="p", serial=i, token_ids=[7 + i], policy_version=2) for i in (1, 0)]
    write_by_hand(tmp_path / "s", *rows, schema=pa.schema(types), form=1)
    s = loaded(tmp_path / "s", max_policy_age=2)
    assert held(s) == [("p", [8], [-1.0], 2, 0.0, False), ("p", [7], [-1.0], 2, 0.0, False)]
    assert firsts(s, "p") == [7, 8]
    s.add(response("p", version=1))  # at version 4 too old
    assert len(s) == 2


def test_a_file_of_the_second_format_is_taken_as_responses_of_one_turn(tmp_path):
    types = {"token_key": pa.string(), "serial": pa.int64(), "policy_version": pa.int64(), "reward": pa.float64()}
    types |= {"token_ids": pa.list_(pa.int32()), "log_probs": pa.list_(pa.float32()), "ended": pa.bool_()}
    rows = [row(serial=i, token_ids=[7 + i], policy_version=2, ended=i == 1) for i in (1, 0)]
    write_by_hand(tmp_path / "s", *rows, schema=pa.schema(types), form=2)
    s = loaded(tmp_path / "s")
    assert held(s) == [("p", [8], [-1.0], 2, 0.0, True), ("p", [7], [-1.0], 2, 0.0, False)]
    assert [beyond(r) for r in s.choose("p", 2, choice="latest", seed=0)] == [(None, None, None, ())] * 2


def test_a_file_of_the_third_format_is_taken_and_what_was_solved_follows_from_the_reward(tmp_path):
    rows = [
        row(serial=i, token_ids=[7 + i], reward=float(i), ended=True, end_token_id=2, end_log_prob=-1.0) for i in (0, 1)
    ]
    write_by_hand(tmp_path / "s", *rows, schema=SCHEMA.remove(11), form=3)
    (found,) = loaded(tmp_path / "s").choose("p", 1, choice="latest_right", seed=0)
    assert found.token_ids.tolist() == [8] and found.solved is None and found.end_token_id == 2


def test_what_was_solved_comes_back(tmp_path):
    s = store(*(response("p", i, solved=solved) for i, solved in enumerate((True, False, None))))
    s.save(tmp_path / "s")
    assert pq.read_table(tmp_path / "s").to_pydict()["solved"] == [True, False, None]
    assert [r.solved for r in loaded(tmp_path / "s").choose("p", 3, choice="latest", seed=0)] == [None, False, True]


def test_turns_masks_and_end_tokens_are_columns_and_come_back(tmp_path):
    s = store(response("p", 10), turns("p", 20), response("p", 30, end_token_id=2, end_log_prob=-0.25))
    s.save(tmp_path / "s")
    columns = pq.read_table(tmp_path / "s").to_pydict()
    assert columns["token_ids"] == [[10, 11], [20, 21, 22, 23, 24], [30, 31]]  # plain ids
    assert columns["loss_mask"] == [None, [1, 1, 0, 1, 1], None] and columns["turn_starts"] == [[], [3], []]
    assert columns["end_token_id"] == [None, 2, 2] and columns["end_log_prob"] == [None, -0.5, -0.25]
    again = loaded(tmp_path / "s")
    assert held(again) == held(s)
    assert [beyond(r) for r in again.choose("p", 3, choice="latest", seed=0)] == [
        (2, -0.25, None, ()),
        (2, -0.5, ("int8", [1, 1, 0, 1, 1]), (3,)),
        (None, None, None, ()),
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"log_probs": [float("nan")]}, "finite"),
        ({"loss_mask": [2]}, "0 or 1 for each token"),
        ({"loss_mask": [None]}, "not usable"),
        ({"turn_starts": [1]}, "turn_starts ascending"),
        ({"turn_starts": None}, "empty cells"),
        ({"end_token_id": 2}, "an end token of a response that ended"),
        ({"log_probs": [-1.0, -1.0]}, "as many log_probs"),
        ({"token_ids": None}, "empty cells"),
        ({"token_ids": [None]}, "empty cells"),
        ({"token_key": None}, "empty cells"),
        ({"token_ids": [1] * 2049, "log_probs": [-1.0] * 2049}, r"soup\.replay\.capacity_tokens=2048"),
    ],
)
def test_an_unsound_row_is_refused_by_the_files_path(tmp_path, changes, named):
    write_by_hand(tmp_path / "s", row(**changes))
    with pytest.raises(ValueError, match=f"{tmp_path / 's'}.*{named}"):
        loaded(tmp_path / "s", capacity_tokens=2 * ROOM)


def test_other_files_columns_types_and_formats_are_refused_by_the_files_path(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(ValueError, match=f"{path}.*No such file"):
        loaded(path)
    pq.write_table(pa.table({"prompt": ["a"]}), path)
    with pytest.raises(ValueError, match=rf"{path}.*format None with columns \['prompt'\]"):
        loaded(path)
    for schema, form in ((SCHEMA.set(4, pa.field("token_ids", pa.list_(pa.int64()))), 4), (SCHEMA, 3), (SCHEMA, 5)):
        write_by_hand(path, row(), schema=schema, form=form)
        with pytest.raises(ValueError, match=rf"{path}.*format {form} with columns \['token_key', "):
            loaded(path)
