"""What a source asks, on its way to the trainer's workers. The actor's forward pass itself runs in tests/e2e."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from soup_verl import policy_engine
from soup_verl.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.mixing import MixingPlanner, Schedule, SolvedRates
from soup_verl.policy_engine import TrainerPolicyEngine, log_probs_of_actor, prompt_key
from soup_verl.prompt_stream import ReadAheadLoader
from soup_verl.rollout import token_key

CHAT = [{"role": "user", "content": "1+1?"}]


def test_prompt_key_is_the_same_in_every_process_and_for_any_order_of_keys():
    assert prompt_key(CHAT) == "f9321022f2fcaa8f"
    assert prompt_key([{"content": "1+1?", "role": "user"}]) == prompt_key(CHAT)


@pytest.mark.parametrize(
    "other",
    [[{"role": "user", "content": "1+2?"}], [{"role": "system", "content": "1+1?"}], CHAT * 2, []],
)
def test_prompt_key_tells_prompts_apart(other):
    assert prompt_key(other) != prompt_key(CHAT)


# ---- an engine over a data loader of one prompt a batch, numbered 0 to 7 ----


def chat(number):
    return [{"role": "user", "content": str(number)}]


class Batches:
    def __iter__(self):
        return iter({"raw_prompt": [chat(i)], "index": [100 + i]} for i in range(8))

    def __len__(self):
        return 8

    def state_dict(self):
        return {}


class Manager:
    """Notes what it is asked; a prompt's token ids are 1 and its number."""

    def __init__(self):
        self.calls = []

    def prompt_ids(self, prompts):
        return [[1, int(p[0]["content"])] for p in prompts]

    def sample_prefixes(self, step, prompts, plan, **kwargs):
        self.calls.append((step, [p[0]["content"] for p in prompts], plan, kwargs))
        return "pending"


MICRO_BATCHES = {"log_prob_use_dynamic_bsz": False, "log_prob_micro_batch_size_per_gpu": 3}


def engine_of(
    *, batch=2, gen_batch=1, fetched=1, solved=None, behavior_log_probs="rollout", rollout=MICRO_BATCHES, **planner
):
    loader = ReadAheadLoader(Batches())
    for _ in range(fetched * batch):
        next(loader)
    config = {
        "data": {"train_batch_size": batch, "gen_batch_size": gen_batch},
        "soup": {"behavior_log_probs": behavior_log_probs},
        "actor_rollout_ref": {"rollout": {"temperature": 0.7} | rollout},
    }
    trainer = SimpleNamespace(
        config=OmegaConf.create(config), train_dataloader=loader, agent_loop_manager=Manager(), actor_rollout_wg="actor"
    )
    settings = {"seed": 0, "n": 4, "mixed_fraction": Schedule(0.5), "low": 1, "high": Schedule(8)} | planner
    engine = TrainerPolicyEngine(trainer, MixingPlanner(**settings), solved or SolvedRates())
    engine.fetched_step = fetched
    return engine


@pytest.mark.parametrize(
    ("batch", "gen_batch", "fetched", "step", "prompts"),
    [
        (1, None, 1, 2, "1"),
        (1, None, 1, 5, "4"),
        (1, None, 0, 1, "0"),
        (2, 1, 1, 2, "23"),
        (2, 1, 1, 5, "01"),  # an epoch has 8 batches
        (2, 1, 3, 4, "67"),
    ],
)
def test_the_plan_is_that_of_the_prompts_of_the_step(batch, gen_batch, fetched, step, prompts):
    engine = engine_of(batch=batch, gen_batch=gen_batch, fetched=fetched)
    planned = engine._planner.plan_step(step=step, num_prompts=batch)
    assert engine.plan(step) == [
        PromptPlan(prompt_key(chat(name)), requests) for name, requests in zip(prompts, planned, strict=True)
    ]


def test_token_keys_name_the_prompts_of_the_step_by_data_set_index():
    assert engine_of().token_keys(2) == [token_key(102, [1, 2]), token_key(103, [1, 3])]


def test_a_prompt_that_the_gate_keeps_out_has_no_requests():
    solved = SolvedRates("unsolved")
    solved.record(prompt_key(chat(2)), 0.25)
    solved.record(prompt_key(chat(3)), 0.0)
    plan = engine_of(solved=solved).plan(2)
    assert [len(p.requests) for p in plan] == [0, 2]
    assert plan[1].requests == engine_of().plan(2)[1].requests  # the others' plan stays as it was


