"""The parts of the trainer that need no cluster; whole steps run in tests/e2e."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync

from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.history import GroupPrefixes, Prefix
from soup_verl.method.observation import History
from soup_verl.method.step import plan_of_run
from soup_verl.records import sample_log
from soup_verl.stack import batch as batches
from soup_verl.stack import resume, trainer
from soup_verl.stack.failures import GradientsNotFinite, SessionsFailed
from soup_verl.stack.rotation import Rotation
from soup_verl.stack.trainer import SoupTrainer
from tests.unit.stack.test_batch import row
from tests.unit.stack.transfer_queue import Queue


def bare_trainer(**attributes):
    """A trainer without its set-up, which would start a cluster."""
    instance = SoupTrainer.__new__(SoupTrainer)
    vars(instance).update(attributes)
    return instance


# ---- failures ----


def test_the_cause_of_a_failed_session_replaces_what_verl_stumbles_over():
    manager = SimpleNamespace(take_errors=lambda: ["ValueError: bad reward", "other"])
    instance = bare_trainer(agent_loop_manager=manager, global_steps=3)
    with pytest.raises(SessionsFailed, match="2 responses failed at step 3; first: ValueError: bad reward"):
        with instance._failures_explained():
            raise RuntimeError("Received an empty list as keys")


def test_an_error_with_no_failed_session_is_left_alone():
    instance = bare_trainer(agent_loop_manager=SimpleNamespace(take_errors=list), global_steps=3)
    with pytest.raises(RuntimeError, match="empty"), instance._failures_explained():
        raise RuntimeError("empty")


# ---- what a batch says about the history ----


@pytest.mark.parametrize("behavior_log_probs", ["rollout", "actor"])
def test_what_is_observed_is_reported_logged_and_fetched_only_when_asked_for(monkeypatch, caplog, behavior_log_probs):
    asked = {}
    monkeypatch.setattr(batches, "policy_responses", lambda *args, **kwargs: asked.update(kwargs))
    instance = mixing_trainer(None, SoupConfig.parse({"behavior_log_probs": behavior_log_probs}))
    instance._key_of_uid, instance._sampled = {"u": "the prompt"}, None

    def observe(batch, *, key_of_uid, responses, sampled):
        assert batch == "the real rows" and sampled is None and key_of_uid == {"u": "the prompt"} and asked == {}
        responses()
        return {"soup/one": 1.0}, ["too similar"]

    monkeypatch.setattr(instance._history, "observe", observe)
    stored = SimpleNamespace(responses=SimpleNamespace(rows={(0, 2): "the real rows"}.get), real_rows=(0, 2))
    metrics = {}
    with caplog.at_level(logging.WARNING):
        instance._observe("batch", stored, metrics)
    assert metrics == {"soup/one": 1.0} and caplog.messages == ["step 4: too similar"]
    assert asked == {"response_length": 16, "from_actor": behavior_log_probs == "actor"}


# ---- which rows are trained on ----


def down_sampling_trainer(rewards, monkeypatch, **section):
    """A step's rows: two prompts of four sessions each with these rewards, the first session in two outputs."""
    keys = [f"{uid}_{session}_0" for uid in "ab" for session in range(4)]
    keys.insert(1, "a_0_1")
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
    instance = mixing_trainer(None, SoupConfig.parse(section))
    instance._place_of_uid, instance._sampled, instance._dropped = {"a": 0, "b": 1}, None, None
    rows = [row([5, 2], uid=key[0], rewards=[0.0, reward]) for key, reward in zip(keys, rewards, strict=True)]
    Queue(dict(zip(keys, rows, strict=True))).stand_in(monkeypatch)
    return instance, batch


def down_sampled(instance, batch):
    return instance._down_sample(batch, instance._read(batch, recomputed=False))


