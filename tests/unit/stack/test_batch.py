"""A batch in a fake TransferQueue: what is read from it, what is written back. Tokens outside of a row's response do
not exist there (jagged rows), and are NaN or anything in the padded tensors."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch.testing import assert_close
from transfer_queue import KVBatchMeta

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import PolicyResponse
from soup_verl.method.history.prefixes import check_response
from soup_verl.method.sections import KlControlConfig
from soup_verl.method.step import trained_tokens
from soup_verl.method.step_batch import StepBatch
from soup_verl.stack import batch as batches
from soup_verl.stack.rollout import token_key
from soup_verl.stack.session import FACTS
from tests.unit.stack.transfer_queue import Queue


def nested(*rows, dtype=torch.float32):
    return torch.nested.as_nested_tensor([torch.tensor(r, dtype=dtype) for r in rows], layout=torch.jagged)


def stack(*values):
    return NonTensorStack(*(NonTensorData(v) for v in values))


def row(response, *, prompt=(1, 2), index=0, prefix=(), version=-1, uid="p", rewards=None, **fields):
    """One sequence; `prefix` are the places of its historical tokens."""
    length = len(response)
    values = {
        "uid": uid,
        "index": index,
        "prompts": torch.tensor(prompt),
        "responses": torch.tensor(response),
        "response_mask": torch.ones(length, dtype=torch.int64),
        "prefix_mask": torch.tensor([int(i in prefix) for i in range(length)], dtype=torch.int8),
        "policy_version": torch.tensor(version),
        "rollout_log_probs": torch.tensor([-0.25 * i for i in range(length)]),
        "old_log_probs": torch.tensor([-0.5 * i for i in range(length)]),
        "entropy": torch.full((length,), 0.5),
        "rm_scores": torch.tensor(rewards or [0.0] * (length - 1) + [1.0]),
        "extra_fields": {},
    }
    return {**values, **fields}


PADDING = {"is_padding": True}


def read(batch, *, planned=True, **how):
    return batches.read(batch, planned=planned, current_version=5, **{"recomputed": True} | how)


@pytest.fixture
def stored(monkeypatch):
    """`stored(rows, tags)`: the batch, its rows in a fake queue under verl's keys uid_session_output."""

    def put(rows, tags=None):
        keys = [f"{r['uid']}_{i}_0" for i, r in enumerate(rows)]
        queue = Queue(dict(zip(keys, rows, strict=True))).stand_in(monkeypatch)
        meta = KVBatchMeta(partition_id="train", keys=keys, tags=tags or [{} for _ in rows])
        return meta, queue

    return put


# ---- rows that are not trained on ----


def test_before_log_probs_are_computed_they_are_not_a_number(stored):
    rows = [row([5, 6, 2]), row([7, 2], prefix=[0], version=3)]
    for each in rows:
        del each["old_log_probs"], each["entropy"]
    batch, _ = stored(rows)
    data = read(batch, recomputed=False).responses
    assert data.old_log_probs.isnan().all() and data.old_log_probs.shape == (2, 3) and data.entropy is None
    assert data.log_probs_to_compare is None and data.rewards.tolist() == [1.0, 1.0]


def test_rows_that_are_dropped_have_no_advantage_and_no_token_of_the_loss(stored):
    batch, queue = stored([row([5, 6, 2]), row([7, 2]), row([8])])
    trained, dropped = batches.split_by_session(batch, [1])
    assert trained.keys == ["p_1_0"] and dropped.keys == ["p_0_0", "p_2_0"]
    batches.leave_untrained(dropped)
    for key, length in (("p_0_0", 3), ("p_2_0", 1)):
        for name in ("response_mask", "advantages", "returns"):
            assert queue.rows[key][name].tolist() == [0] * length
        assert queue.rows[key]["response_mask"].dtype == torch.int64
        assert queue.rows[key]["advantages"].dtype == torch.float32
    assert queue.rows["p_1_0"]["response_mask"].tolist() == [1, 1] and "advantages" not in queue.rows["p_1_0"]


def test_nothing_is_dropped_where_all_rows_are_chosen(stored):
    batch, queue = stored([row([5, 6, 2]), row([7, 2])])
    trained, dropped = batches.split_by_session(batch, [0, 1])
    batches.leave_untrained(dropped)
    assert trained.keys == batch.keys and dropped.keys == []


# ---- reading ----


