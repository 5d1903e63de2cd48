import math

import pytest

from soup_verl.method.history import ForgetSource, PromptPlan
from soup_verl.method.mixing import UNLEARNED
from soup_verl.method.sections import ForgetConfig


def source_of(engine, *, last_step=10):
    return ForgetSource(engine, ForgetConfig(lr=0.25), last_step=last_step)


def test_current_policy_then_its_unlearned_copy_then_the_current_weights_again(engine, fake_run):
    fake_run.steps(source_of(engine), engine, 1, 1)
    assert engine.calls == [
        ("awake", 1),
        ("rest", 2, 1),
        ("unlearn", 2, 1, [(8, 9), (8, 9)], 0.25),  # the engine sleeps: the fake refuses anything else
        ("awake", UNLEARNED),
        ("sample", 2, UNLEARNED),
        ("rescore", 2, UNLEARNED),  # the actor still holds the copy
        ("back", 1),
    ]


def test_a_group_is_what_was_unlearned_and_what_the_copy_wrote(engine, fake_run):
    handed = fake_run.steps(source_of(engine), engine, 1, 2)
    assert handed[1] is None
    for i, group in enumerate(handed[2]):
        assert group.prompt_key == f"prompt {i} of 2" and set(group.by_session) == {0, 1, 2}
        own, *copies = (group.by_session[s] for s in range(3))
        assert own.complete and own.historical == 0 and own.policy_version == -1
        assert all(p.policy_version == UNLEARNED and p.historical == 2 for p in copies)


def test_ready_shows_what_prefixes_hands_over_once(engine):
    source = source_of(engine)
    engine.actor = 1
    source.after_update(1)
    groups = source.ready(2)
    assert groups and source.prefixes(2) is groups
    assert source.ready(2) is None and source.prefixes(2) is None


def test_nothing_moves_beyond_the_last_step_or_where_nothing_is_mixed(engine, fake_run):
    engine.unwanted = {3}
    handed = fake_run.steps(source_of(engine, last_step=4), engine, 1, 4)
    assert [step for step, groups in handed.items() if groups] == [2, 4]
    assert [call[1] for call in engine.calls if call[0] == "unlearn"] == [2, 4]


def test_where_the_gate_keeps_every_prompt_out_nothing_is_unlearned(engine, fake_run):
    engine.plan = lambda step: [PromptPlan("prompt", ())]
    handed = fake_run.steps(source_of(engine), engine, 1, 2)
    assert not handed[2][0].by_session and {call[0] for call in engine.calls} == {"awake", "rest"}


def test_the_counter_is_of_the_steps_behind_this_batch_and_leaves_out_those_not_taken(engine):
    source = source_of(engine, last_step=2)
    assert source.metrics() == {"soup/unlearning_steps_total": 0}
    engine.norms, engine.actor = [0.5, 1.5, math.inf], 1
    source.after_update(1)
    assert source.metrics() == {"soup/unlearning_steps_total": 2, "soup/unlearning_grad_norm_mean": 1.0}
    engine.actor = 2
    source.after_update(2)
    assert source.metrics() == {"soup/unlearning_steps_total": 0}


@pytest.mark.parametrize(("first", "without"), [(1, [1]), (3, [])])
def test_only_the_first_step_has_no_history(engine, first, without):
    assert source_of(engine).without_history(first) == without


def test_a_resumed_run_unlearns_anew_from_an_empty_folder(engine, fake_run, tmp_path):
    source = source_of(engine)
    fake_run.steps(source, engine, 1, 3, save_at=3, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    other = fake_run.Engine()
    resumed = source_of(other)
    fake_run.resume(resumed, other, 3, tmp_path)
    assert resumed.prefixes(4) == source.prefixes(4) and other.calls == engine.calls[-len(other.calls) :]