def test_the_chosen_sessions_go_on_and_the_others_come_back_with_the_steps_end(monkeypatch):
    """Of a: 1, 0, .5, .5; of b: .25, .75, 0, 1."""
    rewards = [1.0, 1.0, 0.0, 0.5, 0.5, 0.25, 0.75, 0.0, 1.0]
    instance, batch = down_sampling_trainer(rewards, monkeypatch, down_sampling={"train_on": 2})
    trained = down_sampled(instance, batch)
    assert trained.keys == ["a_0_0", "a_0_1", "a_1_0", "b_2_0", "b_3_0"]
    assert instance._dropped.keys == ["a_2_0", "a_3_0", "b_0_0", "b_1_0"]
    assert instance._sampled[0].keys == batch.keys
    trained.keys.append("padding"), trained.tags.append({})
    monkeypatch.setattr(PPOTrainerSync, "step", lambda *_: trained)
    assert instance.step({}, {}).keys == [*trained.keys, *instance._dropped.keys]  # cleared by verl


def test_the_seed_and_the_step_draw_between_equal_rewards(monkeypatch):
    def keys(seed, step):
        instance, batch = down_sampling_trainer([0.5] * 9, monkeypatch, down_sampling={"train_on": 2}, seed=seed)
        instance.global_steps = step
        return tuple(down_sampled(instance, batch).keys)

    assert keys(1, 1) == keys(1, 1)
    assert len({keys(1, step) for step in range(1, 9)}) > 1 and len({keys(seed, 1) for seed in range(8)}) > 1


@pytest.mark.parametrize(("train_on", "seen"), [(None, 4), (2, 2)])
def test_verls_balancing_and_update_multiply_by_what_is_trained_on(monkeypatch, train_on, seen):
    instance, batch = down_sampling_trainer(
        [0.5] * 9, monkeypatch, down_sampling={"train_on": train_on}, mixed_fraction=0
    )
    found = []

    def stage(self, batch, *args, **kwargs):
        found.append(self.config.actor_rollout_ref.rollout.n)
        return batch

    for name in ("_balance_batch", "_update_actor"):
        monkeypatch.setattr(PPOTrainerSync, name, stage)
    instance.actor_rollout_wg = SimpleNamespace(take_skipped_updates=lambda: [0])
    instance._skipped_steps = 0
    instance._update_actor(instance._balance_batch(batch, {}), {})
    assert found == [seen, seen] and instance.config.actor_rollout_ref.rollout.n == 4


# ---- samples ----


@pytest.mark.parametrize(
    ("step", "updates", "rows"),
    [(1, 1, ["a0", "a1"]), (19, 1, []), (20, 1, ["a0", "a1"]), (20, 2, ["a0", "b1"])],
)
def test_a_few_real_rows_of_all_mini_batches_are_written_every_so_many_steps(
    monkeypatch, tmp_path, step, updates, rows
):
    asked = []

    def records(batch, stored, rows, first, decode):
        asked.append((rows, decode([7])))
        return [{"step": step, "sample": i, "row": f"{batch}{row}"} for i, row in enumerate(rows, first)]

    monkeypatch.setattr(batches, "sample_records", records)
    decode = lambda ids, skip_special_tokens, clean_up_tokenization_spaces: f"{ids}{skip_special_tokens}"  # noqa: E731
    instance = mixing_trainer(None, SoupConfig.parse({"log_samples": {"every": 10, "count": 2}}))
    instance.config.trainer.default_local_dir = str(tmp_path)
    instance.global_steps, instance.tokenizer = step, SimpleNamespace(decode=decode)
    responses = SimpleNamespace(is_mixed=torch.tensor([True, False, True]))
    instance.parameter_sync_step = updates
    for instance.local_trigger_step, batch in zip(range(updates), "ab", strict=False):  # as verl's `step` does
        instance._log_samples(batch, SimpleNamespace(real_rows=[0, 1], responses=responses))
    assert [text for _, text in asked] == ["[7]False"] * (updates if rows else 0)
    assert [e["row"] for e in sample_log.read(tmp_path).get(step, [])] == rows


# ---- the history on disk ----