def test_fields_are_padded_and_rows_stay_in_order(stored):
    batch, _ = stored(
        [row([5, 6, 2], prefix=[0], version=3, uid="a"), row([7, 2], uid="b", rewards=[0.25, 0.5])],
    )
    stored_batch = read(batch)
    data = stored_batch.responses
    assert data.uids == ["a", "b"] and data.rewards.tolist() == [1.0, 0.75]
    assert data.response_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert data.prefix_mask.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert data.policy_version.tolist() == [[3, -1, -1], [-1, -1, -1]] and data.current_version == 5
    assert data.policy_version.dtype == torch.int32
    assert data.rows([0, 1]) is data and data.rows([1]).uids == ["b"] and data.rows([1]).rewards.tolist() == [0.75]
    assert data.is_mixed.tolist() == [True, False] and stored_batch.real_rows == [0, 1]
    assert data.behavior_log_probs[0].tolist() == [0.0, -0.25, -0.5]
    assert stored_batch.nested_response_mask.is_nested


def test_without_mixing_no_field_of_ours_is_asked_for(stored):
    plain = row([5, 6, 2])
    for name in ("prefix_mask", "policy_version", "rollout_log_probs", "entropy"):
        del plain[name]
    batch, _ = stored([plain])
    data = read(batch, planned=False).responses
    assert data.prefix_mask.tolist() == [[0, 0, 0]] and data.policy_version.tolist() == [[-1, -1, -1]]
    assert data.behavior_log_probs is None and data.entropy is None and not data.is_mixed.any()


def test_non_tensor_fields_come_back_one_a_row():
    batch = TensorDict({"x": torch.zeros(2)}, batch_size=2)
    batch["raw"] = stack("a", "b")
    assert batches.items(batch["raw"]) == ["a", "b"]
    assert batches.items(["a", "b"]) == ["a", "b"]


# ---- writing what the loss reads ----

MIXED = {"prefix": [0, 1], "version": 3}


def written(stored, name, rows, max_prefix_kl=None):
    batch, queue = stored(rows)
    data = read(batch)
    soup = SoupConfig(prefix_objective=name, kl_control=KlControlConfig(max_prefix_kl=max_prefix_kl))
    batches.write_trained_tokens(batch, data, trained_tokens(data.responses, soup)[0])
    return [queue.rows[key] for key in batch.keys]


@pytest.mark.parametrize(
    ("name", "old_log_probs", "mask"),
    [
        ("behavior", [0.0, -0.25, -1.0, -1.5], [1, 1, 1, 1]),
        ("decoupled", [0.0, -0.5, -1.0, -1.5], [1, 1, 1, 1]),
        ("masked", [0.0, -0.25, -1.0, -1.5], [0, 0, 1, 1]),
        ("shaped", [0.0, -0.25, -1.0, -1.5], [1, 1, 1, 1]),
    ],
)
def test_each_objective_writes_its_anchor_and_its_mask(stored, name, old_log_probs, mask):
    mixed, onpolicy = written(stored, name, [row([5, 6, 7, 2], **MIXED), row([8, 2])])
    assert mixed["old_log_probs"].tolist() == old_log_probs
    assert mixed["response_mask"].tolist() == mask
    assert mixed.get("loss_mask", mixed["response_mask"]).tolist() == mask
    assert onpolicy["old_log_probs"].tolist() == [0.0, -0.5] and onpolicy["response_mask"].tolist() == [1, 1]


def test_historical_tokens_in_the_middle_and_at_the_end(stored):
    middle, end = written(stored, "masked", [row([5, 6, 7, 2], prefix=[1, 2], version=3), row([5, 6, 2], prefix=[2])])
    assert middle["response_mask"].tolist() == [1, 0, 0, 1] and end["response_mask"].tolist() == [1, 1, 0]
    assert middle["old_log_probs"].tolist() == [0.0, -0.25, -0.5, -1.5]
    assert end["old_log_probs"].tolist() == [0.0, -0.5, -0.5]


def test_a_response_that_is_all_prefix_and_one_that_has_none(stored):
    full, empty = written(stored, "masked", [row([5, 6], prefix=[0, 1], version=3), row([5, 6])])
    assert full["response_mask"].tolist() == [0, 0] and empty["response_mask"].tolist() == [1, 1]


