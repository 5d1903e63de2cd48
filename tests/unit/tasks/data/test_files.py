"""Rows from every kind of file that people have; what each of them is there for stands in the name of the test."""

import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soup_verl.tasks.data.files import benchmark_files, read_rows
from soup_verl.tasks.data.layouts import DataError
from soup_verl.tasks.data.row_index import index_text, index_to_show

ROWS = [{"question": "a\u2028b\u0085c\x0cd", "answer": "1"}, {"question": "e", "answer": "2"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(path):
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.jsonl", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("windows.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("no_last_newline.jsonl", LINES.rstrip()),
        ("lines.json", LINES),
        ("packed.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("packed.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("packed_in_secret.jsonl", gzip.compress(LINES, mtime=0)),
        ("array.json", json.dumps(ROWS).encode()),
        ("array.jsonl", b"\xef\xbb\xbf\r\n" + json.dumps(ROWS, indent=1).encode()),
    ],
)
def test_json_is_read_however_it_is_written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ROWS


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINES.replace(b"\n", b"\n\n"))
    assert [number for number, _ in read_rows(tmp_path / "rows.jsonl")] == [1, 3]


def shards(folder, *names):
    folder.mkdir()
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([{"i": i}, {"i": i}]), folder / name)
        else:
            (folder / name).write_text(f'{{"i": {i}}}\n{{"i": {i}}}\n')
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("part_1.jsonl", "part_2.jsonl"),
        ("0000.jsonl", "0001.jsonl"),
    ],
)
def test_a_folder_of_shards_is_one_set_in_the_order_of_their_names(tmp_path, names):
    folder = shards(tmp_path / "set", *names)
    (folder / "README.md").write_text("a card")
    (folder / "dataset_infos.json").write_text("{}")
    assert [(n, row["i"]) for n, row in read_rows(folder)] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ROWS
    assert benchmark_files(tmp_path / "saved") == [tmp_path / "saved"]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits" / "train") == ROWS
    with pytest.raises(DataError, match=r"with the splits train; give one of them: .*splits/SPLIT"):
        read(tmp_path / "splits")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("train-0-of-1.jsonl", "test-0-of-1.jsonl"), r"files of several sets \(test, train\)"),
        (("readme.txt",), "expected a folder with .jsonl, .json"),
    ],
)
def test_a_folder_that_is_not_one_set_is_refused(tmp_path, names, told):
    with pytest.raises(DataError, match=told):
        read(shards(tmp_path / "set", *names))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("torn.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "torn.jsonl.gz: not readable"),
        ("torn.json", b'[{"question": ', "an array that is not JSON"),
        ("numbers.json", b"[1, 2]", "row 1 is a int, expected an object"),
        ("wide.jsonl", LINES.decode().encode("utf-16"), "row 1 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (7, "7"),
        (np.int64(7), "7"),
        (7.0, "7"),
        (np.array(7), "7"),
        ("9a8b-uuid", "9a8b-uuid"),
        ("007", "007"),
        (None, "none"),
        (float("nan"), "none"),
        ({"b": None, "a": [1]}, '{"a": [1], "b": null}'),
        ([1, None], "[1, null]"),
        (True, "True"),
    ],
)
def test_an_index_of_any_kind_has_one_text(index, text):
    assert index_text(index) == text


def test_a_number_is_shown_as_a_number_and_text_as_it_is():
    assert [index_to_show(i) for i in (np.int64(-3), "3", None, "x")] == [-3, "3", "none", "x"]
