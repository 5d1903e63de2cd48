"""What the task runner tells the supervisor leans on methods of verl's trainer and replay buffer."""

from types import SimpleNamespace

import pytest
from verl.checkpoint_engine import CheckpointEngineManager
from verl.trainer.ppo.v1 import PPOTrainerSync, replay_buffer

from soup_verl.launch import stalls

pytestmark = pytest.mark.contract


def test_verl_has_the_methods_that_begin_a_stage():
    for name in [*stalls.BEFORE, "fit"]:
        assert callable(getattr(PPOTrainerSync, name)), name
    for name in stalls.SYNCS:
        assert callable(getattr(CheckpointEngineManager, name)), name


def test_a_rollout_tells_how_many_prompts_wait_as_verls_replay_buffer_sees_them(monkeypatch, tmp_path):
    """Three prompts, one of them answered by the second look, the others by the third."""
    looks = iter([["pending", "running", "running"], ["running", "running", "finished"], ["finished"] * 3])

    def listed():
        tags = [{"is_prompt": True, "status": status, "global_steps": 4} for status in next(looks)]
        return {"train": {f"p{i}": tag for i, tag in enumerate(tags)} | {"p0_0_0": {}, "p1_0_0": {}, "p2_0_0": {}}}

    seen = []
    monkeypatch.setattr(replay_buffer, "tq", SimpleNamespace(kv_list=listed, kv_clear=lambda **_: None))
    monkeypatch.setattr(replay_buffer.time, "sleep", lambda _: seen.append(stalls.read(tmp_path)))
    buffer = replay_buffer.ReplayBuffer("sync", None, None, "drop", None)
    nothing = dict.fromkeys([*stalls.BEFORE, "fit"], lambda *_: None)
    syncs = SimpleNamespace(**dict.fromkeys(stalls.SYNCS, lambda *_: None))
    trainer = SimpleNamespace(**nothing, global_steps=4, replay_buffer=buffer, checkpoint_manager=syncs)
    stalls.report_stages(trainer, tmp_path)
    trainer.step()
    buffer.sample(global_steps=4, partition_id="train", batch_size=3)
    assert seen == [stalls.Place("rollout", "rollout", 4, waiting) for waiting in (3, 2)]
