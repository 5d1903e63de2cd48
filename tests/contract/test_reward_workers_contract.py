"""A reward function that calls sys.exit, in verl's own reward worker."""

import asyncio
import inspect

import pytest
import torch
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopWorker
from verl.experimental.reward_loop.reward_manager import naive
from verl.trainer.ppo.v1 import PPOTrainer

from soup_verl.stack.reward_workers import _tell_exits
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract
FUNCTION = """
import sys

{kind} score(data_source, solution_str, ground_truth, extra_info):
    if ground_truth == "leave":
        sys.exit(7)
    return 0.5
"""


@pytest.fixture(params=["def", "async def"])
def worker_of(request, tmp_path):
    """A worker with the reward manager of a name, no Ray actor; its function is called in a thread, or awaited."""
    (tmp_path / "reward.py").write_text(FUNCTION.format(kind=request.param))
    model = files.write_model(tmp_path / "model", files.SMALL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def made(manager):
        config = files.configure(
            actor_rollout_ref__model__path=model,
            reward__custom_reward_function__path=tmp_path / "reward.py",
            reward__custom_reward_function__name="score",
            reward__reward_manager__name=manager,
        )
        return RewardLoopWorker(config)

    yield made
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def worker(worker_of):
    return worker_of("naive")


def scored(worker, gold):
    data = DataProto.from_dict(
        tensors={"responses": torch.tensor([[40, 41]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)},
        non_tensors={
            "data_source": ["d"],
            "reward_model": [{"ground_truth": gold}],
            "extra_info": [{}],
        },
    )
    return worker.loop.run_until_complete(worker.compute_score(data))


def test_a_function_that_leaves_fails_its_response_and_the_worker_scores_the_next(worker):
    _tell_exits(worker)
    with pytest.raises(RuntimeError, match=r"^the reward function called sys\.exit\(7\): expected a number"):
        scored(worker, "leave")
    assert scored(worker, "4")["reward_score"] == 0.5


def test_a_manager_that_takes_every_error_for_a_reward_of_0_goes_on(worker_of):
    """verl's `rate_limited`: it waits in a task of its own, from which an exit would reach the event loop."""
    worker = worker_of("rate_limited")
    _tell_exits(worker)
    assert scored(worker, "leave")["reward_score"] == 0.0
    assert scored(worker, "4")["reward_score"] == 0.5


def test_verls_worker_alone_is_left(worker):
    """Why there is something to do. Where this no longer fails, `reward_workers.py` can go."""
    with pytest.raises(SystemExit):
        scored(worker, "leave")


def test_verl_calls_the_function_there():
    assert "await self.reward_manager.run_single(data)" in inspect.getsource(RewardLoopWorker.compute_score)
    assert "self.reward_loop_manager = RewardLoopManager(" in inspect.getsource(PPOTrainer._setup)
    assert asyncio.iscoroutinefunction(naive.NaiveRewardManager.run_single)
