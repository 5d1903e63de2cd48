"""What verl's replay buffer does under dynamic sampling: refills, and groups that it drops before a step has them."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1 import replay_buffer

from soup_verl.stack.dynamic_sampling import NotingReplayBuffer
from soup_verl.stack.inflight_trainer import SoupColocateAsyncTrainer
from soup_verl.stack.trainer import SoupStages
from tests.unit.stack.transfer_queue import Queue

pytestmark = pytest.mark.contract

N = 2


class Prompts(Queue):
    """Prompts, each with as many trajectories as it has rewards."""

    def finish(self, uid, rewards, step=1):
        self.kv_batch_put([uid], "train", tags=[{"is_prompt": True, "status": "finished", "global_steps": step}])
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


def test_what_an_asynchronous_step_has_trained_on_or_dropped_is_forgotten_and_what_is_under_way_is_not(monkeypatch):
    """Two prompts a step of which one is trained on; one that a second step begins without is dropped. `slow` is under
    way all the while."""
    queue = Prompts().stand_in(monkeypatch)
    monkeypatch.setattr(SoupStages, "_balance_batch", lambda self, batch, *_, **__: batch)
    buffer = replay_buffer.ReplayBufferAsync("colocate_async", None, 1, "drop", None, refill_fn=lambda count: None)
    trainer = SoupColocateAsyncTrainer.__new__(SoupColocateAsyncTrainer)
    trainer.replay_buffer, trainer._place_of_uid = buffer, {"slow": 0}
    queue.kv_batch_put(["slow"], "train", tags=[{"is_prompt": True, "status": "running", "global_steps": 1}])
    trained = []
    for step in range(1, 5):
        for uid in (f"a{step}", f"b{step}"):
            trainer._place_of_uid[uid] = len(trainer._place_of_uid)
            queue.finish(uid, (0.0, 1.0), step)
        batch, _ = buffer.sample(step, "train", 1)
        trained += {key.split("_")[0] for key in trainer._balance_batch(batch).keys}
        queue.kv_clear(batch.keys, "train")
        (other,) = {f"a{step}", f"b{step}"} - set(trained)
        assert trainer._place_of_uid.keys() == {"slow", other}
    assert len(trained) == 4 and set(queue.rows) == {"slow", other, *sessions(other)}
