import json
from contextlib import contextmanager

import pytest

from soup_verl.history import GroupPrefixes, Prefix


class FakeEngine:
    """A policy engine that notes what is asked of it. `held` is the version the rollout engine holds, None when it
    holds nothing; a policy's weights are the version they were kept from; steps in `unwanted` mix nothing."""

    def __init__(self):
        self.calls = []
        self.held = None
        self.actor = 0
        self.kept = {}
        self.unwanted = set()

    def wants_prefixes(self, step):
        return step not in self.unwanted

    def sample_prefixes(self, step):
        assert self.held is not None, "asked for prefixes while the rollout engine holds no weights"
        self.calls.append(("sample", step, self.held))
        return Pending(self, [GroupPrefixes(f"prompt of {step}", {1: Prefix((step, 7), (-0.5, -0.25), self.held)})])

    def keep_policy(self, version):
        assert self.actor == version, "only the actor's present weights can be kept"
        self.calls.append(("keep", version))
        self.kept[version] = version

    def drop_policy(self, version):
        self.calls.append(("drop", version))
        del self.kept[version]

    @contextmanager
    def borrowed_policy(self, version):
        assert self.held is None, "the rollout engine must have given its weights back"
        self.calls.append(("borrow", version))
        self.held = self.kept[version]
        yield
        self.calls.append(("return", version))
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


def run_steps(source, engine, first, last, *, save_at=None, folder=None):
    """Steps `first`..`last` in the order of `SoupTrainer`; returns step -> what was handed over. A checkpoint of step
    `save_at` is written between its update and `after_update`, as verl does."""
    handed = {}
    for step in range(first, last + 1):
        engine.held = step - 1
        handed[step] = source.prefixes(step)
        source.after_submit(step)
        source.before_sleep()
        engine.held, engine.actor = None, step
        if step == save_at:
            source.save(folder)
        source.after_update(step)
    return handed


def resume(source, engine, after, folder):
    """As `SoupTrainer` resumes behind step `after`."""
    engine.actor = after
    source.load(folder)
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
