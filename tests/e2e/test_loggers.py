"""The same soup/* numbers reach every logger."""

import json
import struct
from collections.abc import Iterator

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

pytestmark = pytest.mark.runs("frozen_warm")
KEYS = ("soup/prefix_kl_k3", "soup/prefix_clip_fraction", "soup/onpolicy_reward_mean", "soup/mixed_reward_mean")


@pytest.fixture
def finished(run):
    frozen = run("frozen_warm")
    assert frozen.code == 0, frozen.output[-3000:]
    return frozen


def in_file(finished, key: str) -> dict[int, float]:
    """The key by step, as verl's `file` logger was handed it."""
    return {step: values[key] for step, values in finished.metrics().items() if key in values}


def wandb_records(content: bytes) -> Iterator[Record]:
    """The records of wandb's offline file: LevelDB's log format behind a header of 7 bytes. A record's pieces each have
    a head (checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last), and no head crosses a border of 32 KiB."""
    place, record = 7, b""
    while place < len(content):
        if (left := -place % 2**15) and left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_tensorboard_has_what_the_file_has(finished):
    board = EventAccumulator(str(finished.folder.parent / "tensorboard"))
    board.Reload()
    for key in KEYS:
        expected = in_file(finished, key)
        assert expected and {e.step: e.value for e in board.Scalars(key)} == pytest.approx(expected, rel=1e-6, abs=0)


def test_wandb_has_what_the_file_has(finished):
    (log,) = (finished.folder.parent / "wandb").glob("offline-run-*/*.wandb")
    steps = [r.history for r in wandb_records(log.read_bytes()) if r.WhichOneof("record_type") == "history"]
    logged = {
        h.step.num: {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in h.item
        }
        for h in steps
    }
    for key in KEYS:
        expected = in_file(finished, key)
        assert expected and {step: v[key] for step, v in logged.items() if key in v} == pytest.approx(
            expected, rel=1e-6, abs=0
        )


def test_the_console_shows_what_the_file_has(finished):
    for key in KEYS:
        expected = in_file(finished, key)
        assert expected and all(f" - {key}:{value}" in finished.output for value in expected.values())
