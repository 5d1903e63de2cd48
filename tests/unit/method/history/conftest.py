import json
from contextlib import contextmanager

import pytest

from soup_verl.method.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.method.mixing import UNLEARNED, PrefixRequest


class FakeEngine:
    """A policy engine that notes what is asked of it.

    Every batch has two prompts with two mixed responses each; session 1 of the first takes the first of `ages`, the
    next one the second and so on, as the planner has it. `held` is the version the rollout engine holds, None when it
    holds nothing; `actor` the one the actor holds. A policy's weights are the version they were kept from. Steps in
    `unwanted` mix nothing. Prefixes of the sessions in `empty` come out empty, and are left out, as the sampler does.
    The prompts of steps up to `fetched` have left the data loader: nobody can ask for them any more.
    """

    def __init__(self, ages=(0,)):
        self.ages = ages
        self.calls = []
        self.held = None
        self.actor = 0
        self.kept = {}
        self.most_kept = 0
        self.unwanted = set()
        self.empty = set()
        self.fetched = 0
        self.norms = [0.5, 1.5]
        self._borrowed = False

    # ---- the plan ----

    def wants_prefixes(self, step):
        return step not in self.unwanted

    def plan(self, step):
        return [
            PromptPlan(
                f"prompt {i} of {step}",
                tuple(PrefixRequest(1 + rank, 2, age=self.ages[(i + rank) % len(self.ages)]) for rank in range(2)),
            )
            for i in range(2)
        ]

    def token_keys(self, step):
        plan = self.plan(step)
        assert plan, f"nobody is to be asked for step {step}: it has no prompts"
        return [f"key of {p.prompt_key}" for p in plan]

    # ---- sampling ----

    def _to_sample(self, step):
        """The plan of a batch that the rollout engine is asked about, if the trainer's engine could ask."""
        assert self.held is not None, "asked for tokens while the rollout engine holds no weights"
        assert step > self.fetched, f"the prompts of step {step} have left the data loader"
        assert self.wants_prefixes(step), f"nobody wants prefixes for step {step}"
        plan = self.plan(step)
        assert plan, f"nobody is to be asked for step {step}: it has no prompts"
        return plan

    def sample_heads(self, step):
        plan = self._to_sample(step)
        self.calls.append(("heads", step, self.held))
        return Pending(self, [self._heads(p) for p in plan])

    def _heads(self, plan):
        return GroupPrefixes(plan.prompt_key, {r.session: Prefix((9,), (-0.75,), -1, head=1) for r in plan.requests})

    def sample_rest(self, step):
        plan = self._to_sample(step)
        self.calls.append(("rest", step, self.held))
        own = {0: Prefix((8, 9), (-0.5, -0.5), -1, head=2, complete=True)}
        return Pending(self, [GroupPrefixes(p.prompt_key, own if p.requests else {}) for p in plan])

    def sample_prefixes(self, step, *, ages=None, heads=None):
        plan = self._to_sample(step)
        assert heads is None or len(heads) == len(plan), "one group of heads a prompt"
        asked = () if ages is None else (tuple(sorted(ages)),)
        self.calls.append(("sample", step, self.held, *asked))
        groups = []
        for i, p in enumerate(plan):
            given = heads[i].by_session if heads else {}
            wanted = [r.session for r in p.requests if ages is None or r.age in ages]
            found = {s: self._prefix(step, given.get(s)) for s in wanted if s not in self.empty}
            groups.append(GroupPrefixes(p.prompt_key, found))
        return Pending(self, groups)

    def _prefix(self, step, head):
        ids, log_probs = (head.token_ids, head.log_probs) if head else ((), ())
        return Prefix((*ids, step, 7), (*log_probs, -0.5, -0.25), self.held, head=len(ids))

    def rescored(self, step, groups):
        assert self.held is None, "the rollout engine must be asleep"
        assert step > self.fetched, f"the prompts of step {step} have left the data loader"
        assert [g.prompt_key for g in groups] == [p.prompt_key for p in self.plan(step)], "one group a prompt, in order"
        self.calls.append(("rescore", step, self.actor))
        assert all(p.policy_version == self.actor for g in groups for p in g.by_session.values()), (
            "only the policy that sampled a prefix can score it"
        )
        return groups

    # ---- weights ----

    def keep_policy(self, version):
        assert self.actor == version, "only the actor's present weights can be kept"
        assert all(version > older for older in self.kept), "older policies are kept as changes of newer ones"
        self.calls.append(("keep", version))
        self.kept[version] = version
        self.most_kept = max(self.most_kept, len(self.kept))

    def drop_policy(self, version):
        assert version == min(self.kept), "older policies are kept as changes of newer ones"
        self.calls.append(("drop", version))
        del self.kept[version]

    def kept_bytes(self):
        return 7

    @contextmanager
    def actor_holding(self, version):
        assert not self._borrowed, "the actor lends itself to one other policy at a time"
        self.calls.append(("hold", version))
        own, self.actor, self._borrowed = self.actor, self.kept[version], True
        yield
        self.actor, self._borrowed = own, False
        self.calls.append(("back", own))

    @contextmanager
    def actor_unlearned(self, step, groups, settings):
        assert self.held is None, "the rollout engine must be asleep"
        assert not self._borrowed, "the actor lends itself to one other policy at a time"
        assert step > self.fetched, f"the prompts of step {step} have left the data loader"
        assert len(groups) == len(self.plan(step)), "one group of responses a prompt"
        unlearned = [p.token_ids for g in groups for p in g.by_session.values()]
        assert unlearned, "an update of no responses"
        self.calls.append(("unlearn", step, self.actor, unlearned, settings.lr))
        own, self.actor, self._borrowed = self.actor, UNLEARNED, True
        yield self.norms
        self.actor, self._borrowed = own, False
        self.calls.append(("back", own))

    @contextmanager
    def rollout_awake(self, version):
        assert self.held is None, "the rollout engine must have given its weights back"
        assert self.actor == version, "the rollout engine takes the actor's weights"
        self.calls.append(("awake", version))
        self.held = version
        yield
        self.held = None

    def save_policies(self, folder, versions):
        (folder / "kept.json").write_text(json.dumps({v: self.kept[v] for v in versions}))

    def load_policies(self, folder, versions):
        stored = json.loads((folder / "kept.json").read_text())
        self.kept = {v: stored[str(v)] for v in versions}


