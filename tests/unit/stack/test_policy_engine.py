"""What a source asks, on its way to the trainer's workers. The actor's forward pass itself runs in tests/e2e."""

import inspect
import weakref

import pytest
import torch
from tensordict import TensorDict
from verl.checkpoint_engine import CheckpointEngineManager
from verl.utils.dataset.rl_dataset import collate_fn

from soup_verl.method.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.method.mixing import MixingPlanner, PrefixRequest, Schedule, SolvedRates
from soup_verl.method.sections import ForgetConfig
from soup_verl.stack import policy_engine
from soup_verl.stack.actor_worker import FORGET, SoupActorWorker
from soup_verl.stack.images import ActorPrompt, prompt_key
from soup_verl.stack.policy_engine import (
    SCORES,
    Rescoring,
    TrainerPolicyEngine,
    Unlearning,
    log_probs_of_actor,
)
from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.rollout import SoupAgentLoopManager, token_key
from tests.unit.stack.transfer_queue import Queue

# ---- an engine over a data loader of one prompt a batch, numbered 0 to 7 ----


def chat(number):
    return [{"role": "user", "content": str(number)}]


class Batches:
    """Columns as verl's data loader has them."""

    def __iter__(self):
        return iter(collate_fn([{"raw_prompt": chat(i), "index": 100 + i}]) for i in range(8))

    def __len__(self):
        return 8

    def state_dict(self):
        return {}


class Manager:
    """Notes what it is asked, which `SoupAgentLoopManager` would take; a prompt's token ids are 1 and its number."""

    def __init__(self):
        self.calls = []

    def prompt_ids(self, step, prompts):
        assert prompts, "nobody is asked for no prompts: the real manager has no shares of them"
        return [[1, int(p["raw_prompt"][0]["content"])] for p in prompts]

    def actor_prompts(self, step, prompts):
        return [ActorPrompt.of_text(ids) for ids in self.prompt_ids(step, prompts)]

    def request_prefixes(self, step, prompts, plan, **kwargs):
        inspect.signature(SoupAgentLoopManager.request_prefixes).bind(None, step, prompts, plan, **kwargs)
        assert prompts, "nobody is asked for no prompts: the real manager has no shares of them"
        assert len(prompts) == len(plan) == len(kwargs.get("heads") or plan), "one plan and one group of heads a prompt"
        self.calls.append((step, [p["raw_prompt"][0]["content"] for p in prompts], plan, kwargs))
        return "pending"


def engine_of(*, batch=2, gen_batch=1, fetched=1, solved=None, rescoring=None, unlearning=None, **planner):
    loader = ReadAheadLoader(Batches())
    for _ in range(fetched * batch):
        next(loader)
    settings = {"seed": 0, "n": 4, "mixed_fraction": Schedule(0.5), "low": 1, "high": Schedule(8)} | planner
    return TrainerPolicyEngine(
        loader=loader,
        fetches=batch // (gen_batch or batch),
        planner=MixingPlanner(**settings),
        solved=solved or SolvedRates(),
        rescoring=rescoring,
        unlearning=unlearning,
        fetched_step=fetched,
        workers="actor",
        manager=Manager(),
    )


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
    planned = engine.planner.plan_step(step=step, num_prompts=batch)
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
    manager = engine.manager
    assert engine.sample_prefixes(2) == "pending"
    heads = [GroupPrefixes("a", {}), GroupPrefixes("b", {})]
    for ages in ({2}, {8}, {2, 8}, {5}):
        engine.sample_prefixes(2, ages=ages, heads=heads)
    everything, *parts = manager.calls
    assert everything == (2, ["2", "3"], engine.plan(2), {"heads": None, "first": 0})
    asked = [[[r.age for r in p.requests] for p in plan] for _, _, plan, _ in parts]
    assert asked == [[[2], [2]], [[8], [8]], [[2, 8], [8, 2]], [[], []]]
    assert all(kwargs == {"heads": heads, "first": 0} for *_, kwargs in parts)
    assert [p.prompt_key for p in parts[0][2]] == [p.prompt_key for p in engine.plan(2)]