@pytest.mark.parametrize(("fraction", "wanted"), [(0.5, True), (0.1, False)])
def test_prefixes_are_wanted_where_the_plan_mixes(fraction, wanted):
    assert engine_of(mixed_fraction=Schedule(fraction)).wants_prefixes(2) is wanted


def test_prefixes_of_every_age_or_of_some_are_asked_for():
    engine = engine_of(ages=(2, 8))
    manager = engine._trainer.agent_loop_manager
    assert engine.sample_prefixes(2) == "pending"
    heads = [GroupPrefixes("a", {}), GroupPrefixes("b", {})]
    for ages in ({2}, {8}, {2, 8}, {5}):
        engine.sample_prefixes(2, ages=ages, heads=heads)
    everything, *parts = manager.calls
    assert everything == (2, ["2", "3"], engine.plan(2), {"heads": None})
    asked = [[[r.age for r in p.requests] for p in plan] for _, _, plan, _ in parts]
    assert asked == [[[2], [2]], [[8], [8]], [[2, 8], [8, 2]], [[], []]]
    assert all(kwargs == {"heads": heads} for *_, kwargs in parts)
    assert [p.prompt_key for p in parts[0][2]] == [p.prompt_key for p in engine.plan(2)]


def test_heads_are_asked_for_by_the_same_plan():
    engine = engine_of(position="middle")
    assert engine.sample_heads(2) == "pending"
    assert engine._trainer.agent_loop_manager.calls == [(2, ["2", "3"], engine.plan(2), {"only_heads": True})]


# ---- rescoring ----

GROUPS = [
    GroupPrefixes(
        "p",
        {
            1: Prefix((5, 6, 7), (-0.5, -0.25, -1.0), 4, head=1),
            2: Prefix((8,), (-2.0,), -1, head=1, complete=True),  # nothing historical
        },
    ),
    GroupPrefixes("q", {3: Prefix((9, 4), (-0.5, -0.75), 4)}),
]


def test_the_engines_own_log_probs_are_left_alone(monkeypatch):
    monkeypatch.setattr(policy_engine, "log_probs_of_actor", lambda *args, **kwargs: 1 / 0)
    assert engine_of(behavior_log_probs="rollout").rescored(2, GROUPS) is GROUPS


def test_historical_tokens_get_the_actors_log_probs_and_heads_keep_theirs(monkeypatch):
    asked = []

    def log_probs(worker_group, sequences, *, temperature, rows_a_rank):
        asked.append((worker_group, sequences, temperature, rows_a_rank))
        return [[-11.0, -12.0, -13.0], [-21.0, -22.0]]

    monkeypatch.setattr(policy_engine, "log_probs_of_actor", log_probs)
    rescored = engine_of(behavior_log_probs="actor").rescored(2, GROUPS)
    assert asked == [("actor", [([1, 2], (5, 6, 7)), ([1, 3], (9, 4))], 0.7, 3)]
    assert rescored == [
        GroupPrefixes("p", {1: Prefix((5, 6, 7), (-0.5, -12.0, -13.0), 4, head=1), 2: GROUPS[0].by_session[2]}),
        GroupPrefixes("q", {3: Prefix((9, 4), (-21.0, -22.0), 4)}),
    ]
    assert GROUPS[0].by_session[1].log_probs == (-0.5, -0.25, -1.0), "the sampled ones are not overwritten"


def test_with_micro_batches_by_tokens_a_rank_may_get_any_number_of_rows(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        policy_engine, "log_probs_of_actor", lambda *args, **kwargs: seen.update(kwargs) or [[-1.0] * 3, [-1.0] * 2]
    )
    dynamic = {"log_prob_use_dynamic_bsz": True, "log_prob_micro_batch_size_per_gpu": None}
    engine_of(behavior_log_probs="actor", rollout=dynamic).rescored(2, GROUPS)
    assert seen["rows_a_rank"] == 1


def test_nothing_historical_is_nothing_to_score(monkeypatch):
    monkeypatch.setattr(policy_engine, "log_probs_of_actor", lambda *args, **kwargs: 1 / 0)
    groups = [GroupPrefixes("p", {2: GROUPS[0].by_session[2]}), GroupPrefixes("q", {})]
    assert engine_of(behavior_log_probs="actor").rescored(2, groups) is groups


