"""What val-soup/*/pass@k leans on in verl's validation, why it is there, and when verl validates."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base

from soup_verl.stack.trainer import SoupTrainer
from tests.contract.verl_trainer import recording, run_of
from tests.unit.stack.transfer_queue import Queue

pytestmark = pytest.mark.contract


def validated(acc, *, expected=4):
    """The metrics that a validation logs of two prompts with the same text, `acc` of each response by prompt."""
    trainer = SoupTrainer.__new__(SoupTrainer)
    trainer.global_steps = 20
    uids = [uid for uid, values in acc.items() for _ in values]
    values = [value for found in acc.values() for value in found]
    infos = {"reward": [(v or 0) + 0.5 for v in values], "acc": values}  # 0.5 for the form of an answer
    if values.count(None) == len(values):
        del infos["acc"]
    counts = {("a/b", uid): expected for uid in acc}
    return trainer._val_metrics_update(["a/b"] * len(uids), uids, infos, [1] * len(uids), expected_acc_counts=counts)


def test_verls_best_of_4_resamples_and_reads_low():
    """Four draws with replacement from one right and three wrong miss the right one with (3/4)^4 = .32."""
    of_verl = process_validation_metrics(["a"] * 4, ["u"] * 4, {"acc": [1.0, 0.0, 0.0, 0.0]})["a"]["acc"]
    assert of_verl["best@4/mean"] == pytest.approx(1 - 0.75**4, abs=0.03)
    assert validated({"u": [1.0, 0.0, 0.0, 0.0]})["val-soup/a/b/pass@4"] == 1.0


def test_pass_at_1_is_verls_mean():
    found = validated({"u": [1.0, 0.0, 0.0, 0.0], "v": [0.0] * 4})
    assert found["val-soup/a/b/pass@1"] == found["val-core/a/b/acc/mean@4"] == 0.125
    assert found["val-soup/a/b/pass@2"] == 0.25 and found["val-soup/a/b/pass@4"] == 0.5
    assert found["val-aux/num_turns/max"] == 1  # verl's own are all there


def test_without_an_accuracy_the_sign_of_the_reward_decides():
    found = validated({"u": [None, None], "v": [None, None]}, expected=2)
    assert found["val-soup/a/b/pass@1"] == 1.0 and found["val-core/a/b/reward/mean@2"] == 0.5


def test_missing_responses_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        found = validated({"u": [1.0, 0.0], "v": [0.0]}, expected=2)
    assert found["val-soup/a/b/pass@1"] == 0.25 and found["val-soup/a/b/pass@2"] == 1.0
    (record,) = caplog.records
    assert record.getMessage().startswith("step 20: 1 of 4 validation responses are missing")
    caplog.clear()
    validated({"u": [1.0, 0.0]}, expected=2)
    assert not caplog.records


def test_verl_tells_rows_of_the_data_apart_and_counts_a_sessions_last_output(monkeypatch):
    """Two rows with the same text, two responses each, the first of which has two outputs."""
    queue, given = Queue(partition_id="val").stand_in(monkeypatch), {}

    def jagged(*values):
        return torch.nested.as_nested_tensor([torch.tensor([v]) for v in values], layout=torch.jagged)

    def generate(batch):
        assert list(batch["uid"])[0] != list(batch["uid"])[1]
        for uid in batch["uid"]:
            for session, scores in ((0, (0.0, 0.25)), (1, (1.0,))):
                count = len(scores)
                columns = {
                    "prompts": jagged(*[1] * count),
                    "responses": jagged(*[1] * count),
                    "uid": NonTensorStack(*[uid] * count),
                    "rm_scores": jagged(*scores),
                    "num_turns": torch.ones(count),
                    "data_source": NonTensorStack(*["a/b"] * count),
                    "extra_fields": NonTensorStack(*({"reward_extra_info": {"acc": score}} for score in scores)),
                }
                keys = [f"{uid}_{session}_{i}" for i in range(count)]
                queue.kv_batch_put(keys, "val", TensorDict(columns, batch_size=count), [{} for _ in keys])

    trainer = recording([], run_of())
    trainer.config.actor_rollout_ref.rollout.val_kwargs.n = 2
    trainer.val_dataloader = [{"raw_prompt": np.array(["same"] * 2, dtype=object), "data_source": ["a/b"] * 2}]
    trainer.agent_loop_manager = SimpleNamespace(generate_sequences=generate)

    def sample(**_):
        keys = [key for key in queue.rows if "_" in key]
        queue.kv_clear([key for key in queue.rows if "_" not in key], "val")
        return KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="val"), {}

    trainer.replay_buffer = SimpleNamespace(sample=sample)
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: "text")
    trainer._maybe_log_val_generations = lambda **_: None

    def update(sources, uids, infos, turns, expected_acc_counts):
        given.update(sources=sources, uids=uids, infos=dict(infos), expected=expected_acc_counts)
        return {"val": 1.0}

    trainer._val_metrics_update = update
    assert trainer._validate() == {"val": 1.0}
    assert given["sources"] == ["a/b"] * 4 and given["infos"] == {"reward": [0.25, 1.0] * 2, "acc": [0.25, 1.0] * 2}
    first, again, second, last = given["uids"]
    assert first == again != second == last
    assert given["expected"] == {("a/b", first): 2, ("a/b", second): 2}


def test_a_validation_has_as_many_rows_as_it_may_and_training_too(monkeypatch):
    asked = {}

    def dataset(data_files, settings, tokenizer, processor, *, is_train, max_samples):
        asked[is_train] = (data_files, max_samples)
        if not is_train:
            raise InterruptedError
        return []

    monkeypatch.setattr(trainer_base, "create_rl_dataset", dataset)
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.tokenizer = trainer.processor = None
    data = {"train_files": "t", "val_files": "v", "val_max_samples": 5, "train_max_samples": 7}
    trainer.config = OmegaConf.create({"data": data})
    with pytest.raises(InterruptedError):
        trainer._init_dataloader()
    assert asked == {True: ("t", 7), False: ("v", 5)}