def mixing_trainer(source, soup=None, **config):
    soup = soup or SoupConfig()
    history = History(soup, plan_of_run(soup, n=4, response_length=16, last_step=9), source)
    history.solved.when = "unsolved"
    instance = bare_trainer(
        _soup=soup,
        _history=history,
        _engine=SimpleNamespace(),
        actor_rollout_wg="workers",
        checkpoint_manager="checkpoint manager",
        _rotation=Rotation(OmegaConf.create({}), written=[]),
        global_steps=4,
        config=OmegaConf.create(
            {
                "actor_rollout_ref": {
                    "rollout": {"n": 4, "response_length": 16},
                    "actor": {},
                    "model": {"path": "/a/model"},
                },
                "data": {"train_batch_size": 8},
                "trainer": {
                    "resume_mode": "auto",
                    "resume_from_path": None,
                    "nnodes": 1,
                    "n_gpus_per_node": 1,
                    **config,
                },
            }
        ),
    )
    instance._settings = resume.run_settings(instance._soup, instance.config)
    return instance


class FileSource:
    """Writes one file and notes the folder it is asked to load from."""

    def __init__(self):
        self.loaded = []

    def save(self, folder):
        (folder / "history.txt").write_text("history")

    def load(self, folder):
        assert (folder / "history.txt").read_text() == "history"
        self.loaded.append(folder)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A checkpoint of step 4 behind two steps of low prefix KL and one prompt's solved rate."""
    monkeypatch.setattr(trainer.PPOTrainerSync, "_load_checkpoint", lambda self: None)
    monkeypatch.setattr(trainer.PPOTrainerSync, "_save_checkpoint", lambda self: None)
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    first = mixing_trainer(FileSource(), default_local_dir=str(tmp_path))
    first._history.collapse.low_steps = 2
    first._history.solved.record("p", 0.25)
    first._save_checkpoint()
    return folder


def test_mixing_that_had_to_wait_goes_on_as_it_was(saved):
    waiting = SoupConfig.parse({"start_at_solved_rate": 0.5})
    for started in (False, True):
        first = mixing_trainer(FileSource(), waiting, default_local_dir=str(saved.parent))
        first._history.solved.started = started
        first._save_checkpoint()
        second = mixing_trainer(FileSource(), waiting, default_local_dir=str(saved.parent))
        second._load_checkpoint()
        assert second._history.solved.started is started


def test_what_the_next_step_depends_on_comes_back(saved):
    second = mixing_trainer(FileSource(), default_local_dir=str(saved.parent))
    second._load_checkpoint()
    assert second._source.loaded == [saved / "soup"]
    assert vars(second._engine) == {"workers": "workers", "checkpoint_manager": "checkpoint manager"}
    assert second._history.collapse.low_steps == 2 and second._history.solved.rates == {"p": 0.25}
    assert json.loads((saved / "soup" / "solved_rates.json").read_text()) == {"p": 0.25}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": 1}, r"soup.seed=1: expected 0, as in .*global_step_4"),
        ({"lookahead": {"age": [2, 8]}}, r"soup.lookahead.age=\[2, 8\]: expected \[4\]"),
        ({"when": "unsolved"}, r"soup.when='unsolved': expected 'always'"),
        ({"source": "replay"}, r"soup.source='replay': expected 'lookahead'"),
        ({"position": "whole"}, r"soup.position='whole': expected 'prefix'"),
        ({"start_at_solved_rate": 0.5}, r"soup.start_at_solved_rate=0.5: expected None"),
        ({"mixed_fraction": 0.25}, r"soup.mixed_fraction=0.25: expected 0.5"),
        ({"baseline": "split"}, r"soup.baseline='split': expected 'shared'"),
        ({"prefix_length": {"high": 4}}, r"soup.prefix_length.high=4: expected None"),
        ({"prefix_length": {"schedule": {"shape": "linear", "final": 2}}}, r"schedule.final=2: expected None"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(saved, section, message):
    second = mixing_trainer(FileSource(), SoupConfig.parse(section), default_local_dir=str(saved.parent))
    with pytest.raises(ConfigError, match=message):
        second._load_checkpoint()
    assert second._source.loaded == []


@pytest.mark.parametrize("section", [{"lookahead": {"age": [4]}}, {"snapshot": {"capacity": 2}}])
def test_settings_that_say_the_same_or_nothing_may_change(saved, section):
    second = mixing_trainer(FileSource(), SoupConfig.parse(section), default_local_dir=str(saved.parent))
    second._load_checkpoint()
    assert second._source.loaded == [saved / "soup"]


def named(saved, source, section):
    place = {"resume_mode": "resume_path", "resume_from_path": str(saved)}
    return mixing_trainer(source, SoupConfig.parse(section), default_local_dir=str(saved.parent / "other"), **place)


def test_a_checkpoint_asked_for_by_name_may_start_another_run(saved):
    second = named(saved, FileSource(), {"baseline": "split"})
    second._load_checkpoint()
    assert second._source.loaded == [saved / "soup"]
    named(saved, None, {"mixed_fraction": 0})._load_checkpoint()
    with pytest.raises(ConfigError, match="soup.seed=1: expected 0"):
        named(saved, FileSource(), {"seed": 1})._load_checkpoint()


def test_a_run_that_mixes_may_start_from_a_named_checkpoint_of_one_that_does_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer.PPOTrainerSync, "_save_checkpoint", lambda self: None)
    monkeypatch.setattr(trainer.PPOTrainerSync, "_load_checkpoint", lambda self: None)
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    mixing_trainer(None, SoupConfig.parse({"mixed_fraction": 0}), default_local_dir=str(tmp_path))._save_checkpoint()
    with pytest.raises(ConfigError, match="soup.mixed_fraction=0.5: expected 0"):
        mixing_trainer(FileSource(), default_local_dir=str(tmp_path))._load_checkpoint()
    second = named(folder, FileSource(), {})
    second._load_checkpoint()
    assert second._source.loaded == [] and "has no history of SOUP: it starts anew" in caplog.text


