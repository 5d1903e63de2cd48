"""The parts of the trainer that need no cluster; whole steps run in tests/e2e."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from soup_verl import batch as batches
from soup_verl import resume, sample_log, trainer
from soup_verl.config import ConfigError, SoupConfig
from soup_verl.history import CollapseWatch, NoiseWatch
from soup_verl.metrics import StepBatch
from soup_verl.mixing import SolvedRates
from soup_verl.trainer import GradientsNotFinite, SessionsFailed, SoupTrainer


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


# ---- what the settings make ----


def planning_trainer(**section):
    config = {"actor_rollout_ref": {"rollout": {"n": 4, "response_length": 16}}}
    return bare_trainer(_soup=SoupConfig.parse(section), config=OmegaConf.create(config), global_steps=1)


def test_the_plan_has_the_settings_numbers():
    planner = planning_trainer(
        seed=3,
        mixed_fraction=0.75,
        lookahead={"age": [2, 8]},
        prefix_length={"low": 2, "high": 5},
    )._build_planner(last_step=10)
    assert (planner.seed, planner.n, planner.low, planner.ages) == (3, 4, 2, (2, 8))
    assert (planner.in_shares, planner.position) == (False, "prefix")
    assert [planner.mixed_fraction.at(s) for s in (1, 10)] == [0.75] * 2
    assert [planner.longest(s) for s in (1, 10)] == [5, 5]


def test_schedules_end_with_the_run_or_where_they_say():
    planner = planning_trainer(
        mixed_fraction=1.0,
        mixed_fraction_schedule={"shape": "linear", "final": 0.0},
        prefix_length={"high": 9, "schedule": {"shape": "linear", "final": 1, "steps": 5}},
    )._build_planner(last_step=11)
    assert [planner.mixed_fraction.at(s) for s in (1, 6, 11)] == pytest.approx([1, 0.5, 0])
    assert [planner.longest(s) for s in (1, 2, 3, 5, 11)] == [9, 7, 5, 1, 1]


def test_shares_and_positions_reach_the_plan():
    shares = {"unit": "share", "low": 0.25}
    planner = planning_trainer(source="replay", prefix_length=shares)._build_planner(last_step=10)
    assert (planner.in_shares, planner.low, planner.longest(1), planner.ages) == (True, 0.25, 1.0, (0,))
    planner = planning_trainer(source="snapshot", position="suffix")._build_planner(last_step=10)
    assert (planner.position, planner.ages, planner.longest(1)) == ("suffix", (0,), 7)
    assert all(r.to_the_end and r.head > 0 for r in planner.plan_prompt(step=1, position=0))


def test_the_settings_in_force_are_reported():
    instance = planning_trainer(
        mixed_fraction=0.0,
        mixed_fraction_schedule={"shape": "linear", "final": 1.0, "steps": 3},
        prefix_length={"high": 6},
    )
    instance._planner, instance.global_steps = instance._build_planner(last_step=10), 2
    assert instance._settings_of_step() == {"soup/mixed_fraction": 0.5, "soup/prefix_length_limit": 6.0}


# ---- what a batch says about the history ----


class NotingSource:
    """Notes what it is told."""

    def __init__(self, *, wants_responses=False, decodes_prefixes=True):
        self.wants_responses, self.decodes_prefixes = wants_responses, decodes_prefixes
        self.kl, self.responses = [], []

    def observe_kl(self, kl_by_age, *, collapsed):
        self.kl.append((dict(kl_by_age), collapsed))

    def observe_responses(self, responses):
        self.responses.append(responses)

    def metrics(self):
        return {"soup/of_the_source": 1.0}


# One prompt: a prefix of two tokens of version 3 and one of the current policy's; an on-policy response; padding.
BATCH = StepBatch(
    uids=["u", "u"],
    response_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
    prefix_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]),
    policy_version=torch.tensor([3, -1]),
    current_version=5,
    behavior_log_probs=torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.5, 9]]).log(),
    old_log_probs=torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 9]]).log(),
    entropy=None,
    rewards=torch.tensor([1.0, 0.0]),
    solved=torch.tensor([True, False]),
    answers=None,
)
ROWS = SimpleNamespace(
    real_rows=[0, 1],
    response_mask=torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
    prefix_mask=torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]]),
)
KL = (1 - 0.6931472) / 2  # ratios 2 and 1


def observing_trainer(noting, *, when="always", min_prefix_kl=None, patience=1, **section):
    kl_control = {"min_prefix_kl": min_prefix_kl, "patience": patience}
    instance = planning_trainer(when=when, kl_control=kl_control, **section)
    instance._planner = instance._build_planner(last_step=10)
    instance._source, instance._solved = noting, SolvedRates(when)
    instance._collapse = CollapseWatch(min_prefix_kl, patience)
    instance._key_of_uid, instance.global_steps = {"u": "the prompt"}, 6
    return instance


def test_the_source_is_told_the_prefix_kl_by_age():
    source = NotingSource()
    metrics = observing_trainer(source)._observe("batch", ROWS, BATCH)
    ((told, collapsed),) = source.kl
    assert told == {2: pytest.approx(KL, rel=1e-5)} and collapsed is False
    assert metrics["soup/prefix_kl_k3_age_2_3"] == pytest.approx(KL, rel=1e-5)
    assert metrics["soup/of_the_source"] == 1.0 and metrics["soup/mixed_fraction"] == 0.5
    assert source.responses == []


@pytest.mark.parametrize(("decodes_prefixes", "tokens"), [(True, 5), (False, 3)])
def test_replayed_tokens_are_not_counted_as_decoded(decodes_prefixes, tokens):
    source = NotingSource(decodes_prefixes=decodes_prefixes)
    metrics = observing_trainer(source)._observe("batch", ROWS, BATCH)
    assert metrics["soup/decode_tokens_total"] == tokens


def test_the_gate_learns_the_solved_rate_of_the_prompt():
    instance = observing_trainer(NotingSource(), when="unsolved")
    instance._observe("batch", ROWS, BATCH)
    assert instance._solved.rates == {"the prompt": 0.5}


@pytest.mark.parametrize("behavior_log_probs", ["rollout", "actor"])
def test_a_source_that_stores_responses_gets_them(monkeypatch, behavior_log_probs):
    asked = {}
    monkeypatch.setattr(batches, "policy_responses", lambda *args, **kwargs: asked.update(kwargs) or ["responses"])
    source = NotingSource(wants_responses=True)
    observing_trainer(source, behavior_log_probs=behavior_log_probs)._observe("batch", ROWS, BATCH)
    assert source.responses == [["responses"]]
    from_actor = behavior_log_probs == "actor"
    assert asked == {"current_version": 5, "response_length": 16, "from_actor": from_actor}


def test_a_collapse_is_told_reported_and_warned_of_once(caplog):
    source = NotingSource()
    instance = observing_trainer(source, min_prefix_kl=0.5, patience=2, source="snapshot")
    with caplog.at_level(logging.WARNING):
        steps = [instance._observe("batch", ROWS, BATCH)["soup/prefix_kl_low_steps"] for _ in range(3)]
    assert steps == [1.0, 2.0, 3.0] and [collapsed for _, collapsed in source.kl] == [False, True, True]
    (record,) = caplog.records
    assert "soup.kl_control.min_prefix_kl=0.5 for 2 steps" in record.getMessage()
    assert "the oldest kept policy serves" in record.getMessage()


def test_a_step_without_prefixes_says_nothing_about_a_collapse():
    source = NotingSource()
    instance = observing_trainer(source, min_prefix_kl=0.5, patience=2)
    onpolicy = StepBatch(**{**vars(BATCH), "prefix_mask": torch.zeros(2, 3), "policy_version": torch.tensor([-1, -1])})
    for batch in (BATCH, onpolicy, BATCH):
        instance._observe("batch", ROWS, batch)
    assert [collapsed for _, collapsed in source.kl] == [False, False, True]
    assert source.kl[1][0] == {}


def test_a_prefix_kl_that_is_noise_is_warned_of_once_in_a_run(monkeypatch, caplog):
    """Engine and trainer disagree as much on the current policy's tokens as on the prefix: k3 of ratios 2 and 1."""
    soup = SoupConfig.parse({"kl_control": {"min_prefix_kl": 1e-3}, "log_samples": {"every": 0}})
    noisy = torch.tensor([[0.25, 0.5, 0.5], [0.25, 0.5, 9]]).log()
    data = SimpleNamespace(
        old_log_probs=BATCH.old_log_probs,
        behavior_log_probs=noisy,
        prefix_mask=BATCH.prefix_mask,
        is_mixed=BATCH.is_mixed,
    )
    monkeypatch.setattr(batches, "read", lambda batch, mixing: data)
    monkeypatch.setattr(batches, "step_batch", lambda *_, **__: replace(BATCH, behavior_log_probs=noisy))
    monkeypatch.setattr(batches, "write_prefix_fields", lambda *_, **__: None)
    monkeypatch.setattr(trainer.PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
    config = {"algorithm": {"adv_estimator": "soup", "rollout_correction": {}}}
    instance = bare_trainer(_soup=soup, _noise=NoiseWatch(soup), _source=None, global_steps=6)
    instance.config = OmegaConf.create(config)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            instance._compute_advantage(SimpleNamespace(keys=["u_0_0", "u_1_0"]), {})
    (record,) = caplog.records
    assert record.getMessage().startswith("step 6: soup/noise_floor_kl_k3=0.1 is more than half")  # .307 / 3 tokens


# ---- samples ----


@pytest.mark.parametrize(("step", "rows"), [(1, 2), (19, 0), (20, 2)])
def test_a_few_real_rows_are_written_every_so_many_steps(monkeypatch, tmp_path, step, rows):
    asked = []

    def records(batch, data, rows, **kwargs):
        asked.append((rows, kwargs["recomputed"], kwargs["decode"]([7])))
        return [{"step": kwargs["step"], "sample": i, "row": row} for i, row in enumerate(rows)]

    monkeypatch.setattr(batches, "sample_records", records)
    decode = lambda ids, skip_special_tokens, clean_up_tokenization_spaces: f"{ids}{skip_special_tokens}"  # noqa: E731
    instance = mixing_trainer(None, SoupConfig.parse({"log_samples": {"every": 10, "count": 2}}))
    instance.config.trainer.default_local_dir = str(tmp_path)
    instance.global_steps, instance.tokenizer = step, SimpleNamespace(decode=decode)
    data = SimpleNamespace(real_rows=[0, 1], is_mixed=torch.tensor([True, False, True]))
    instance._log_samples("batch", data, recomputed=False)
    assert asked == ([([0, 1], False, "[7]False")] if rows else [])
    assert [e["row"] for e in sample_log.read(tmp_path).get(step, [])] == list(range(rows))


# ---- prefix tokens ----


@pytest.mark.parametrize(
    ("limit", "cut", "share"),
    # k3 is 1 - ln 2 = 0.307 on the first prefix token and 0 on the second: running means 0.307 and 0.153
    [(None, None, None), (0.5, [0, 0, 0], 0.0), (0.2, [1, 1, 0], 1.0)],
)
def test_tokens_past_the_kl_limit_are_handed_on_and_counted(monkeypatch, limit, cut, share):
    seen = {}
    monkeypatch.setattr(batches, "write_prefix_fields", lambda *args, untrained: seen.update(untrained=untrained))
    data = SimpleNamespace(
        old_log_probs=BATCH.old_log_probs[:1],
        behavior_log_probs=BATCH.behavior_log_probs[:1],
        prefix_mask=BATCH.prefix_mask[:1],
    )
    metrics = {}
    section = {"kl_control": {"max_prefix_kl": limit}, "prefix_objective": "decoupled", "decoupled_weight_cap": 1.5}
    weight = planning_trainer(**section)._prepare_prefix_tokens("batch", data, metrics)
    assert_close(weight[:, :2], torch.tensor([[1.5, 1.0]]))
    assert seen["untrained"] is None if cut is None else seen["untrained"].int().tolist() == [cut]
    assert metrics == ({} if share is None else {"soup/prefix_tokens_cut_share": share})


# ---- the history on disk ----


def mixing_trainer(source, soup=None, **config):
    instance = bare_trainer(
        _soup=soup or SoupConfig(),
        _source=source,
        _solved=SolvedRates("unsolved"),
        _collapse=CollapseWatch(0.1, 5),
        global_steps=4,
        config=OmegaConf.create(
            {
                "actor_rollout_ref": {"rollout": {"n": 4}, "actor": {}, "model": {"path": "/a/model"}},
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
    first._collapse.low_steps = 2
    first._solved.record("p", 0.25)
    first._save_checkpoint()
    return folder


def test_what_the_next_step_depends_on_comes_back(saved):
    second = mixing_trainer(FileSource(), default_local_dir=str(saved.parent))
    second._load_checkpoint()
    assert second._source.loaded == [saved / "soup"]
    assert second._collapse.low_steps == 2 and second._solved.rates == {"p": 0.25}
    assert json.loads((saved / "soup" / "solved_rates.json").read_text()) == {"p": 0.25}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": 1}, r"soup.seed=1: expected 0, as in .*global_step_4"),
        ({"lookahead": {"age": [2, 8]}}, r"soup.lookahead.age=\[2, 8\]: expected \[4\]"),
        ({"when": "unsolved"}, r"soup.when='unsolved': expected 'always'"),
        ({"source": "replay"}, r"soup.source='replay': expected 'lookahead'"),
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
