"""The same soup/* numbers reach every logger."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.runs("frozen_warm")
KEYS = ("soup/prefix_kl_k3", "soup/prefix_clip_fraction", "soup/onpolicy_reward_mean", "soup/mixed_reward_mean")


@pytest.fixture
def finished(run):
    frozen = run("frozen_warm")
    assert frozen.code == 0, frozen.output[-3000:]
    return frozen


def test_tensorboard_has_what_the_file_has(finished):
    board = EventAccumulator(str(finished.folder.parent / "tensorboard"))
    board.Reload()
    for key in KEYS:
        in_file = {step: values[key] for step, values in finished.metrics().items() if key in values}
        assert in_file and {e.step: e.value for e in board.Scalars(key)} == pytest.approx(in_file)


def test_wandb_was_handed_every_key(finished):
    (log,) = (finished.folder.parent / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert all(key.encode() in content for key in KEYS)


def test_the_console_shows_them(finished):
    assert all(f"{key}:" in finished.output for key in KEYS)