def test_heads_are_asked_for_by_the_same_plan():
    engine = engine_of(position="middle")
    assert engine.sample_heads(2) == "pending"
    assert engine.manager.calls == [(2, ["2", "3"], engine.plan(2), {"only_heads": True, "first": 0})]


def test_the_rest_of_a_prompt_is_asked_for_as_whole_heads():
    solved = SolvedRates("unsolved")
    solved.record(prompt_key(chat(2)), 0.25)  # kept out: it is sampled as any prompt
    engine = engine_of(solved=solved, unlearning=Unlearning(16, 0.7, 2))
    assert engine.sample_rest(2) == "pending"
    ((step, prompts, plan, kwargs),) = engine.manager.calls
    assert (step, prompts, kwargs) == (2, ["2", "3"], {"only_heads": True, "first": 0})
    assert [p.requests for p in plan] == [(), (PrefixRequest(0, head=16), PrefixRequest(1, head=16))]


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
    assert engine_of().rescored(2, GROUPS) is GROUPS


def test_historical_tokens_get_the_actors_log_probs_and_heads_keep_theirs(monkeypatch):
    asked = []

    def log_probs(worker_group, sequences, *, temperature, rows_a_rank):
        asked.append((worker_group, sequences, temperature, rows_a_rank))
        return [[-11.0, -12.0, -13.0], [-21.0, -22.0]]

    monkeypatch.setattr(policy_engine, "log_probs_of_actor", log_probs)
    rescored = engine_of(rescoring=Rescoring(0.7, 3)).rescored(2, GROUPS)
    ((workers, sequences, *how),) = asked
    assert (workers, how) == ("actor", [0.7, 3])
    assert [(prompt.token_ids, ids) for prompt, ids in sequences] == [([1, 2], (5, 6, 7)), ([1, 3], (9, 4))]
    assert rescored == [
        GroupPrefixes("p", {1: Prefix((5, 6, 7), (-0.5, -12.0, -13.0), 4, head=1), 2: GROUPS[0].by_session[2]}),
        GroupPrefixes("q", {3: Prefix((9, 4), (-21.0, -22.0), 4)}),
    ]
    assert GROUPS[0].by_session[1].log_probs == (-0.5, -0.25, -1.0), "the sampled ones are not overwritten"


def test_prompts_with_images_are_scored_in_parts(monkeypatch):
    """What the actor reads of an image is large, and there for every prefix."""
    asked = []

    def log_probs(worker_group, sequences, **_):
        asked.append([prompt.token_ids for prompt, _ in sequences])
        return [[-float(prompt.token_ids[1])] * len(ids) for prompt, ids in sequences]

    monkeypatch.setattr(policy_engine, "log_probs_of_actor", log_probs)
    monkeypatch.setattr(policy_engine, "IMAGES_AT_ONCE", 1)
    groups = [GROUPS[1], GroupPrefixes("r", {3: GROUPS[1].by_session[3]})]
    engine = engine_of(rescoring=Rescoring(0.7, 3))
    together = engine.rescored(2, groups)
    monkeypatch.setattr(policy_engine, "images_key", lambda raw: "a key")
    assert engine.rescored(2, groups) == together and together != groups
    assert asked == [[[1, 2], [1, 3]], [[1, 2]], [[1, 3]]]


def test_nothing_historical_is_nothing_to_score(monkeypatch):
    monkeypatch.setattr(policy_engine, "log_probs_of_actor", lambda *args, **kwargs: 1 / 0)
    groups = [GroupPrefixes("p", {2: GROUPS[0].by_session[2]}), GroupPrefixes("q", {})]
    assert engine_of(rescoring=Rescoring(0.7, 3)).rescored(2, groups) is groups


