"""What verl's replay buffer does under dynamic sampling: refills, and groups that it drops before a step has them."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1 import replay_buffer

from soup_verl.stack.dynamic_sampling import NotingReplayBuffer
from tests.unit.stack.transfer_queue import Queue

pytestmark = pytest.mark.contract

N = 2


class Prompts(Queue):
    """Prompts, each with as many trajectories as it has rewards."""

    def finish(self, uid, rewards):
        self.kv_batch_put([uid], "train", tags=[{"is_prompt": True, "status": "finished", "global_steps": 1}])
        scores = torch.nested.as_nested_tensor([torch.tensor([reward]) for reward in rewards], layout=torch.jagged)
        keys = [f"{uid}_{session}_0" for session in range(len(rewards))]
        fields = TensorDict({"rm_scores": scores}, batch_size=len(rewards))
        self.kv_batch_put(keys, "train", fields, tags=[{"seq_len": 1}] * len(rewards))


@pytest.fixture
def sampled(monkeypatch):
    """`sampled(of)`: two prompts' batch, sampled while refill number k has rewards `of(k)`; what happened, in order."""
    queue, events = Prompts().stand_in(monkeypatch), []
    numbers = iter(range(99))

    def run(rewards_of):
        def submit(count):
            events.append(("submit", count))
            for _ in range(count):
                number = next(numbers)
                queue.finish(f"u{number}", rewards_of(number))

        buffer = replay_buffer.ReplayBuffer(
            "sync",
            None,
            None,
            "drop",
            None,
            poll_interval=0.0,
            refill_fn=submit,
            filter_groups_metric="reward",
            train_batch_size=2,
            gen_batch_size=1,
        )
        submit(2)

        def note(batch):
            assert all(key in queue.rows for key in batch.keys), "shown too late"
            events.append(("dropped", sorted(batch.keys)))

        batch, metrics = NotingReplayBuffer(buffer, note).sample(1, "train", 2)
        return sorted(batch.keys), metrics, events

    return run


def sessions(*uids):
    return [f"{uid}_{session}_0" for uid in uids for session in range(N)]


def test_a_group_of_equal_rewards_is_shown_then_dropped_and_two_prompts_stand_in_for_it(sampled):
    keys, metrics, events = sampled(lambda number: (0.0, 0.0) if number == 1 else (0.0, 1.0))
    assert events[:3] == [("submit", 2), ("dropped", sessions("u1")), ("submit", 2)]
    # One of the two that stand in for it is too many, and is shown, too; which one is verl's choice.
    (_, surplus) = events[3]
    assert len(events) == 4 and sorted([*keys, *surplus]) == sorted(sessions("u0", "u2", "u3"))
    assert metrics["training/filter_groups/evicted_samples"] == 1
    assert metrics["training/filter_groups/discarded_surplus_samples"] == 1


def test_no_more_prompts_are_under_way_than_a_batch_has(sampled):
    keys, _, events = sampled(lambda number: (0.0, 0.0) if number < 6 else (0.0, 1.0))
    assert all(count <= 2 for what, count in events if what == "submit")
    assert keys == sessions("u6", "u7")


def test_nothing_is_shown_where_every_group_has_a_signal(sampled):
    keys, _, events = sampled(lambda number: (0.0, 1.0))
    assert events == [("submit", 2)] and keys == sessions("u0", "u1")


def test_verl_hands_the_trainers_own_function_over_for_refills():
    from verl.trainer.ppo.v1 import PPOTrainerSync

    source = SimpleNamespace(_next_train_batch=lambda n: ("batch", n), _submit_batch_to_rollout=lambda batch: batch)
    assert PPOTrainerSync._add_prompts_to_generate(source, 3) == ("batch", 3)
