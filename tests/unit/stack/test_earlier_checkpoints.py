"""Histories and settings as earlier commits wrote them on the real stack: `earlier/` has what they left, `soup/` of a
checkpoint without verl's files. A change of format that this breaks needs another `checkpoint.FORMAT`."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import LookaheadSource, ReplaySource
from soup_verl.method.sections import ReplayConfig
from soup_verl.records.settings import setting_of
from soup_verl.stack import checkpoint
from soup_verl.stack.resume import check_settings, run_settings
from tests.unit import preflight_files as files

EARLIER = Path(__file__).with_name("earlier")


def lookahead():
    """Commit 2c383b7, 29 November 2026: the quickstart behind its twentieth step."""
    return LookaheadSource(None, ages=(4,), last_step=30)


def replay():
    """Commit 94cd88d, 30 November 2026: behind the fourth step of a run of tests/e2e."""
    return ReplaySource(None, ReplayConfig(), response_length=16, seed=0)


@pytest.mark.parametrize(
    ("source", "file", "rows"), [(lookahead, "pending_prefixes.parquet", 128), (replay, "responses.parquet", 96)]
)
def test_a_history_is_read_whole_and_written_again_as_it_was(tmp_path, source, file, rows):
    earlier, read = EARLIER / source.__name__, source()
    assert json.loads((earlier / checkpoint.MANIFEST).read_text())["format"] == checkpoint.FORMAT
    read.load(earlier)
    read.save(tmp_path)
    had, has = pq.read_table(earlier / file), pq.read_table(tmp_path / file)
    assert has.num_rows == rows and has.select(had.column_names).to_pylist() == had.to_pylist()


@pytest.mark.parametrize("name", ["lookahead", "replay"])
def test_a_run_with_the_same_settings_goes_on_from_it(name):
    stored = json.loads((EARLIER / name / checkpoint.STATE).read_text())["settings"]
    stored = {key: value for key, value in stored.items() if not setting_of(key).by_content}  # files of that machine
    config = files.configure(soup__source=name)
    for key, value in stored.items():
        if OmegaConf.select(config, key) != value:
            OmegaConf.update(config, key, value)  # raises where there is no such key any more
    plain = OmegaConf.to_container(config.soup, resolve=True)
    check_settings(EARLIER / name, stored, run_settings(SoupConfig.parse(plain), config), history_only=False)