class Scorer:
    """An actor of some ranks behind a TransferQueue: the model's output for a token at place i is -(id + i / 100), one
    place early, as verl's is."""

    def __init__(self, monkeypatch, ranks):
        self._dispatch_info = {}
        self.ranks, self.stored, self.cleared = ranks, {}, []
        monkeypatch.setattr(policy_engine.tq, "kv_batch_put", self._put)
        monkeypatch.setattr(policy_engine.tq, "kv_batch_get", self._get)
        monkeypatch.setattr(policy_engine.tq, "kv_clear", self._clear)

    def _query_dispatch_info(self, mesh):
        assert mesh == "actor"
        return list(range(self.ranks))

    def _put(self, *, keys, partition_id, fields, tags):
        assert partition_id == policy_engine.SCORES and len(keys) == len(tags) == len(fields)
        self.stored = {"keys": keys, "fields": fields, "tags": tags}

    def compute_log_prob(self, batch):
        assert batch.keys == self.stored["keys"] and len(batch.keys) % self.ranks == 0
        self.settings = batch.extra_info
        ids = self.stored["fields"]["input_ids"].unbind()
        assert [t["seq_len"] for t in self.stored["tags"]] == [len(row) for row in ids]
        rows = [-(torch.roll(row, -1) + torch.roll(torch.arange(len(row)), -1) / 100).double() for row in ids]
        self.output = torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    def _get(self, *, keys, partition_id, select_fields):
        assert keys == self.stored["keys"] and select_fields == ["log_probs", "response_mask"]
        return {"log_probs": self.output, "response_mask": self.stored["fields"]["response_mask"]}

    def _clear(self, *, keys, partition_id):
        self.cleared.append((keys, partition_id))


@pytest.mark.parametrize(("ranks", "rows_a_rank", "rows"), [(1, 1, 3), (2, 1, 4), (4, 1, 4), (2, 3, 6), (1, 32, 32)])
def test_the_actor_scores_response_tokens_only_and_the_queue_is_left_empty(monkeypatch, ranks, rows_a_rank, rows):
    scorer = Scorer(monkeypatch, ranks)
    sequences = [([1, 2], (5, 6, 7)), ([3], (9,)), ([1, 2, 3, 4], (8, 8))]
    scores = log_probs_of_actor(scorer, sequences, temperature=0.7, rows_a_rank=rows_a_rank)
    expected = [[-5.02, -6.03, -7.04], [-9.01], [-8.04, -8.05]]
    assert [pytest.approx(row) for row in expected] == scores
    assert len(scorer.stored["keys"]) == rows
    assert scorer.settings == {"calculate_entropy": False, "compute_loss": False, "temperature": 0.7}
    assert scorer.cleared == [(scorer.stored["keys"], policy_engine.SCORES)]


# ---- weights ----


class NotingGroup:
    """Stands in for a worker group or checkpoint manager: notes the calls."""

    def __init__(self, calls):
        self._calls = calls

    def __getattr__(self, method):
        return lambda *args: self._calls.append((method, *args))


@pytest.fixture
def noted():
    calls = []
    trainer = SimpleNamespace(actor_rollout_wg=NotingGroup(calls), checkpoint_manager=NotingGroup(calls))
    return TrainerPolicyEngine(trainer, None, SolvedRates()), calls


def test_the_actor_holds_a_kept_policy_inside_the_block_and_its_own_after(noted):
    engine, calls = noted
    with engine.actor_holding(2):
        calls.append("inside")
    assert calls == [
        ("save_model_to_cpu", "current"),
        ("restore_model_from_cpu", 2),
        "inside",
        ("restore_model_from_cpu", "current"),
        ("clear_cpu_model", "current"),
    ]


def test_the_rollout_engine_has_the_actors_weights_inside_the_block_and_sleeps_after(noted):
    engine, calls = noted
    with engine.rollout_awake(2):
        calls.append("inside")
    assert calls == [("update_weights", 2), "inside", ("sleep_replicas",)]


def test_policies_are_kept_dropped_saved_and_loaded_by_version(noted, tmp_path):
    engine, calls = noted
    engine.keep_policy(3)
    engine.drop_policy(3)
    engine.save_policies(tmp_path, (1, 2))
    engine.load_policies(tmp_path, (1, 2))
    assert calls == [
        ("save_model_to_cpu", 3),
        ("clear_cpu_model", 3),
        ("write_kept_policies", str(tmp_path), [1, 2]),
        ("read_kept_policies", str(tmp_path), [1, 2]),
    ]