class Pending:
    def __init__(self, engine, groups):
        self._engine, self._groups = engine, groups

    def result(self):
        assert self._engine.held is not None, "waited for prefixes after the rollout engine slept"
        return self._groups


def run_steps(source, engine, first, last, *, save_at=None, folder=None, before_update=None):
    """Steps `first`..`last` in the order of `SoupTrainer`; returns step -> what was handed over. A checkpoint of step
    `save_at` is written between its update and `after_update`, as verl does. `before_update(step)` stands in for what
    the trainer tells the source about the batch."""
    if first == 1:
        source.before_first_step(1)
    handed = {}
    for step in range(first, last + 1):
        engine.held = step - 1
        handed[step] = source.prefixes(step)
        engine.fetched = step
        source.after_submit(step)
        source.before_sleep()
        engine.held = None
        if before_update:
            before_update(step)
        source.before_update(step)
        engine.actor = step
        if step == save_at:
            source.save(folder)
        source.after_update(step)
    return handed


def resume(source, engine, after, folder):
    """As `SoupTrainer` resumes behind step `after`."""
    engine.actor = engine.fetched = after
    source.load(folder)
    source.before_first_step(after + 1)
    source.after_update(after)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def fake_run():
    """The functions above, and the engine's class for a second run."""

    class Tools:
        Engine = FakeEngine
        steps = staticmethod(run_steps)
        resume = staticmethod(resume)

    return Tools
