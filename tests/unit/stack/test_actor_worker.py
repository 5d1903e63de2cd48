from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

from soup_verl.method.core_algos import PREFIX_CORRECTIONS
from soup_verl.method.metrics import finish_measured
from soup_verl.method.sections import StepSizeConfig
from soup_verl.method.step import InLoss
from soup_verl.stack import kept_weights
from soup_verl.stack.actor_worker import IN_LOSS, MEASURED_PREFIX, SUM_PREFIX, SegmentLoss, SoupActorWorker
from soup_verl.stack.kept_policies import KeptPolicies

SHARDS = {"w": torch.arange(4.0), "b": torch.ones(2)}


class Config(dict):
    """verl's configuration dataclasses also answer `get`."""

    __getattr__ = dict.__getitem__


def config(loss_mode="vanilla"):
    values = {"clip_ratio": 0.2, "clip_ratio_low": None, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}
    return Config(policy_loss={"loss_mode": loss_mode}, **values)


def nested(*rows, dtype=torch.float32):
    return torch.nested.as_nested_tensor([torch.tensor(r, dtype=dtype) for r in rows], layout=torch.jagged)


def micro_batch(**fields):
    """Two responses of 2 and 1 tokens behind prompts of 1 and 2 tokens."""
    batch = {
        "prompts": nested([1], [1, 2], dtype=torch.int64),
        "responses": nested([3, 4], [5], dtype=torch.int64),
        "old_log_probs": nested([0.25, 0.2], [0.4]).log(),
        "advantages": nested([1.0, 1.0], [-1.0]),
        "response_mask": nested([1, 1], [1], dtype=torch.int64),
        **fields,
    }
    return TensorDict(batch, batch_size=2)


# verl's model output is shifted by one: the log-prob of a token stands at the place before it
MODEL_OUTPUT = {"log_probs": nested([0.3, 0.5, 0.9], [0.9, 0.2, 0.9]).log()}


def run_loss(data, **kwargs):
    def verls_loss(*, config, model_output, data, dp_group):
        return torch.tensor(7.0), {"actor/pg_loss": Metric(value=7.0, aggregation="sum")}

    return SegmentLoss(partial(verls_loss, config=config(**kwargs)))(MODEL_OUTPUT, data)


def test_the_loss_is_verls_and_segment_sums_join_its_metrics():
    loss, metrics = run_loss(micro_batch(prefix_mask=nested([1, 0], [0], dtype=torch.int8)))
    assert loss.item() == 7.0 and metrics["actor/pg_loss"].aggregate() == 7.0
    sums = {key.removeprefix(SUM_PREFIX): m.aggregate() for key, m in metrics.items() if key.startswith(SUM_PREFIX)}
    assert sums["prefix_ratio"] == pytest.approx(1.2) and sums["prefix_tokens"] == 1
    assert sums["continuation_ratio"] == pytest.approx(2.5) and sums["continuation_clipped"] == 1
    # 0.2 / 0.4 is below 1 - clip_ratio: clip_ratio stands in where clip_ratio_low is null
    assert sums["onpolicy_ratio"] == pytest.approx(0.5) and sums["onpolicy_clipped"] == 1


def test_without_a_prefix_mask_every_token_is_onpolicy():
    _, metrics = run_loss(micro_batch())
    assert metrics[SUM_PREFIX + "onpolicy_tokens"].aggregate() == 3
    assert metrics[SUM_PREFIX + "prefix_tokens"].aggregate() == 0


def test_sums_are_summed_and_the_maximum_is_a_maximum_over_micro_batches():
    _, metrics = run_loss(micro_batch())
    for key, metric in metrics.items():
        if key.startswith(SUM_PREFIX):
            metric.append(metric.values[0])
    assert metrics[SUM_PREFIX + "onpolicy_tokens"].aggregate() == 6
    assert metrics[SUM_PREFIX + "onpolicy_ratio_max"].aggregate() == pytest.approx(2.5)


def test_another_policy_loss_has_another_meaning_of_clipped_and_gets_no_sums():
    _, metrics = run_loss(micro_batch(), loss_mode="gspo")
    assert set(metrics) == {"actor/pg_loss"}


# ---- what depends on pi_theta while it moves ----

