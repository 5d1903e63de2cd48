"""What val-soup/*/pass@k leans on in verl's validation, why it is there, and when verl validates."""

import inspect
import logging

import pytest
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.v1 import PPOTrainer

from soup_verl.trainer import SoupTrainer
from tests.contract.test_trainer_contract import in_order

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


def test_verl_tells_rows_of_the_data_apart_and_counts_a_sessions_last_output():
    assert in_order(
        PPOTrainer._validate,
        'batch_dict["uid"] = np.array(',
        "str(uuid.uuid4()) for _ in range(len(batch_dict",
        "rollout.val_kwargs.n",
        "final_keys = ",
        "kv_batch_get(keys=final_keys",
        'sample_uids.extend(data.pop("uid")',
        'scores = data["rm_scores"].sum(dim=1).tolist()',
        'reward_extra_infos_dict["reward"].extend(scores)',
        'extra_field.get("reward_extra_info", {})',
        "return self._val_metrics_update(",
    )


def test_verl_validates_before_training_then_every_so_often_and_at_the_last_step():
    assert in_order(
        PPOTrainer.fit,
        'self.config.trainer.get("val_before_train", True)',
        "self._validate()",
        "is_last_step = self.global_steps >= self.total_training_steps",
        "if self.config.trainer.test_freq > 0 and (\n"
        "                is_last_step or self.global_steps % self.config.trainer.test_freq == 0\n",
        "self._validate()",
    )
    assert 'max_samples=self.config.data.get("val_max_samples", -1)' in inspect.getsource(PPOTrainer._init_dataloader)
