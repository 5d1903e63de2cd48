"""Dynamic sampling: prompts by ordinal on their way to the workers, refills in the trainer."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopWorker
from verl.trainer.ppo.v1 import trainer_base

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import GroupPrefixes, Prefix, PrefixSource, PromptBlocks, PromptPlan
from soup_verl.method.mixing import STREAM, MixingPlanner, Schedule, SolvedRates
from soup_verl.stack.batch import items
from soup_verl.stack.dynamic_sampling import DynamicPolicyEngine
from soup_verl.stack.images import prompt_key
from soup_verl.stack.policy_engine import Rescoring
from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.rollout import GROUP_PREFIXES, IMAGES, ORDINAL, SoupAgentLoopWorker
from soup_verl.stack.session import held
from tests.unit.stack import test_policy_engine as over_batches
from tests.unit.stack.test_batch import row
from tests.unit.stack.test_trainer import mixing_trainer
from tests.unit.stack.transfer_queue import Queue

PREFIX = Prefix((5,), (-0.5,), 0)


def engine_of(batch=2, rescoring=None):
    """An engine over one prompt a batch, numbered 0 to 7; 4 blocks of 2 to 4 prompts are expected at first."""
    return DynamicPolicyEngine(
        loader=ReadAheadLoader(over_batches.Batches()),
        fetches=batch,
        planner=MixingPlanner(seed=0, n=4, mixed_fraction=Schedule(0.5), low=1, high=Schedule(8)),
        solved=SolvedRates(),
        rescoring=rescoring,
        manager=over_batches.Manager(),
        blocks=PromptBlocks(batch),
    )


class Nothing(PrefixSource):
    def prefixes(self, step):
        return None

    def save(self, folder):
        pass

    def load(self, folder):
        pass


def take(engine, count):
    engine.blocks.take(count, Nothing())
    for _ in range(count):
        next(engine.loader)


def test_prompts_are_asked_for_by_their_place_in_the_stream():
    engine = engine_of()
    take(engine, 2)
    engine.sample_prefixes(2)  # from the third prompt on, to where two steps of four end
    ((batch, prompts, plan, kwargs),) = engine.manager.calls
    assert (batch, prompts, kwargs) == (STREAM, list("234567"), {"heads": None, "first": 2})
    expected = engine.planner.plan_step(step=2, batch=STREAM, first=2, num_prompts=6)
    assert plan == [PromptPlan(prompt_key(over_batches.chat(i)), r) for i, r in enumerate(expected, 2)]


def test_a_prompt_that_was_handed_out_meanwhile_is_not_scored(monkeypatch):
    engine = engine_of(rescoring=Rescoring(1.0, 1))
    take(engine, 2)
    engine.sample_prefixes(2)
    take(engine, 3)
    groups = [GroupPrefixes(str(i), {0: PREFIX}) for i in range(2, 8)]
    scored = []

    def score(workers, rows, **_):
        scored.extend(prompt.token_ids[1] for prompt, _ in rows)
        return [[-0.25]] * len(rows)

    monkeypatch.setattr("soup_verl.stack.policy_engine.log_probs_of_actor", score)
    assert [g.prompt_key for g in engine.rescored(2, groups)] == list("567") and scored == [5, 6, 7]
    take(engine, 3)
    assert engine.rescored(2, groups) == []


def test_nothing_is_wanted_for_a_step_whose_prompts_were_all_asked_for_or_taken():
    engine = engine_of()
    assert engine.wants_prefixes(1) and engine.wants_prefixes(3)
    engine.sample_prefixes(2)
    take(engine, 8)
    assert not engine.wants_prefixes(2) and not engine.wants_prefixes(1) and engine.wants_prefixes(3)


# ---- the trainer ----


class Source(Nothing):
    """Prefixes for the prompts of step 1, and notes of what it is told."""

    def __init__(self, keys):
        self.keys, self.told = keys, []

    def prefixes(self, step):
        keys, self.keys = self.keys, None
        return keys and [GroupPrefixes(key, {2: PREFIX}) for key in keys]

    def after_submit(self, step):
        self.told.append(("submitted", step))

    def observe_solved(self, onpolicy, mixed):
        self.told.append((onpolicy, mixed))


@pytest.fixture
def trainer(monkeypatch):
    """A trainer of step 4 under verl's own fetching and submission: prompts are numbered, their uids are u0 and so on;
    two a step, of which the first five have prefixes."""
    source = Source([prompt_key(over_batches.chat(i)) for i in range(5)])
    instance = mixing_trainer(source)
    instance.config.data.train_batch_size = 2
    instance._blocks = PromptBlocks(2)
    instance._blocks.end_step(3, Nothing())
    instance._blocks._blocks = {4: range(5)}
    instance._place_of_uid, instance._key_of_uid, instance._sampled = {}, {}, None
    instance.config.data.gen_batch_size = 1  # what verl asks for with refills
    instance.train_dataloader, instance.train_dataloader_it = ReadAheadLoader(over_batches.Batches()), None
    instance.trainer_mode, instance.agent_loop_manager = "sync", SimpleNamespace(generate_sequences=lambda batch: None)
    Queue().stand_in(monkeypatch)
    names = map("u{}".format, itertools.count())
    monkeypatch.setattr(trainer_base, "uuid", SimpleNamespace(uuid4=lambda: next(names)))
    return instance


def test_refills_carry_their_own_prefixes_and_ordinals_and_the_source_is_asked_once(trainer):
    seen = []
    for count in (None, 1, 3):
        batch = trainer._next_train_batch(count)
        trainer._submit_batch_to_rollout(batch)
        groups = items(batch[GROUP_PREFIXES])
        seen.append((items(batch[ORDINAL]), [g and g.prompt_key for g in groups]))
    keys = [prompt_key(over_batches.chat(i)) for i in range(5)]
    assert seen == [([0, 1], keys[:2]), ([2], keys[2:3]), ([3, 4, 5], [*keys[3:], None])]
    assert trainer._source.told == [("submitted", 4)]
    assert trainer._place_of_uid == {f"u{i}": i for i in range(6)} and list(trainer._key_of_uid) == list(
        trainer._place_of_uid
    )
    assert trainer._blocks.metrics() == {
        "soup/refilled_prompts_total": 4.0,
        "soup/refilled_mixed_prompts_total": 3.0,
    }


def test_prompts_with_images_carry_their_key(trainer, monkeypatch):
    assert IMAGES not in trainer._next_train_batch(1)
    monkeypatch.setattr("soup_verl.stack.trainer.images_key", lambda raw: f"of {raw[0]['content']}")
    assert items(trainer._next_train_batch(1)[IMAGES]) == ["of 1"]


def test_prefixes_of_another_prompt_are_never_used(trainer):
    trainer._blocks._blocks = {4: range(1, 6)}
    with pytest.raises(RuntimeError, match="the prefixes of step 4 belong to other prompts than its batch"):
        trainer._next_train_batch(None)


KINDS = [{}, {}, {"prefix": [0], "version": 2}, {"prefix": [0], "version": 2}]


def test_dropped_groups_reach_the_gate_and_the_source(trainer, monkeypatch):
    """Before a stage of the step has computed anything: rows have what the worker put there."""
    trainer._next_train_batch(None)
    keys = [prompt_key(over_batches.chat(i)) for i in range(2)]
    rewards = (0.0, 0.0, 1.0, 0.0)
    rows = [row([5, 2], uid="u1", rewards=[0.0, r], **kind) for r, kind in zip(rewards, KINDS, strict=True)]
    for each in rows:
        del each["old_log_probs"], each["entropy"]
    stored = {f"u1_{session}_0": each for session, each in enumerate(rows)}
    Queue(stored).stand_in(monkeypatch)
    trainer._discard(KVBatchMeta(partition_id="train", keys=list(stored), tags=[{} for _ in stored]))
    assert trainer._history.solved.rates == {keys[1]: 0.25}
    assert trainer._source.told == [({keys[1]: 0.0}, {keys[1]: 0.5})]
    assert trainer._history._discarded == [False, False, True, False]


def test_the_rollout_engine_is_always_asked_for_a_step_of_unknown_prompts(trainer):
    trainer.config.trainer.test_freq, trainer.total_training_steps = -1, 9
    whole = GroupPrefixes("p", {s: Prefix((5,), (-0.5,), 3, complete=True) for s in range(4)})
    trainer._source.ready = lambda step: [whole]
    assert trainer._rollout_engine_is_asked()
    trainer._blocks = None
    assert not trainer._rollout_engine_is_asked()


# ---- the worker ----


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ({"global_steps": 3}, {"global_steps": 4}, False),
        ({"global_steps": 3, ORDINAL: 7}, {"global_steps": 3, ORDINAL: 8}, False),  # the same prompt, an epoch later
        ({"global_steps": 3, ORDINAL: 7}, {"global_steps": 4, ORDINAL: 7}, True),  # whichever step takes it
    ],
)
def test_a_response_is_seeded_by_the_place_of_its_prompt_which_verl_does_not_see(monkeypatch, first, second, alike):
    seeds = []

    async def run(self, sampling_params, trajectory, **kwargs):
        assert ORDINAL not in kwargs  # verl would store it with the sample
        seeds.append(held().params({})["seed"])

    monkeypatch.setattr(AgentLoopWorker, "_run_agent_loop", run)
    worker = SoupAgentLoopWorker.__new__(SoupAgentLoopWorker)
    worker._soup, worker._errors = SoupConfig.parse({"sampling_seed": 1, "mixed_fraction": 0}), []
    worker.rollout_config = SimpleNamespace(prompt_length=4, response_length=16)
    for place in (first, second):
        session = worker._run_agent_loop({}, {"validate": False}, agent_name="any", index=5, session_id=0, **place)
        asyncio.run(session)
    assert (seeds[0] == seeds[1]) is alike
