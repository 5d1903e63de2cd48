import json

import pytest

from soup_verl.records.files import new_folder, read_json_lines, write_json, write_text


def names(folder):
    return [p.name for p in folder.iterdir()]


def test_a_file_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    with (tmp_path / "a.txt").open() as reader:
        write_text(tmp_path / "a.txt", "two\u2028")
        assert reader.read() == "one"  # who reads already has the file as it was
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "two\u2028" and names(tmp_path) == ["a.txt"]


def test_what_is_no_json_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and names(tmp_path) == ["a.json"]


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "half").touch()  # of a process that was killed
    with new_folder(tmp_path / "new") as folder:
        (folder / "whole").touch()
        assert names(tmp_path) == ["new.partial"]
    assert names(tmp_path) == ["new"] and names(tmp_path / "new") == ["whole"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_nothing_is_left_of_a_folder_that_could_not_be_completed(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path / "new") as folder:
        (folder / "half").touch()
        raise failure
    assert names(tmp_path) == []


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\u0085"])
def test_only_a_newline_ends_a_line(tmp_path, inside):
    file, row = tmp_path / "a.jsonl", {"text": f"a{inside}b"}
    line = json.dumps(row, ensure_ascii=False)
    assert len(line.splitlines()) == 2
    file.write_bytes(f"{line}\n\n{line}".encode())
    assert list(read_json_lines(file)) == [(1, row), (3, row)]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf[1]\r\n2\n")
    assert list(read_json_lines(tmp_path / "a")) == [(1, [1]), (2, 2)]


@pytest.mark.parametrize("broken", [b'{"a": ', b'"\xff"'])
def test_a_broken_line_is_named_or_left_out(tmp_path, broken):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"1\n" + broken + b"\n3\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected JSON, found '"):
        list(read_json_lines(file))
    assert list(read_json_lines(file, skip_broken=True)) == [(1, 1), (3, 3)]