def test_tokens_past_the_kl_limit_leave_the_loss_and_no_others(stored):
    """k3 is 0 on the first prefix token and 0.0288 on the second (log-ratio -0.25): a mean of 0.0144."""
    mixed, onpolicy = written(stored, "behavior", [row([5, 6, 7, 2], **MIXED), row([8, 2])], max_prefix_kl=0.01)
    assert mixed["response_mask"].tolist() == mixed["loss_mask"].tolist() == [1, 0, 1, 1]
    assert onpolicy["loss_mask"].tolist() == [1, 1]
    assert mixed["old_log_probs"].tolist() == [0.0, -0.25, -1.0, -1.5]
    (mixed,) = written(stored, "behavior", [row([5, 6, 7, 2], **MIXED)], max_prefix_kl=0.02)
    assert mixed["response_mask"].tolist() == [1, 1, 1, 1]


def test_a_masked_prefix_stays_out_whatever_the_kl_limit_says(stored):
    (mixed,) = written(stored, "masked", [row([5, 6, 7, 2], **MIXED)], max_prefix_kl=0.01)
    assert mixed["loss_mask"].tolist() == [0, 0, 1, 1]


def test_what_the_loss_reads_is_not_written_again_where_nothing_changes(stored, monkeypatch):
    batch, _ = stored([row([5, 6, 7, 2], **MIXED)])
    data = read(batch)
    monkeypatch.setattr(batches.tq, "kv_batch_put", lambda **kwargs: 1 / 0)
    tokens, _ = trained_tokens(data.responses, SoupConfig(prefix_objective="decoupled"))
    batches.write_trained_tokens(batch, data, tokens)


def test_tokens_that_verl_had_masked_stay_masked(stored):
    holes = row([5, 6, 7, 2], **MIXED, response_mask=torch.tensor([1, 1, 0, 1]))
    (mixed,) = written(stored, "masked", [holes])
    assert mixed["response_mask"].tolist() == [0, 0, 0, 1]


def test_rows_stand_in_the_order_of_their_prompts_and_sessions():
    keys = ["b_10_0", "a_1_0", "b_2_0", "a_0_1", "a_0_0"]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"seq_len": i} for i in range(5)])
    batches.sort_rows(batch, {"a": 7, "b": 3})
    assert batch.keys == ["b_2_0", "b_10_0", "a_0_0", "a_0_1", "a_1_0"]
    assert [tag["seq_len"] for tag in batch.tags] == [2, 0, 4, 3, 1]


def test_padding_rows_get_our_fields_with_their_own_length_and_no_prefix(stored):
    copied = row([5], prefix_mask=torch.tensor([1, 1, 0], dtype=torch.int8), policy_version=torch.tensor(3))
    batch, queue = stored([row([5, 6, 2], **MIXED), copied], [{}, PADDING])
    batches.mark_padding_unmixed(batch)
    real, padding = (queue.rows[key] for key in batch.keys)
    assert padding["prefix_mask"].tolist() == [0] and padding["prefix_mask"].dtype == torch.int8
    assert padding["policy_version"].item() == -1
    assert real["prefix_mask"].tolist() == [1, 1, 0] and real["policy_version"].item() == 3


def test_without_padding_nothing_is_written(stored, monkeypatch):
    batch, _ = stored([row([5, 6, 2], **MIXED)])
    monkeypatch.setattr(batches.tq, "kv_batch_put", lambda **kwargs: 1 / 0)
    batches.mark_padding_unmixed(batch)


# ---- for the metrics and the estimator ----


def test_the_metrics_get_the_real_rows(stored):
    rows = [
        row([5, 6, 2], **MIXED, uid="a", extra_fields={"reward_extra_info": {"acc": 1.0, "pred": 7}}),
        row([8, 2], uid="a", extra_fields={"reward_extra_info": {"acc": 0.0, "pred": 8}}),
        row([9], uid="a"),
    ]
    batch, _ = stored(rows, [{}, {}, PADDING])
    data = read(batch)
    view = data.responses.rows(data.real_rows)
    assert view.uids == ["a", "a"] and view.answers == ["7", "8"] and view.solved.tolist() == [True, False]
    assert view.current_version == 5 and view.response_version.tolist() == [3, -1]
    assert view.response_mask.tolist() == [[1, 1, 1], [1, 1, 0]] and view.entropy.shape == (2, 3)
    assert_close(view.old_log_probs[0], torch.tensor([0.0, -0.5, -1.0]))
    assert view.recomputed and not read(batch, recomputed=False).responses.recomputed


@pytest.mark.parametrize("extra", [{}, None, {"reward_extra_info": {}}])
def test_without_an_accuracy_a_reward_above_0_is_solved(stored, extra):
    rows = [row([5, 2], rewards=[0.0, r], extra_fields=extra) for r in (0.5, 0.0, -1.0)]
    batch, _ = stored(rows)
    view = read(batch).responses
    assert view.solved.tolist() == [True, False, False] and view.answers is None