# Two responses of 3 and 2 tokens behind prompts of 1 and 2; pi_theta: 0.3 0.5 0.2, and 0.4 0.8
THREE_AND_TWO = {"log_probs": nested([0.3, 0.5, 0.2, 0.9], [0.9, 0.4, 0.8, 0.9]).log().requires_grad_()}


def changing_batch(prefix, **settings):
    """Ratios of the first response to its behaviour log-probs: 1.2, 2.5, 0.5; of the second: 0.5, 4."""
    fields = {
        "prompts": nested([1], [1, 2], dtype=torch.int64),
        "responses": nested([3, 4, 5], [6, 7], dtype=torch.int64),
        "old_log_probs": nested([0.9, 0.9, 0.9], [0.9, 0.9]).log(),
        "rollout_log_probs": nested([0.25, 0.2, 0.4], [0.8, 0.2]).log(),
        "advantages": nested([8.0, 8.0, 8.0], [-8.0, -8.0]),
        "response_mask": nested([1, 1, 1], [1, 1], dtype=torch.int64),
        "prefix_mask": nested(*prefix, dtype=torch.int8),
    }
    data = TensorDict(fields, batch_size=2)
    tu.assign_non_tensor(data, **settings)
    return data


def handed_to_verl(data):
    """(old_log_probs as probabilities, advantages) of each row, as verl's loss gets them."""
    seen = {}

    def verls_loss(*, config, model_output, data, dp_group):
        seen.update({name: [row.tolist() for row in data[name].unbind()] for name in ("old_log_probs", "advantages")})
        return torch.tensor(7.0), {}

    before = {name: data[name] for name in ("old_log_probs", "advantages")}
    SegmentLoss(partial(verls_loss, config=config()))(THREE_AND_TWO, data)
    assert all(data[name] is value for name, value in before.items()), "the caller's own fields were changed"
    return [torch.tensor(row).exp().tolist() for row in seen["old_log_probs"]], seen["advantages"]


def rows_close(found, expected):
    assert [pytest.approx(row, rel=1e-5) for row in expected] == found


@pytest.mark.parametrize("settings", [{}, {IN_LOSS: InLoss()}])
def test_verls_loss_gets_what_was_written_where_nothing_moves(settings):
    old, advantages = handed_to_verl(changing_batch(([1, 1, 0], [0, 1]), **settings))
    rows_close(old, [[0.9] * 3, [0.9] * 2])
    rows_close(advantages, [[8] * 3, [-8] * 2])


@pytest.mark.parametrize(
    ("prefix", "old", "advantages"),
    [
        # gamma p / (p + gamma)^2 at gamma 0.2: 0.24 at 0.3, 10/49 at 0.5, 0.25 at 0.2, 2/9 at 0.4, 0.16 at 0.8
        (([0, 0, 0], [0, 0]), [[0.9] * 3, [0.9] * 2], [[8] * 3, [-8] * 2]),
        (([1, 0, 0], [1, 1]), [[0.3, 0.9, 0.9], [0.4, 0.8]], [[1.92, 8, 8], [-16 / 9, -1.28]]),
        (([0, 1, 1], [0, 1]), [[0.9, 0.5, 0.2], [0.9, 0.8]], [[8, 80 / 49, 2], [-8, -1.28]]),
    ],
)
def test_shaped_prefix_tokens_follow_the_policy_of_the_moment(prefix, old, advantages):
    found = handed_to_verl(changing_batch(prefix, **{IN_LOSS: InLoss("shaped", shaped_gamma=0.2)}))
    rows_close(found[0], old)
    rows_close(found[1], advantages)


@pytest.mark.parametrize(
    ("prefix", "advantages"),
    [
        (([0, 0, 0], [0, 0]), [[8, 8, 8], [-8, -8]]),
        (([1, 1, 0], [1, 0]), [[8, 9.6, 9.6], [-8, -4]]),
        (([1, 1, 1], [0, 1]), [[8, 9.6, 9.6], [-8, -8]]),
        (([0, 1, 0], [1, 1]), [[8, 8, 20], [-8, -4]]),
    ],
)
def test_the_min_prefix_correction_weights_what_follows_historical_tokens(prefix, advantages):
    old, found = handed_to_verl(changing_batch(prefix, **{IN_LOSS: InLoss(prefix_correction="min_prefix")}))
    rows_close(old, [[0.9] * 3, [0.9] * 2])
    rows_close(found, advantages)