def test_interrupted_responses_need_nothing_of_ours_but_the_count_of_low_steps(tmp_path, monkeypatch):
    """verl's queue has the responses and their versions."""
    monkeypatch.setattr(trainer.PPOTrainerSync, "_save_checkpoint", lambda self: None)
    monkeypatch.setattr(trainer.PPOTrainerSync, "_load_checkpoint", lambda self: None)
    (tmp_path / "global_step_4").mkdir()
    inflight = SoupConfig.parse({"source": "inflight", "mixed_fraction": 1})
    first = mixing_trainer(None, inflight, default_local_dir=str(tmp_path))
    first._history.collapse.low_steps = 2
    first._save_checkpoint()
    second = mixing_trainer(None, inflight, default_local_dir=str(tmp_path))
    second._load_checkpoint()
    assert second._history.collapse.low_steps == 2
    limited = SoupConfig.parse({"source": "inflight", "mixed_fraction": 1, "inflight": {"max_policy_age": 2}})
    with pytest.raises(ConfigError, match="soup.inflight.max_policy_age=2: expected None"):
        mixing_trainer(None, limited, default_local_dir=str(tmp_path))._load_checkpoint()


def test_a_checkpoint_of_a_run_without_history_holds_none(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.PPOTrainerSync, "_save_checkpoint", lambda self: None)
    (tmp_path / "global_step_4").mkdir()
    mixing_trainer(None, default_local_dir=str(tmp_path))._save_checkpoint()
    assert not (tmp_path / "global_step_4" / "soup" / "solved_rates.json").exists()


# ---- updates that were left out ----


def test_skipped_updates_are_counted_and_end_the_run_when_too_many_steps_have_one():
    """Ranks agree on a gradient's norm; two updates of one step make one step."""
    told = iter([[0, 0], [2, 2], [0, 0], [1, 1], [1, 1]])
    instance = bare_trainer(
        _soup=SoupConfig(max_skipped_steps=2),
        _skipped_steps=0,
        global_steps=5,
        actor_rollout_wg=SimpleNamespace(take_skipped_updates=lambda: next(told)),
    )
    for expected in (0.0, 2.0, 0.0, 1.0):
        metrics = {}
        instance._count_skipped_updates(metrics)
        assert metrics == {"soup/skipped_updates_total": expected}
    with pytest.raises(GradientsNotFinite, match=r"at step 5 and in 2 steps in a row: .* soup.max_skipped_steps=2"):
        instance._count_skipped_updates({})


