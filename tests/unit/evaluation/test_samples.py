"""A file cut anywhere loses the torn line only, and what is missing is exactly what was cut."""

import json
import os
import subprocess
import sys

import pytest

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.samples import SampleFile, bind, claim, key_of

KEYS = [("a.parquet", index, session) for session in range(2) for index in range(2)]


def row(key, text="\u00e9\n{}"):
    file, index, session = key
    return {"file": file, "index": index, "session": session, "response": text}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "samples.jsonl"
    file = SampleFile(path)
    file.append(row(key) for key in KEYS[:2])
    file.append([row(KEYS[2]), row(KEYS[3])])
    file.close()
    return path


def test_cut_at_any_byte_nothing_is_lost_or_made_twice(path):
    data = path.read_bytes()
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        file = SampleFile(path)
        whole = data[:end].count(b"\n")
        assert list(file.rows) == KEYS[:whole]
        missing = file.missing(KEYS)
        assert missing == KEYS[whole:]
        file.append(row(key) for key in missing)
        file.close()
        assert path.read_bytes() == data


def test_rows_are_on_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "s.jsonl").read_bytes()))
    file = SampleFile(tmp_path / "s.jsonl")
    file.append([row(KEYS[0])])
    assert json.loads(synced[-1]) == row(KEYS[0])


def test_a_sample_counts_once(path):
    with pytest.raises(EvaluationError, match="sample must count once"):
        SampleFile(path).append([row(KEYS[1])])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(EvaluationError, match=r"line 5: .*'a.parquet', 0, 0.* is there already"):
        SampleFile(path)


@pytest.mark.parametrize("broken", [b"\n", b"{}\n", b"[1]\n", b'{"file": "a"\n', b"\x00\x00\n"])
def test_a_whole_line_that_is_no_sample_is_refused_and_kept(path, broken):
    data = path.read_bytes()
    path.write_bytes(broken + data)
    with pytest.raises(EvaluationError, match=r"samples.jsonl: line 1 is not a sample"):
        SampleFile(path)
    assert path.read_bytes() == broken + data


def test_long_fields_are_on_disk_alone(path):
    file = SampleFile(path, on_disk=["response"])
    file.append([row(("a.parquet", 7, 0))])
    assert all(set(kept) == {"file", "index", "session"} for kept in file.rows.values())
    assert all("response" in json.loads(line) for line in path.read_text().splitlines())


def test_key_of_a_row():
    assert key_of(row(KEYS[1])) == KEYS[1]


def test_other_settings_are_refused_by_name(tmp_path):
    bind(tmp_path, {"temperature": 0.6, "seed": 0})
    bind(tmp_path, {"temperature": 0.6, "seed": 0})
    with pytest.raises(EvaluationError, match=r"made with temperature=0.6, now 1.0. Choose another --out"):
        bind(tmp_path, {"temperature": 1.0, "seed": 0})
    with pytest.raises(EvaluationError, match=r"seed=0, now None"):
        bind(tmp_path, {"temperature": 0.6})


def test_unreadable_settings_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"temp')
    with pytest.raises(EvaluationError, match=r"settings.json: not readable"):
        bind(tmp_path, {})


HOLDER = """
import sys
from pathlib import Path
from soup_verl.evaluation.samples import claim
lock = claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_folder_belongs_to_one_evaluation_as_long_as_its_process_lives(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(EvaluationError, match="another evaluation is writing there"):
            claim(tmp_path)
    finally:
        other.kill()
        other.communicate()
    claim(tmp_path).close()


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(EvaluationError, match=r"--out=.*out: cannot be written to"):
        claim(tmp_path / "out")