def test_the_mean_correction_of_each_segment_is_reported():
    """Ratios 1.2, 2.5, 0.5 and 0.5, 4: row 0 has weights 1, 1.2 on the prefix and 3 behind it."""
    data = changing_batch(([1, 1, 0], [0, 0]), **{IN_LOSS: InLoss(prefix_correction="cumulative_unclipped")})
    _, metrics = SegmentLoss(partial(lambda **_: (torch.tensor(7.0), {}), config=config()))(THREE_AND_TWO, data)
    sums = {k.removeprefix(MEASURED_PREFIX): m.aggregate() for k, m in metrics.items() if k.startswith(MEASURED_PREFIX)}
    assert finish_measured(sums) == {
        "soup/prefix_correction_mean": pytest.approx(1.1),
        "soup/continuation_correction_mean": pytest.approx(3),
        "soup/onpolicy_correction_mean": 1,
    }
    assert metrics[SUM_PREFIX + "prefix_tokens"].aggregate() == 2  # the update's own sums are there too


def test_both_at_once():
    data = changing_batch(([1, 1, 0], [0, 0]), **{IN_LOSS: InLoss("shaped", "min_prefix", 0.2)})
    old, advantages = handed_to_verl(data)
    rows_close(old, [[0.3, 0.5, 0.9], [0.9, 0.9]])
    rows_close(advantages, [[1.92, 1.2 * 80 / 49, 9.6], [-8, -8]])


@pytest.mark.parametrize("correction", PREFIX_CORRECTIONS)
def test_every_correction_there_is_has_its_own_effect(correction):
    _, advantages = handed_to_verl(
        changing_batch(([1, 0, 0], [0, 0]), **{IN_LOSS: InLoss(prefix_correction=correction)})
    )
    assert (advantages[0] != [8.0] * 3) is (correction != "none")


def test_the_sums_are_those_of_the_tensors_in_the_loss():
    def verls_loss(*, config, model_output, data, dp_group):
        return torch.tensor(7.0), {}

    data = changing_batch(([1, 1, 0], [0, 0]), **{IN_LOSS: InLoss("shaped", shaped_gamma=0.2)})
    _, metrics = SegmentLoss(partial(verls_loss, config=config()))(THREE_AND_TWO, data)
    assert metrics[SUM_PREFIX + "prefix_ratio"].aggregate() == pytest.approx(2.0)  # two tokens of ratio 1
    assert metrics[SUM_PREFIX + "prefix_clipped"].aggregate() == 0
    assert metrics[SUM_PREFIX + "prefix_gradient"].aggregate() == pytest.approx(1.92 + 80 / 49)


class OneRankWorker(SoupActorWorker):
    """The worker without verl's set-up; its live weights are `live`."""

    rank, world_size = 0, 1

    def __init__(self, live):
        self.live, self._kept = live, KeptPolicies()

    def _shards(self):
        return {name: tensor.clone() for name, tensor in self.live.items()}


def test_a_copy_of_the_weights_is_gone_before_the_next_of_its_name_is_made(monkeypatch):
    worker = SoupActorWorker.__new__(SoupActorWorker)
    worker.actor = SimpleNamespace(engine=SimpleNamespace(module=None))
    worker.cpu_saved_models = {}
    held_meanwhile = []
    monkeypatch.setattr(kept_weights, "keep", lambda module: held_meanwhile.append(list(worker.cpu_saved_models)) or {})
    for name in (0, 1, 0):
        worker.save_model_to_cpu(name)
    assert held_meanwhile == [[], [0], [1]] and set(worker.cpu_saved_models) == {0, 1}


def test_kept_policies_survive_on_disk(tmp_path):
    worker = OneRankWorker(SHARDS)
    worker.keep_policy(3)
    worker.live = {name: -tensor for name, tensor in SHARDS.items()}
    worker.keep_policy(4)
    worker.write_kept_policies(str(tmp_path), [3, 4])
    assert {p.name for p in tmp_path.iterdir()} == {f"policy_{v}_rank_0_of_1.safetensors" for v in (3, 4)}

    second = OneRankWorker({name: torch.zeros_like(tensor) for name, tensor in SHARDS.items()})
    second.keep_policy(1)
    second.read_kept_policies(str(tmp_path), [3, 4])
    for version, sign in ((3, 1), (4, -1)):
        tensors = second._kept.weights(version)
        assert {n: t.tolist() for n, t in tensors} == {"w": [0, sign, 2 * sign, 3 * sign], "b": [sign, sign]}
    assert second.live["w"].eq(0).all() and second.kept_bytes() == worker.kept_bytes()