# ---- whether the rollout engine takes the current weights at the end of a step ----

WHOLE = Prefix((5,), (-0.5,), 3, complete=True)


def syncing_trainer(groups, *, test_freq=-1):
    """At step 4 of 9; its source has these groups for step 5."""
    source = SimpleNamespace(ready=lambda step: groups if step == 5 else None, after_update=lambda step: None)
    instance = mixing_trainer(source, test_freq=test_freq)
    instance.total_training_steps, instance.timing_raw, instance._pending_sync_metrics = 9, {}, None
    instance._engine = SimpleNamespace(loads=1)
    instance.synced, instance.slept = [], []
    instance.checkpoint_manager = SimpleNamespace(
        update_weights=instance.synced.append, sleep_replicas=lambda: instance.slept.append(True)
    )
    return instance


def group(*prefixes):
    return GroupPrefixes("p", dict(enumerate(prefixes)))


@pytest.mark.parametrize(
    ("groups", "test_freq", "synced"),
    [
        ([group(WHOLE, WHOLE, WHOLE, WHOLE)], -1, []),
        ([group(WHOLE, WHOLE, WHOLE, WHOLE)], 3, []),
        ([group(WHOLE, WHOLE, WHOLE, WHOLE)], 2, [4]),  # validation comes
        ([group(WHOLE, WHOLE, WHOLE, WHOLE), group(WHOLE, WHOLE, WHOLE)], -1, [4]),  # an on-policy response
        ([group(WHOLE, WHOLE, WHOLE, Prefix((5,), (-0.5,), 3))], -1, [4]),  # a continuation
        (None, -1, [4]),
    ],
)
def test_current_weights_are_loaded_where_something_is_asked_of_them(groups, test_freq, synced):
    instance = syncing_trainer(groups, test_freq=test_freq)
    instance.on_step_end()
    assert instance.synced == synced
    assert instance._consume_sync_metrics() == {"soup/weight_loads_total": 1 + len(synced)}
    assert instance._engine.loads == 0


def test_before_the_last_validation_they_are_loaded_whatever_the_rhythm():
    instance = syncing_trainer([group(WHOLE, WHOLE, WHOLE, WHOLE)], test_freq=3)
    instance.total_training_steps = 4
    instance.on_step_end()
    assert instance.synced == [4]


@pytest.mark.parametrize(("whole", "slept"), [(4, []), (3, [True])])
def test_an_engine_that_took_no_weights_is_not_sent_to_sleep_again(whole, slept):
    instance = syncing_trainer([group(*[WHOLE] * whole)])
    instance._history.source.before_sleep = lambda: None
    instance.agent_loop_manager, instance.curr_step_profile = None, False
    instance.on_step_end()
    instance.on_sample_end()
    assert instance.slept == slept


def test_without_a_source_every_step_syncs_and_reports_nothing_of_ours():
    instance = syncing_trainer(None)
    instance._history.source = None
    instance.on_step_end()
    assert instance.synced == [4] and instance._consume_sync_metrics() == {}


# ---- the best checkpoint ----


@pytest.mark.parametrize("keep_best", [None, "val-soup/even/pass@8"])
def test_every_validation_is_judged_where_the_best_checkpoint_is_kept(monkeypatch, keep_best):
    judged = []
    monkeypatch.setattr(PPOTrainerSync, "_validate", lambda self: {"val-soup/even/pass@8": 0.5})
    instance = bare_trainer(agent_loop_manager=SimpleNamespace(take_errors=list), global_steps=4)
    if keep_best:
        instance._best = SimpleNamespace(judge=lambda *found: judged.append(found))
    assert instance._validate() == {"val-soup/even/pass@8": 0.5}
    assert judged == ([({"val-soup/even/pass@8": 0.5}, 4)] if keep_best else [])
