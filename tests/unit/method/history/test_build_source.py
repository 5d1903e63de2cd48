import numpy as np
import pytest

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import (
    ForgetSource,
    LookaheadSource,
    PolicyResponse,
    ReplaySource,
    SnapshotSource,
    build_source,
)
from soup_verl.method.sections import PLANNED_SOURCES


def build(engine, *, last_step=5, **section):
    return build_source(SoupConfig.parse(section), engine, response_length=16, last_step=last_step)


def samples(engine):
    return [call for call in engine.calls if call[0] == "sample"]


@pytest.mark.parametrize("source", PLANNED_SOURCES)
def test_every_source_can_be_built(engine, source):
    expected = {
        "lookahead": LookaheadSource,
        "snapshot": SnapshotSource,
        "replay": ReplaySource,
        "forget": ForgetSource,
    }
    assert isinstance(build(engine, source=source), expected[source])


def test_lookahead_settings_arrive(fake_run):
    engine = fake_run.Engine((3, 1))
    source = build(engine, lookahead={"age": [3, 1]}, last_step=4, warm_start=True)
    fake_run.steps(source, engine, 1, 4)
    assert samples(engine) == [
        ("sample", 4, 0, (3,)),
        ("sample", 2, 0, (1,)),
        ("sample", 2, 0, (3,)),  # warm start
        ("sample", 3, 0, (3,)),
        ("sample", 3, 1, (1,)),
        ("sample", 4, 2, (1,)),
    ]


def test_snapshot_settings_arrive(engine, fake_run):
    snapshot = {"every": 2, "capacity": 1, "choice": "latest"}
    source = build(engine, source="snapshot", snapshot=snapshot, warm_start=True)
    fake_run.steps(source, engine, 1, 5)
    assert [call for call in engine.calls if call[0] in ("keep", "drop", "sample")] == [
        ("keep", 0),
        ("sample", 2, 0),
        ("sample", 3, 0),
        ("drop", 0),
        ("keep", 2),
        ("sample", 4, 2),
        ("sample", 5, 2),
        ("drop", 2),
        ("keep", 4),
    ]


@pytest.mark.parametrize(("position", "heads"), [("prefix", 0), ("middle", 3), ("suffix", 3)])
def test_heads_are_sampled_first_where_the_historical_tokens_do_not_come_first(engine, fake_run, position, heads):
    fake_run.steps(build(engine, source="snapshot", position=position), engine, 1, 5)
    assert [call[0] for call in engine.calls].count("heads") == heads


def test_the_target_of_auto_arrives(engine, fake_run):
    source = build(engine, source="snapshot", snapshot={"choice": "auto"}, kl_control={"target_kl": 0.3})
    told = {age: 0.1 * age for age in range(1, 5)}
    fake_run.steps(source, engine, 1, 5, before_update=lambda step: source.observe_kl(told, collapsed=False))
    assert samples(engine)[-1] == ("sample", 5, 1)  # at version 4, version 1 is 3 steps old


def test_forget_settings_arrive(engine, fake_run):
    fake_run.steps(build(engine, source="forget", forget={"lr": 0.125}, last_step=3), engine, 1, 3)
    assert [(call[1], call[-1]) for call in engine.calls if call[0] == "unlearn"] == [(2, 0.125), (3, 0.125)]


def test_replay_settings_arrive(engine):
    settings = {"capacity_tokens": 5000, "per_prompt": 1, "max_policy_age": 2, "choice": "latest"}
    source = build(engine, source="replay", replay=settings)
    assert source._settings.choice == "latest" and source._response_length == 16

    def kept(*responses):
        source.observe_responses([PolicyResponse(k, ids, ids.astype(np.float32), v, 0.0, True) for k, v in responses])
        return len(source.store)

    ids = np.ones(2, np.int32)
    assert kept(("a", 3), ("a", 3)) == 1  # a prompt
    assert kept(*((f"b{i}", 4) for i in range(9))) == 4  # 5000 // 1024
    source.after_update(7)
    assert len(source.store) == 0  # policies more than 2 versions old