class Scorer:
    """An actor of some ranks behind a TransferQueue: the model's output for a token at place i is -(id + i / 100), one
    place early, as verl's is."""

    def __init__(self, monkeypatch, ranks):
        self._dispatch_info = {}
        self.ranks, self.queue, self.stored = ranks, Queue(partition_id=SCORES).stand_in(monkeypatch), {}

    def _query_dispatch_info(self, mesh):
        assert mesh == "actor"
        return list(range(self.ranks))

    def _take(self, batch):
        """Note a batch, as each rank reads its share of it from the queue."""
        assert len(batch.keys) % self.ranks == 0, "every rank has as many rows"
        fields = self.queue.kv_batch_get(batch.keys, batch.partition_id)
        self.settings, self.stored = batch.extra_info, {"keys": batch.keys, "fields": fields}
        assert [tag["seq_len"] for tag in batch.tags] == [len(row) for row in fields["input_ids"].unbind()]
        assert self.queue.kv_list()[SCORES] == dict(zip(batch.keys, batch.tags, strict=True))

    def compute_log_prob(self, batch):
        self._take(batch)
        ids = self.stored["fields"]["input_ids"].unbind()
        rows = [-(torch.roll(row, -1) + torch.roll(torch.arange(len(row)), -1) / 100).double() for row in ids]
        output = TensorDict({"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, len(rows))
        self.queue.kv_batch_put(batch.keys, batch.partition_id, output)


@pytest.mark.parametrize(("ranks", "rows_a_rank", "rows"), [(1, 1, 3), (2, 1, 4), (4, 1, 4), (2, 3, 6), (1, 32, 32)])
def test_the_actor_scores_response_tokens_only_and_the_queue_is_left_empty(monkeypatch, ranks, rows_a_rank, rows):
    scorer = Scorer(monkeypatch, ranks)
    sequences = [(ActorPrompt.of_text(p), r) for p, r in (([1, 2], (5, 6, 7)), ([3], (9,)), ([1, 2, 3, 4], (8, 8)))]
    scores = log_probs_of_actor(scorer, sequences, temperature=0.7, rows_a_rank=rows_a_rank)
    expected = [[-5.02, -6.03, -7.04], [-9.01], [-8.04, -8.05]]
    assert [pytest.approx(row) for row in expected] == scores
    assert len(scorer.stored["keys"]) == rows
    assert scorer.settings == {"calculate_entropy": False, "compute_loss": False, "temperature": 0.7}
    assert scorer.queue.rows == {}


class NotingGroup:
    """Stands in for a worker group or checkpoint manager: notes the calls, which one of these classes would take."""

    def __init__(self, calls, *kinds):
        self._calls, self._kinds = calls, kinds

    def __getattr__(self, method):
        real = next((getattr(kind, method) for kind in self._kinds if hasattr(kind, method)), None)
        assert real is not None, f"nobody has {method}"

        def note(*args):
            inspect.signature(real).bind(None, *args)
            self._calls.append((method, *args))

        return note


# ---- unlearning ----

OWN = [
    GroupPrefixes("p", {0: Prefix((5, 6), (-0.5, -0.25), -1, head=2, complete=True)}),
    GroupPrefixes("q", {0: Prefix((9,), (-1.0,), -1, head=1, complete=True), 1: Prefix((4,), (-2.0,), -1, head=1)}),
]


class Unlearner(Scorer):
    def __init__(self, monkeypatch, ranks):
        super().__init__(monkeypatch, ranks)
        self.calls = []
        self._noting = NotingGroup(self.calls, SoupActorWorker)

    def unlearn(self, batch):
        self._take(batch)
        self.calls.append("unlearn")
        return {"metrics": {"grad_norms": [0.5]}}

    def __getattr__(self, method):
        return getattr(self._noting, method)


def test_the_actor_unlearns_whole_responses_padded_with_rows_that_do_not_count(monkeypatch):
    workers = Unlearner(monkeypatch, 2)
    engine = engine_of(unlearning=Unlearning(16, 0.7, 2))
    engine.workers = workers
    with engine.actor_unlearned(2, OWN, ForgetConfig(lr=0.25)) as norms:
        workers.calls.append("inside")
    assert norms == [0.5]
    assert workers.calls == [
        ("save_model_to_cpu", "soup_current"),
        "unlearn",
        "inside",
        ("restore_model_from_cpu", "soup_current"),
        ("clear_cpu_model", "soup_current"),
    ]
    assert workers.settings == {"calculate_entropy": False, "temperature": 0.7, FORGET: ForgetConfig(lr=0.25)}
    fields = {
        name: [row.tolist() for row in value.unbind()]
        for name, value in workers.stored["fields"].items()
        if name in ("input_ids", "old_log_probs", "loss_mask", "response_mask")
    }
    assert fields["input_ids"] == [[1, 2, 5, 6], [1, 3, 9], [1, 3, 4], [1, 2, 5, 6]]
    assert fields["old_log_probs"] == [[-0.5, -0.25], [-1.0], [-2.0], [-0.5, -0.25]]
    assert fields["loss_mask"] == fields["response_mask"] == [[1, 1], [1], [1], [0, 0]]
    assert workers.queue.rows == {}


def test_prompts_with_images_are_handed_over_few_at_a_time_and_unlearned_together(monkeypatch):
    workers, engine = Unlearner(monkeypatch, 2), engine_of(unlearning=Unlearning(16, 0.7, 2))
    engine.workers, asked, held = workers, [], []
    actor_prompts = engine.manager.actor_prompts

    def noted(step, prompts):
        found = actor_prompts(step, prompts)
        asked.append([prompt.token_ids for prompt in found])
        held.extend(weakref.ref(prompt.position_ids) for prompt in found)
        return found

    monkeypatch.setattr(engine.manager, "actor_prompts", noted)
    monkeypatch.setattr(policy_engine, "IMAGES_AT_ONCE", 1)
    monkeypatch.setattr(policy_engine, "images_key", lambda raw: "a key")
    with engine.actor_unlearned(2, OWN, ForgetConfig()):
        assert not any(ref() is not None for ref in held), "what the actor reads is still held while the copy samples"
    assert asked == [[[1, 2]], [[1, 3]]]
    assert [row.tolist() for row in workers.stored["fields"]["input_ids"].unbind()] == [
        [1, 2, 5, 6],
        [1, 3, 9],
        [1, 3, 4],
        [1, 2, 5, 6],
    ]


# ---- weights ----


@pytest.fixture
def noted():
    calls = []
    group = NotingGroup(calls, SoupActorWorker, CheckpointEngineManager)
    return TrainerPolicyEngine(None, 1, None, SolvedRates(), workers=group, checkpoint_manager=group), calls


def test_the_workers_hold_a_kept_policy_inside_the_block(noted):
    engine, calls = noted
    with engine.actor_holding(2):
        calls.append("inside")
    assert calls == [("hold_policy", 2), "inside", ("hold_policy", None)]


def test_the_rollout_engine_has_the_actors_weights_inside_the_block_and_sleeps_after(noted):
    engine, calls = noted
    with engine.rollout_awake(2):
        calls.append("inside")
    assert calls == [("update_weights", 2), "inside", ("sleep_replicas",)]
    assert engine.loads == 1


def test_kept_bytes_are_those_of_all_ranks():
    class TwoRanks:
        def kept_bytes(self):
            return [100, 20]

    assert TrainerPolicyEngine(None, 1, None, SolvedRates(), workers=TwoRanks()).kept_bytes() == 120


def test_policies_are_kept_dropped_saved_and_loaded(noted, tmp_path):
    engine, calls = noted
    engine.keep_policy(3)
    engine.drop_policy(3)
    engine.save_policies(tmp_path, (1, 2))
    engine.load_policies(tmp_path, (1, 2))
    assert calls == [
        ("keep_policy", 3),
        ("drop_policy", 3),
        ("write_kept_policies", str(tmp_path), [1, 2]),
        ("read_kept_policies", str(tmp_path), [1, 2]),
    ]