def test_damaged_or_foreign_snapshots_are_refused_by_their_path(tmp_path):
    worker = OneRankWorker(SHARDS)
    worker.keep_policy(3)
    path = tmp_path / "policy_3_rank_0_of_1.safetensors"
    with pytest.raises(ValueError, match=str(path)):
        worker.read_kept_policies(str(tmp_path), [3])
    worker.write_kept_policies(str(tmp_path), [3])
    with pytest.raises(ValueError, match=f"{path}: w is missing or of another shape"):
        OneRankWorker({"w": torch.zeros(5)}).read_kept_policies(str(tmp_path), [3])
    with pytest.raises(ValueError, match=f"{path}: other is missing"):
        OneRankWorker({"other": torch.zeros(5)}).read_kept_policies(str(tmp_path), [3])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=str(path)):
        worker.read_kept_policies(str(tmp_path), [3])


def updating_worker():
    """A worker with an optimizer and a loss, without verl's set-up."""
    worker = SoupActorWorker.__new__(SoupActorWorker)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.5, 0.25)])
    worker.actor = SimpleNamespace(engine=SimpleNamespace(optimizer=optimizer))
    worker._segment_loss = SegmentLoss(partial(plain_loss, config=config()))
    worker._skipped_updates, worker._step_sizes = 0, []
    return worker


def plain_loss(*, config, model_output, data, dp_group):
    return torch.tensor(7.0), {}


def test_an_update_has_the_learning_rate_that_the_ratios_of_its_micro_batches_allow():
    """Ratios 1.2 x 2.5 = 3 and .5 of the two prefixes: (3.5)^2 / (2 x 9.25) = .662."""
    worker = updating_worker()
    rates = []

    def verls_step():
        rates.append([group["lr"] for group in worker.actor.engine.optimizer.param_groups])
        return 1.0

    step = worker._watched(verls_step)
    settings = {IN_LOSS: InLoss(step_size=StepSizeConfig("linear"))}
    for rows in (([1, 1, 0], [0, 0]), ([0, 0, 0], [1, 0])):
        worker._segment_loss(THREE_AND_TWO, changing_batch(rows, **settings))
    step()
    ((share, factor),) = worker.take_step_sizes()
    assert share == factor == pytest.approx(3.5**2 / 18.5, rel=1e-5)
    assert rates == [pytest.approx([0.5 * factor, 0.25 * factor])]
    assert [group["lr"] for group in worker.actor.engine.optimizer.param_groups] == [0.5, 0.25]
    worker._segment_loss(THREE_AND_TWO, changing_batch(([0, 0, 0], [0, 0]), **settings))  # the next one: nothing mixed
    step()
    worker._segment_loss(THREE_AND_TWO, changing_batch(([1, 1, 0], [1, 0])))  # and without the rule
    step()
    assert rates[1:] == [[0.5, 0.25]] * 2 and worker.take_step_sizes() == []


def test_learning_rates_come_back_also_when_the_update_fails():
    worker = updating_worker()
    worker._segment_loss(
        THREE_AND_TWO, changing_batch(([1, 0, 0], [1, 0]), **{IN_LOSS: InLoss(step_size=StepSizeConfig("sqrt"))})
    )
    with pytest.raises(ZeroDivisionError):
        worker._watched(lambda: 1 / 0)()
    assert [group["lr"] for group in worker.actor.engine.optimizer.param_groups] == [0.5, 0.25]


def test_updates_with_a_gradient_that_is_not_finite_are_counted_once():
    norms = iter([1.0, float("nan"), float("inf"), 0.5])
    worker = updating_worker()
    step = worker._watched(lambda: next(norms))
    assert [str(step()) for _ in range(4)] == ["1.0", "nan", "inf", "0.5"]
    assert worker.take_skipped_updates() == 2
    assert worker.take_skipped_updates() == 0
