"""The stages of a step between sampling and the next step, verl's own code and ours, over a stand-in for TransferQueue
that is as strict as the real one. The model is stood in for: its log-probs are made up."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from soup_verl.method.history import ReplaySource
from soup_verl.method.observation import History
from soup_verl.method.sections import ReplayConfig
from soup_verl.method.step import plan_of_run
from soup_verl.stack.inflight_trainer import SoupColocateAsyncTrainer
from soup_verl.stack.session import FACTS, MixedOutput
from soup_verl.stack.trainer import SoupTrainer
from tests.unit import preflight_files as files
from tests.unit.stack.transfer_queue import Queue

pytestmark = pytest.mark.contract
STEP = 4


class Actor:
    """verl's worker group of some ranks, in what a step asks of it."""

    def __init__(self, queue, ranks):
        self._dispatch_info, self.queue, self.ranks, self.updated = {}, queue, ranks, []

    def _query_dispatch_info(self, mesh):
        assert mesh == "actor"
        return list(range(self.ranks))

    def _shares(self, batch):
        """What each rank reads of a batch."""
        assert len(batch) % self.ranks == 0, "every rank has as many rows"
        return [self.queue.kv_batch_get(part.keys, part.partition_id) for part in batch.chunk(self.ranks)]

    def compute_log_prob(self, batch):
        for part, share in zip(batch.chunk(self.ranks), self._shares(batch), strict=True):
            rows = [
                {"log_probs": -0.125 * torch.arange(len(ids)).float(), "entropy": torch.ones(len(ids))}
                for ids in share["input_ids"].unbind()
            ]
            self.queue.kv_batch_put(part.keys, part.partition_id, list_of_dict_to_tensordict(rows))
        return batch

    def update_actor(self, batch):
        self.updated += self._shares(batch)
        return {"metrics": {"grad_norm": [1.0], "mfu": [0.5]}}

    def take_skipped_updates(self):
        return [0] * self.ranks


def stored(uid, session, index, kind, length, prefix, reward):
    """One response as the worker puts it in the queue: (key, fields, tag)."""
    mask = [1] * length
    if kind == "tool" and length > 2:
        mask[1] = 0
    history = [int(i < prefix and mask[i]) for i in range(length)]
    output = MixedOutput(
        prompt_ids=[7, index + 1],
        response_ids=list(range(10, 10 + length)),
        response_mask=mask,
        response_logprobs=[-0.25 * i for i in range(length)],
        metrics=AgentLoopMetrics(),
        num_turns=2,
        reward_score=reward,
        extra_fields={"reward_extra_info": {"acc": reward}, FACTS: {"cut_short": False}},
        prefix_mask=history,
        policy_version=2 if any(history) else -1,
    )
    fields = output.as_dict() | {
        "uid": uid,
        "session_id": session,
        "index": index,
        "raw_prompt": [{"role": "user", "content": str(index)}],
        "global_steps": STEP,
        "input_ids": torch.tensor([7, index + 1, *range(10, 10 + length)]),
        "position_ids": torch.arange(2 + length),
        "multi_modal_inputs": {},
    }
    fields["loss_mask"] = fields["response_mask"]
    fields["token_versions"] = torch.tensor(
        [STEP - 1 - h if m else -1 for h, m in zip(history, mask, strict=True)], dtype=torch.int32
    )
    versions = dict.fromkeys(("global_steps", "min_global_steps", "max_global_steps"), STEP - 1)
    return f"{uid}_{session}_0", fields, {"status": "success", "seq_len": 2 + length, **versions}


def trainer_of(queue, prompts, *, n, ranks, mini_batch, **soup):
    """A trainer of step 4 whose batch of so many prompts has been sampled."""
    config = files.configure(
        f"data.train_batch_size={prompts}",
        f"actor_rollout_ref.rollout.n={n}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch}",
        "data.max_response_length=8",
        **{f"soup__{key}": value for key, value in soup.items()},
    )
    kind = SoupColocateAsyncTrainer if soup.get("source") == "inflight" else SoupTrainer
    trainer = kind(config)
    trainer._history = History(trainer._soup, plan_of_run(trainer._soup, n=n, response_length=8, last_step=9))
    if soup.get("source") == "replay":
        trainer._history.source = ReplaySource(None, ReplayConfig(), response_length=8, seed=0)
    trainer._place_of_uid = {f"u{i}": i for i in range(prompts)}
    trainer._key_of_uid = {f"u{i}": f"key {i}" for i in range(prompts)}
    trainer.actor_rollout_wg, trainer.tokenizer = Actor(queue, ranks), files.byte_tokenizer()
    trainer.global_steps, trainer.distillation_config, trainer.timing_raw = STEP, None, {}
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: ranks)
    return trainer