def test_each_response_is_judged_by_what_its_own_reward_reports(stored):
    """Two reward functions in one batch: the first reports an accuracy, and a reward for the form of a wrong answer."""
    rows = [
        row([5, 2], rewards=[0.0, 0.2], extra_fields={"reward_extra_info": {"acc": 0.0}}),
        row([5, 2], rewards=[0.0, 0.2]),
    ]
    batch, _ = stored(rows)
    view = read(batch).responses
    assert view.solved.tolist() == [False, True]


def test_only_the_last_output_of_a_session_counts():
    keys = ["u_0_0", "u_0_1", "u_1_0", "v_0_10", "v_0_9"]
    assert batches.counted_rows(SimpleNamespace(keys=keys)).tolist() == [False, True, True, True, False]


# ---- responses for the store ----


def responses_of(stored, rows, tags=None, *, response_length=4, from_actor=False):
    batch, _ = stored(rows, tags)
    return batches.policy_responses(batch, read(batch), response_length=response_length, from_actor=from_actor)


def test_what_is_mixed_is_looked_up_once_and_not_for_each_response(stored, monkeypatch):
    """It is a pass over the whole batch: at 8,192 responses of 8,192 tokens a tenth of a second."""
    looked = []
    whole = StepBatch.is_mixed.fget
    monkeypatch.setattr(StepBatch, "is_mixed", property(lambda batch: looked.append(1) or whole(batch)))
    assert len(responses_of(stored, [row([5, 2])] * 3)) == 3 and len(looked) == 1


def plain(response: PolicyResponse):
    return (
        response.token_key,
        response.token_ids.tolist(),
        response.log_probs.tolist(),
        response.policy_version,
        response.reward,
        response.ended,
    )


def test_a_short_response_loses_its_end_token_and_a_full_one_loses_nothing(stored):
    found = responses_of(
        stored,
        [
            row([5, 6, 2], prompt=(1, 2), index=7, rewards=[0.0, 0.5, 0.25]),
            row([5, 6, 7, 8], prompt=(1, 2, 3), index=8),
        ],
    )
    assert [plain(r) for r in found] == [
        (token_key(7, [1, 2]), [5, 6], [0.0, -0.25], 5, 0.75, True),
        (token_key(8, [1, 2, 3]), [5, 6, 7, 8], [0.0, -0.25, -0.5, -0.75], 5, 1.0, False),
    ]
    assert str(found[0].token_ids.dtype) == "int32" and str(found[0].log_probs.dtype) == "float32"
    assert [(r.end_token_id, r.end_log_prob) for r in found] == [(2, -0.5), (None, None)]


def test_a_trajectory_is_stored_with_its_turns_and_without_what_the_tool_said_in_its_loss(stored):
    fields = {
        "response_mask": torch.tensor([1, 1, 0, 1, 1]),
        "extra_fields": {FACTS: {"turn_starts": [3], "cut_short": False}},
    }
    (found,) = responses_of(stored, [row([5, 6, 90, 7, 2], **fields)], response_length=9)
    assert found.token_ids.tolist() == [5, 6, 90, 7] and found.loss_mask.tolist() == [1, 1, 0, 1]
    assert str(found.loss_mask.dtype) == "int8"
    assert (found.turn_starts, found.end_token_id, found.end_log_prob) == ((3,), 2, -1.0)
    check_response(found)


def test_responses_to_a_prompt_with_images_are_stored_under_the_images_too(stored):
    rows = [row([5, 6, 2], index=7, extra_fields={FACTS: {"images": "a key"}}), row([5, 6, 2], index=7)]
    keys = [r.token_key for r in responses_of(stored, rows)]
    assert keys == [token_key(7, [1, 2], "a key"), token_key(7, [1, 2])]


def test_a_response_that_a_tool_ends_has_no_end_token_and_one_of_tools_alone_is_not_stored(stored):
    rows = [row([5, 6, 90], response_mask=torch.tensor([1, 1, 0])), row([90, 91], response_mask=torch.tensor([0, 0]))]
    (found,) = responses_of(stored, rows)
    assert found.token_ids.tolist() == [5, 6, 90] and not found.ended and found.end_token_id is None


def test_a_history_that_ended_early_is_counted(stored):
    rows = [row([5, 2], extra_fields={FACTS: {"cut_short": True}}), row([5, 2])]
    batch, _ = stored(rows)
    assert read(batch).responses.cut_short.tolist() == [True, False]
    assert read(batch, planned=False).responses.cut_short is None


