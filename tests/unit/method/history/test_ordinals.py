"""Dynamic sampling: prefixes by the ordinals of their prompts, whatever number of them a step takes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.method.history import (
    GroupPrefixes,
    LookaheadSource,
    PolicyResponse,
    Prefix,
    PromptBlocks,
    PromptPlan,
    ReplaySource,
    SnapshotSource,
)
from soup_verl.method.mixing import STREAM, MixingPlanner, PrefixRequest, Schedule
from soup_verl.method.sections import ReplayConfig, SnapshotConfig
from tests.unit.method.history.conftest import FakeEngine, Pending


class Stream(FakeEngine):
    """The prompts of a step to come are those of its block; prompt 7 is called "7" and has two mixed responses."""

    def __init__(self, blocks, ages=(1,)):
        super().__init__(ages)
        self.blocks = blocks
        self.asked = []  # (ordinal, session), in order

    def wants_prefixes(self, step):
        return self.blocks.has_prompts(step)

    def plan(self, step):
        return [
            PromptPlan(
                str(o), tuple(PrefixRequest(rank, 1, age=self.ages[(o + rank) % len(self.ages)]) for rank in range(2))
            )
            for o in self.blocks.block(step)
        ]

    def sample_prefixes(self, step, *, ages=None, heads=None):
        groups, planned = [], self._to_sample(step)
        assert heads is None, "no heads under dynamic sampling"
        for plan in planned:
            wanted = [r.session for r in plan.requests if ages is None or r.age in ages]
            self.asked += [(int(plan.prompt_key), s) for s in wanted]
            found = {s: Prefix((7,), (-0.5,), self.held) for s in wanted if s not in self.empty}
            groups.append(GroupPrefixes(plan.prompt_key, found))
        return Pending(self, groups)

    def rescored(self, step, groups):  # as `DynamicPolicyEngine`
        block = self.blocks.block(step)
        groups = groups[len(groups) - len(block) :]
        assert [int(g.prompt_key) for g in groups] == list(block)
        return groups


def lookahead(engine, last_step):
    return LookaheadSource(engine, ages=engine.ages, last_step=last_step)


def snapshot(engine, last_step):
    return SnapshotSource(engine, SnapshotConfig(every=1, capacity=2, choice="oldest"), seed=0, last_step=last_step)


def run(source_of, takes, *, batch=4, ages=(1,), empty=(), save_at=None, folder=None, resumed=None):
    """Steps that take batch + r prompts, r of them later than the rest, in the order of `SoupTrainer`.

    Returns the handed-over groups of each step, by ordinal, and the engine.
    """
    blocks = PromptBlocks(batch)
    engine = Stream(blocks, ages)
    engine.empty = set(empty)
    source = source_of(engine, len(takes))
    handed, first = [], 1
    if resumed:
        first = resumed + 1
        source.load(folder)
        blocks.load(folder)
        engine.actor = resumed
        blocks.end_step(resumed, source)
        source.after_update(resumed)
    else:
        source.before_first_step(1)
    for step in range(first, len(takes) + 1):
        engine.held = step - 1
        start = blocks.handed
        groups = blocks.take(batch, source)
        source.after_submit(step)
        for refill in takes[step - 1]:
            groups += blocks.take(refill, source)
        source.before_sleep()
        engine.held = None
        source.before_update(step)
        engine.actor = step
        if step == save_at:
            blocks.save(folder, source)
            source.save(folder)
        blocks.end_step(step, source)
        source.after_update(step)
        handed.append(dict(enumerate(groups, start)))
    assert not [ordinal for ordinal in blocks._ready if ordinal < blocks.handed], "kept for nobody"
    return handed, engine


def ages_of(handed, first=1):
    """For each step the ages of the prefixes of each prompt, in the order they were handed over; () where none."""
    return [
        [tuple(step - 1 - p.policy_version for p in g.by_session.values()) if g else () for g in groups.values()]
        for step, groups in enumerate(handed, first)
    ]


def test_prompts_have_the_planned_age_where_steps_take_as_many_as_expected():
    handed, engine = run(lookahead, [(4,)] * 4)  # 8 a step, the half of them refills
    assert ages_of(handed) == [[()] * 8, *[[(1, 1)] * 8] * 3]
    assert [o for o, session in engine.asked if session == 0] == list(range(4, 32))  # 4-7 were under way when taken


def test_a_later_age_begins_where_a_later_step_can_begin_at_the_earliest():
    handed, _ = run(lookahead, [(4,)] * 5, ages=(2,))
    assert ages_of(handed) == [[()] * 8, [(1, 1)] * 8, *[[(2, 2)] * 8] * 3]
    handed, _ = run(lookahead, [()] * 5, ages=(2,))
    assert ages_of(handed)[:3] == [[()] * 4, [()] * 4, [(2, 2)] * 4]


def test_the_requests_of_a_prompt_are_sampled_at_their_own_ages():
    handed, _ = run(lookahead, [(4,)] * 5, ages=(1, 3))
    assert ages_of(handed)[1] == [(1,)] * 8
    sessions = [
        [step - 1 - group.by_session[s].policy_version for s in range(2)]
        for step in (4, 5)
        for group in handed[step - 1].values()
    ]
    assert sessions == [[1, 3], [3, 1]] * 8


def test_a_prompt_beyond_the_mark_is_onpolicy_and_the_mark_follows():
    handed, _ = run(lookahead, [(4,), (6, 6), (12,), (12,)])  # from 8 prompts a step to 16
    assert ages_of(handed) == [
        [()] * 8,
        [(1, 1)] * 8 + [()] * 8,
        [()] * 16,  # step 2 looked 8 prompts ahead, and took them itself
        [(1, 1)] * 16,
    ]


def test_where_steps_take_fewer_a_prefix_waits():
    handed, engine = run(lookahead, [()] * 5)  # 4 a step, where 8 are expected at first
    assert ages_of(handed) == [[()] * 4, [(1, 1)] * 4, [(2, 2)] * 4, [(3, 3)] * 4, [(3, 3)] * 4]
    assert len(engine.asked) == len(set(engine.asked))


def test_a_snapshot_samples_for_the_next_steps_refills_too():
    handed, _ = run(snapshot, [(4,)] * 4)
    assert ages_of(handed) == [[()] * 8, [()] * 8, [(1, 1)] * 8, [(2, 2)] * 8]


def replay(engine, last_step):
    """Two responses to each of the first prompts are stored, of version 0."""
    source = ReplaySource(engine, ReplayConfig(), response_length=10, seed=0)
    numbers = np.arange(4)
    for ordinal in range(60):
        for first in (20, 30):
            ids, log_probs = (first + numbers).astype(np.int32), -numbers.astype(np.float32)
            source.store.add(PolicyResponse(f"key of {ordinal}", ids, log_probs, 0, 1.0, True))
    return source


def test_a_source_that_chooses_at_submission_knows_every_refilled_prompt():
    handed, _ = run(replay, [(4,), (), (1, 30)])
    assert ages_of(handed) == [[(0, 0)] * 8, [(1, 1)] * 4, [(2, 2)] * 35]
    assert all(str(o) == g.prompt_key for step in handed for o, g in step.items())


STEPS = st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=3, max_size=9)


SOURCES = st.sampled_from([lookahead, snapshot, replay])  # those that the rules of a run allow here
EMPTY = st.sampled_from([(), (1,), (0, 1)])


@given(STEPS, SOURCES, st.sampled_from([(1,), (2,), (1, 3), (3, 1, 2)]), EMPTY)
def test_every_prefix_is_its_prompts_own_sampled_once_and_never_younger_than_the_policy(takes, source_of, ages, empty):
    handed, engine = run(source_of, takes, ages=ages, empty=empty)
    assert len(engine.asked) == len(set(engine.asked))
    ordinals = [o for step in handed for o in step]
    assert ordinals == list(range(len(ordinals)))
    for step in handed:
        for ordinal, group in step.items():
            assert group is None or group.prompt_key == str(ordinal)
    assert all(age >= (source_of is lookahead) for step in ages_of(handed) for prompt in step for age in prompt)


@settings(max_examples=40)
@given(STEPS, SOURCES, st.sampled_from([(1,), (1, 3)]), st.integers(1, 8))
def test_a_resumed_run_hands_over_what_an_uninterrupted_one_does(tmp_path_factory, takes, source_of, ages, at):
    folder, at = tmp_path_factory.mktemp("history"), min(at, len(takes) - 1)
    whole, _ = run(source_of, takes, ages=ages, save_at=at, folder=folder)
    resumed, _ = run(source_of, takes, ages=ages, folder=folder, resumed=at)
    assert whole[at:] == resumed


@pytest.mark.parametrize("text", ["{", "{}", '{"handed": 1, "step": 1, "first": 0, "taken": [4], "blocks": {"x": 1}}'])
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, text):
    (tmp_path / "ordinals.json").write_text(text)
    with pytest.raises(ValueError, match="ordinals.json: not the state of a stream of prompts"):
        PromptBlocks(4).load(tmp_path)


# ---- the plan ----


def planner(**changes):
    given = {"seed": 0, "n": 4, "mixed_fraction": Schedule(0.5), "low": 1, "high": Schedule(1000)} | changes
    return MixingPlanner(**given)


def test_the_plan_of_a_prompt_in_the_stream_is_the_same_for_every_step():
    plans = [planner().plan_step(step=s, batch=STREAM, first=40, num_prompts=3) for s in (1, 9)]
    assert plans[0] == plans[1]
    assert plans[0][2] == planner().plan_prompt(step=5, batch=STREAM, place=42)
    assert len({r.length for plan in plans[0] for r in plan}) == 6


def test_what_is_scheduled_follows_the_step():
    growing = planner(high=Schedule(1, final=1000, steps=9, shape="linear"))
    assert {r.length for r in growing.plan_prompt(step=1, batch=STREAM, place=42)} == {1}
    assert growing.plan_prompt(step=9, batch=STREAM, place=42) == planner().plan_prompt(step=9, batch=STREAM, place=42)


def test_ages_take_turns_along_the_stream():
    plan = planner(ages=(1, 2)).plan_step(step=3, batch=STREAM, first=7, num_prompts=2)
    assert [[r.age for r in requests] for requests in plan] == [[2, 1], [1, 2]]