def step(trainer, queue):
    """The stages in verl's order; the metrics, and what the ranks read for the update."""
    keys = list(queue.rows)[::-1]  # verl's order is that of arrival
    batch, metrics = KVBatchMeta(partition_id="train", keys=keys, tags=[queue.tags[key] for key in keys]), {}
    batch.extra_info["temperature"] = 1.0
    for stage in (trainer._balance_batch, trainer._compute_old_log_prob, trainer._compute_advantage):
        batch = stage(batch, metrics=metrics)
    batch = trainer._with_dropped(trainer._update_actor(batch, metrics=metrics))
    trainer._compute_metrics(batch, metrics, {"step": 1.0, "gen": 0.5}, global_steps=STEP, epoch=0)
    queue.kv_clear(keys=batch.keys, partition_id=batch.partition_id)
    return metrics, trainer.actor_rollout_wg.updated


@st.composite
def steps(draw):
    """Prompts, responses to each, ranks, and the responses."""
    prompts, n = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    responses = []
    for i in range(prompts):
        for session in range(n):
            length = draw(st.integers(1, 8))
            prefix = draw(st.sampled_from([0, 0, 1, length - 1, length]))
            kind, reward = draw(st.sampled_from(["text", "tool"])), float(draw(st.integers(0, 1)))
            responses.append(stored(f"u{i}", session, i, kind, length, prefix, reward))
    return prompts, n, draw(st.integers(1, 4)), draw(st.permutations(responses))


def queue_of(responses, soup, monkeypatch):
    """The responses, with what the worker adds to them under these settings."""
    ours = {"prefix_mask", "policy_version", "token_versions"}
    if soup.get("source") == "inflight":
        ours.remove("token_versions")
    elif soup.get("mixed_fraction") != 0:
        ours -= {"prefix_mask", "policy_version"}
    queue = Queue().stand_in(monkeypatch)
    for key, fields, tag in responses:
        given = {name: value for name, value in fields.items() if name not in ours}
        queue.kv_batch_put([key], "train", list_of_dict_to_tensordict([given]), [tag])
    return queue


SETTINGS = [
    {},
    {"prefix_objective": "masked"},
    {"prefix_objective": "decoupled", "baseline": "split"},
    {"kl_control.max_prefix_kl": 0.001},
    {"down_sampling.train_on": 2},
    {"down_sampling.train_on": 2, "source": "snapshot"},
    {"source": "replay"},
    {"source": "inflight", "mixed_fraction": 1, "behavior_log_probs": "rollout"},
    {"mixed_fraction": 0},
]


@pytest.mark.parametrize("soup", SETTINGS, ids=str)
@settings(max_examples=8, phases=[Phase.generate])  # to make a failing step smaller takes minutes
@given(drawn=steps())
def test_every_batch_gets_through_the_stages(drawn, soup):
    prompts, n, ranks, responses = drawn
    with pytest.MonkeyPatch.context() as patch:
        queue = queue_of(responses, soup, patch)
        trainer = trainer_of(queue, prompts, n=n, ranks=ranks, mini_batch=prompts, **soup)
        metrics, updated = step(trainer, queue)
    assert queue.rows == {}, "something is left in the queue"
    needed = {"old_log_probs", "rollout_log_probs", "advantages", "response_mask", "loss_mask"}
    needed |= set() if soup.get("mixed_fraction") == 0 else {"prefix_mask"}
    for share in updated:
        assert needed <= set(share.keys())
        lengths = {name: [len(row) for row in share[name].unbind()] for name in needed}
        assert all(found == lengths["response_mask"] for found in lengths.values()), lengths
    if source := trainer._source:
        assert len(source.store) <= len(responses)
    assert metrics["soup/skipped_updates_total"] == 0 and metrics["critic/rewards/mean"] >= 0
    assert not [name for name, value in metrics.items() if name.startswith("soup/") and value != value]