def test_what_the_reward_reports_as_right_is_noted(stored):
    wrong = {"reward_extra_info": {"acc": 0.0}}
    found = responses_of(stored, [row([5, 6, 2]), row([5, 6, 2], extra_fields=wrong)])
    assert [(r.reward, r.solved) for r in found] == [(1.0, True), (1.0, False)]


def test_a_response_that_is_nothing_but_its_end_is_not_stored(stored):
    assert responses_of(stored, [row([2])]) == []
    assert [plain(r)[1] for r in responses_of(stored, [row([5])], response_length=1)] == [[5]]  # a budget of one


def test_mixed_responses_and_padding_are_not_stored(stored):
    rows = [
        row([5, 6, 2], prefix=[0], version=3),
        row([5, 6, 2], prefix=[1], version=3),  # in the middle
        row([6, 7, 2], index=4),
        row([9]),
    ]
    found = responses_of(stored, rows, [{}, {}, {}, PADDING])
    assert [plain(r)[:2] for r in found] == [(token_key(4, [1, 2]), [6, 7])]
    assert responses_of(stored, rows[:2]) == []


def test_the_actors_log_probs_are_stored_where_they_are_asked_for(stored):
    (found,) = responses_of(
        stored, [row([5, 6, 7, 2], rollout_log_probs=torch.full((4,), float("nan")))], from_actor=True
    )
    assert found.log_probs.tolist() == [0.0, -0.5, -1.0, -1.5]


def test_so_is_the_actors_log_prob_of_the_end_token(stored):
    (found,) = responses_of(stored, [row([5, 6, 2])], from_actor=True)
    assert (found.end_token_id, found.end_log_prob) == (2, -1.0)


def test_responses_without_log_probs_cannot_be_stored(stored):
    silent = row([5, 6, 2])
    del silent["rollout_log_probs"]
    with pytest.raises(AssertionError, match="log-probs"):
        responses_of(stored, [silent])


# ---- samples ----


def sampled(stored, *, recomputed=True, rows=(1, 0), first=0):
    batch, queue = stored(
        [
            row([5, 6, 2], index=4, prefix=[0], version=3, uid="a"),
            row([7, 2], prompt=(8,), index=9, uid="b_c", rewards=[0.25, 0.5]),
            row([9, 9, 9, 2], uid="d"),
        ],
    )
    data = read(batch, recomputed=recomputed)
    asked = []
    get = queue.kv_batch_get
    batches.tq.kv_batch_get = lambda **kwargs: asked.append(kwargs["keys"]) or get(**kwargs)
    records = batches.sample_records(batch, data, rows, first=first, decode=str)
    return asked, records


def test_only_the_chosen_rows_are_fetched_and_recorded(stored):
    asked, (second, first) = sampled(stored)
    assert asked == [["b_c_1_0", "a_0_0"]]
    assert (second["sample"], second["index"], second["session"], second["reward"]) == (0, 9, 1, 0.75)
    assert (second["prompt"], second["response_tokens"], second["policy_version"]) == ("[8]", 2, -1)
    assert (first["sample"], first["index"], first["policy_version"], first["step"]) == (1, 4, 3, 6)
    assert first["prefix_mask"] == [1, 0, 0]
    assert first["ratio"] == pytest.approx([1.0, 0.778801, 0.606531])  # exp(-0.5 i + 0.25 i)


def test_numbers_go_on_from_those_of_earlier_mini_batches(stored):
    assert [record["sample"] for record in sampled(stored, first=3)[1]] == [3, 4]


def test_without_recomputed_log_probs_a_sample_has_no_ratio(stored):
    _, (record,) = sampled(stored, recomputed=False, rows=[0])
    assert record["ratio"] == record["current_log_probs"] == [None] * 3
    assert record["behavior_log_probs"] == [0.0, -0.25, -0.5]


@pytest.mark.parametrize(
    ("index", "shown"), [("9a9b-uuid", "9a9b-uuid"), (None, "none"), ({"row": None}, '{"row": null}')]
)
def test_an_index_of_any_kind_is_stored_and_written(stored, index, shown):
    """As in DAPO-Math-17k's own file, whose rows are named by UUIDs."""
    batch, _ = stored([row([5, 6, 2], index=index)])
    data = read(batch)
    (response,) = batches.policy_responses(batch, data, response_length=4, from_actor=False)
    assert response.token_key == token_key(index, [1, 2])
    (record,) = batches.sample_records(batch, data, [0], decode=str)
    assert record["index"] == shown
