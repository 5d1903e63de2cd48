import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from soup_verl.method import core_algos, policy_losses, sections
from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.history import PolicyResponse, response_choice
from soup_verl.method.history.response_store import ResponseStore
from soup_verl.stack.checkpoint import TornCheckpoint

RECIPE = Path(__file__).parents[3] / "recipe/soup/config/soup_trainer.yaml"
SHARE = {"unit": "share"}


def refusal(section):
    with pytest.raises(ConfigError) as caught:
        SoupConfig.parse(section)
    return str(caught.value)


# ---- the section by itself ----


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ({"mixed_fraction": 1.5}, "soup.mixed_fraction", "1.5", "from 0 to 1"),
        ({"mixed_fraction": -0.1}, "soup.mixed_fraction", "-0.1", "from 0 to 1"),
        ({"mixed_fraction": float("nan")}, "soup.mixed_fraction", "nan", "from 0 to 1"),
        ({"mixed_fraction": "half"}, "soup.mixed_fraction", "'half'", "float or int"),
        ({"mixed_fraction": True}, "soup.mixed_fraction", "True", "float or int"),
        ({"mixed_fraction": None}, "soup.mixed_fraction", "None", "float or int"),
        ({"source": "teacher"}, "soup.source", "'teacher'", "lookahead, snapshot, replay, forget"),
        ({"prefix_objective": "sft"}, "soup.prefix_objective", "'sft'", "behavior, decoupled, masked, shaped"),
        (
            {"prefix_correction": "minpro"},
            "soup.prefix_correction",
            "'minpro'",
            "none, min_prefix, cumulative, cumulative_unclipped",
        ),
        ({"when": "never"}, "soup.when", "'never'", "always, unsolved, saturated"),
        ({"position": "end"}, "soup.position", "'end'", "prefix, middle, suffix, whole"),
        ({"behavior_log_probs": "engine"}, "soup.behavior_log_probs", "'engine'", "rollout, actor"),
        ({"shaped_gamma": 0}, "soup.shaped_gamma", "0", "above 0"),
        ({"shaped_gamma": float("inf")}, "soup.shaped_gamma", "inf", "above 0"),
        ({"warm_start": 1}, "soup.warm_start", "1", "bool"),
        ({"baseline": "none"}, "soup.baseline", "'none'", "shared, split, sampler"),
        ({"policy_loss": {"name": "ppo"}}, "soup.policy_loss.name", "'ppo'", "one of exo, exo_centred"),
        ({"policy_loss": {"exo_k": 0}}, "soup.policy_loss.exo_k", "0", "above 0"),
        ({"policy_loss": {"exo_k": float("inf")}}, "soup.policy_loss.exo_k", "inf", "above 0"),
        ({"policy_loss": {"oapl_b1": 0}}, "soup.policy_loss.oapl_b1", "0", "above 0"),
        ({"policy_loss": {"oapl_b1": -1}}, "soup.policy_loss.oapl_b1", "-1", "above 0"),
        ({"policy_loss": {"oapl_b2": 0}}, "soup.policy_loss.oapl_b2", "0", "above 0"),
        *(
            (
                {"policy_loss": {"name": name}, "prefix_objective": objective, "baseline": "sampler"},
                "soup.prefix_objective",
                f"'{objective}'",
                f"behavior or masked with soup.policy_loss.name={name}",
            )
            for name in ("oapl", "oapl_paired", "vespo")
            for objective in ("decoupled", "shaped")
        ),
        *(
            (
                {"policy_loss": {"name": name}, "prefix_correction": "min_prefix", "baseline": "sampler"},
                "soup.prefix_correction",
                "'min_prefix'",
                f"none with soup.policy_loss.name={name}",
            )
            for name in ("oapl", "oapl_paired", "vespo")
        ),
        *(
            ({"policy_loss": {"name": name}, "baseline": baseline}, "soup.baseline", f"'{baseline}'", "sampler with")
            for name in ("oapl", "oapl_paired")
            for baseline in ("shared", "split")
        ),
        ({"policy_loss": {"k": 5}}, "soup.policy_loss.k", "5", "no such key"),
        (
            {"policy_loss": {"name": "exo_centred"}, "prefix_objective": "decoupled"},
            "soup.prefix_objective",
            "'decoupled'",
            "behavior or masked with soup.policy_loss.name=exo_centred",
        ),
        ({"down_sampling": {"train_on": 1}}, "soup.down_sampling.train_on", "1", "an integer of at least 2"),
        ({"down_sampling": {"train_on": 2.0}}, "soup.down_sampling.train_on", "2.0", "int or null"),
        (
            {"down_sampling": {"choice": "best"}},
            "soup.down_sampling.choice",
            "'best'",
            "one of max_variance, random, max_reward",
        ),
        (
            {"down_sampling": {"train_on": 2}, "baseline": "split"},
            "soup.baseline",
            "'split'",
            "shared with soup.down_sampling.train_on=2",
        ),
        (
            {"down_sampling": {"train_on": 2}, "source": "replay", "behavior_log_probs": "actor"},
            "soup.behavior_log_probs",
            "'actor'",
            "rollout with soup.source=replay and soup.down_sampling.train_on=2",
        ),
        ({"forget": {"lr": 0}}, "soup.forget.lr", "0", "a number above 0"),
        ({"forget": {"lr": -0.5}}, "soup.forget.lr", "-0.5", "a number above 0"),
        ({"forget": {"steps": 0}}, "soup.forget.steps", "0", "at least 1"),
        ({"forget": {"clip": 1}}, "soup.forget.clip", "1", "between 0 and 1"),
        ({"forget": {"clip": 0.0}}, "soup.forget.clip", "0.0", "between 0 and 1"),
        ({"forget": {"rate": 1}}, "soup.forget.rate", "1", "clip, lr, steps"),
        ({"source": "forget", "position": "suffix"}, "soup.position", "'suffix'", "prefix or whole"),
        ({"source": "forget", "warm_start": True}, "soup.warm_start", "True", "forget, which needs no history"),
        ({"decoupled_weight_cap": 0}, "soup.decoupled_weight_cap", "0", "above 0"),
        ({"max_skipped_steps": 0}, "soup.max_skipped_steps", "0", "at least 1"),
        ({"seed": -1}, "soup.seed", "-1", "at least 0"),
        ({"seed": 1.0}, "soup.seed", "1.0", "int"),
        ({"sampling_seed": -1}, "soup.sampling_seed", "-1", "at least 0"),
        (
            {"keep_best": "pass@8"},
            "soup.keep_best",
            "'pass@8'",
            "a metric of validation, such as val-soup/math-500/pass@4",
        ),
        ({"keep_best": True}, "soup.keep_best", "True", "str or null"),
        ({"log_samples": {"every": -1}}, "soup.log_samples.every", "-1", "at least 0"),
        ({"log_samples": {"every": 0.5}}, "soup.log_samples.every", "0.5", "int"),
        ({"log_samples": {"count": -1}}, "soup.log_samples.count", "-1", "at least 0"),
        ({"log_samples": 5}, "soup.log_samples", "5", "a section of keys"),
        ({"sampling_seed": "x"}, "soup.sampling_seed", "'x'", "int or null"),
        (
            {"prefix_length": {"distribution": "normal"}},
            "soup.prefix_length.distribution",
            "'normal'",
            "fixed, uniform",
        ),
        ({"prefix_length": {"low": 0}}, "soup.prefix_length.low", "0", "at least 1"),
        ({"prefix_length": {"high": 0}}, "soup.prefix_length.high", "0", "at least 1"),
        ({"prefix_length": {"high": "all"}}, "soup.prefix_length.high", "'all'", "float or null or int"),
        ({"prefix_length": {"low": 5, "high": 4}}, "soup.prefix_length.low", "5", "at most soup.prefix_length.high=4"),
        (
            {"prefix_length": {"distribution": "fixed", "low": 4}},
            "soup.prefix_length.high",
            "None",
            "the same as soup.prefix_length.low=4",
        ),
        (
            {"prefix_length": {"distribution": "fixed", "low": 4, "high": 5}},
            "soup.prefix_length.high",
            "5",
            "the same as soup.prefix_length.low=4",
        ),
        ({"prefix_length": 7}, "soup.prefix_length", "7", "a section of keys"),
        ({"lookahead": {"age": 0}}, "soup.lookahead.age", "0", "at least 1"),
        ({"lookahead": {"age": 1.5}}, "soup.lookahead.age", "1.5", "int or list"),
        ({"lookahead": None}, "soup.lookahead", "None", "a section of keys"),
        ({"snapshot": {"every": 0}}, "soup.snapshot.every", "0", "at least 1"),
        ({"snapshot": {"capacity": 0}}, "soup.snapshot.capacity", "0", "at least 1"),
        ({"lookahead": {"age": []}}, "soup.lookahead.age", "[]", "a whole number of steps"),
        ({"lookahead": {"age": [2, 2]}}, "soup.lookahead.age", "[2, 2]", "a list of different ones"),
        ({"lookahead": {"age": [2, 0]}}, "soup.lookahead.age", "[2, 0]", "at least 1"),
        ({"lookahead": {"age": [2, 4.0]}}, "soup.lookahead.age", "[2, 4.0]", "a whole number of steps"),
        ({"lookahead": {"age": True}}, "soup.lookahead.age", "True", "int or list"),
        ({"snapshot": {"choice": "newest"}}, "soup.snapshot.choice", "'newest'", "uniform, oldest, latest, auto"),
        ({"replay": {"choice": "auto"}}, "soup.replay.choice", "'auto'", "best_reward, worst_reward, entropy"),
        ({"replay": {"capacity_tokens": 1023}}, "soup.replay.capacity_tokens", "1023", "at least 1024"),
        ({"replay": {"per_prompt": 0}}, "soup.replay.per_prompt", "0", "at least 1"),
        ({"replay": {"max_policy_age": 0}}, "soup.replay.max_policy_age", "0", "at least 1"),
        ({"kl_control": {"max_prefix_kl": 0}}, "soup.kl_control.max_prefix_kl", "0", "above 0"),
        ({"kl_control": {"max_second_moment": 0}}, "soup.kl_control.max_second_moment", "0", "above 0"),
        ({"kl_control": {"min_prefix_kl": -0.1}}, "soup.kl_control.min_prefix_kl", "-0.1", "above 0"),
        ({"kl_control": {"target_kl": float("nan")}}, "soup.kl_control.target_kl", "nan", "above 0"),
        ({"kl_control": {"patience": 0}}, "soup.kl_control.patience", "0", "at least 1"),
        (
            {"kl_control": {"min_prefix_kl": 0.2, "max_prefix_kl": 0.2}},
            "soup.kl_control.min_prefix_kl",
            "0.2",
            "less than soup.kl_control.max_prefix_kl=0.2",
        ),
        (
            {"mixed_fraction_schedule": {"shape": "step"}},
            "soup.mixed_fraction_schedule.shape",
            "'step'",
            "constant, linear, cosine",
        ),
        (
            {"mixed_fraction_schedule": {"final": 0.1}},
            "soup.mixed_fraction_schedule.final",
            "0.1",
            "null with shape=constant",
        ),
        (
            {"mixed_fraction_schedule": {"shape": "linear"}},
            "soup.mixed_fraction_schedule.final",
            "None",
            "a number, because soup.mixed_fraction_schedule.shape=linear",
        ),
        (
            {"mixed_fraction_schedule": {"shape": "linear", "final": 1.1}},
            "soup.mixed_fraction_schedule.final",
            "1.1",
            "from 0 to 1",
        ),
        (
            {"mixed_fraction_schedule": {"shape": "linear", "final": 0.1, "steps": 0}},
            "soup.mixed_fraction_schedule.steps",
            "0",
            "at least 1",
        ),
        (
            {"prefix_length": {"schedule": {"shape": "linear", "final": 1.5}}},
            "soup.prefix_length.schedule.final",
            "1.5",
            "an integer of at least 1",
        ),
        (
            {"source": "replay", "prefix_length": {"unit": "share", "schedule": {"shape": "linear", "final": 1.5}}},
            "soup.prefix_length.schedule.final",
            "1.5",
            "a share above 0 and up to 1",
        ),
        ({"prefix_length": {"unit": "words"}}, "soup.prefix_length.unit", "'words'", "tokens, share"),
        ({"prefix_length": {"low": 0.5}}, "soup.prefix_length.low", "0.5", "an integer of at least 1"),
        ({"prefix_length": {"unit": "share", "low": 0.0}}, "soup.prefix_length.low", "0.0", "a share above 0"),
        (
            {"prefix_length": {"unit": "share", "low": 0.5, "high": 2}},
            "soup.prefix_length.high",
            "2",
            "a share above 0 and up to 1",
        ),
        (
            {"prefix_length": {"unit": "share"}},
            "soup.prefix_length.unit",
            "'share'",
            "tokens with soup.source=lookahead",
        ),
        (
            {"source": "snapshot", "prefix_length": {"unit": "share"}},
            "soup.prefix_length.unit",
            "'share'",
            "tokens with soup.source=snapshot",
        ),
        ({"position": "middle"}, "soup.position", "'middle'", "prefix or whole with soup.source=lookahead"),
        (
            {"source": "replay", "position": "suffix"},
            "soup.position",
            "'suffix'",
            "prefix or whole with soup.source=replay",
        ),
        ({"start_at_solved_rate": 1}, "soup.start_at_solved_rate", "1", "a share from 0 to less than 1, or null"),
        ({"replay": {"target_pass_rate": 0}}, "soup.replay.target_pass_rate", "0", "between 0 and 1"),
        ({"replay": {"target_pass_rate": 1.0}}, "soup.replay.target_pass_rate", "1.0", "between 0 and 1"),
        ({"replay": {"choice": "balanced"}}, "soup.source", "'lookahead'", "replay with soup.replay.choice=balanced"),
        (
            {"source": "replay", "replay": {"choice": "balanced"}},
            "soup.prefix_length.unit",
            "'tokens'",
            "share with soup.replay.choice=balanced",
        ),
        (
            {"source": "replay", "replay": {"choice": "balanced"}, "position": "whole", "prefix_length": SHARE},
            "soup.position",
            "'whole'",
            "prefix with soup.replay.choice=balanced",
        ),
        (
            {
                "source": "replay",
                "replay": {"choice": "balanced"},
                "prefix_length": SHARE | {"schedule": {"shape": "linear", "final": 0.5}},
            },
            "soup.prefix_length.schedule.shape",
            "'linear'",
            "constant with soup.replay.choice=balanced",
        ),
        ({"source": "replay", "warm_start": True}, "soup.warm_start", "True", "false with soup.source=replay"),
        (
            {"source": "snapshot", "snapshot": {"choice": "auto"}},
            "soup.kl_control.target_kl",
            "None",
            "because soup.snapshot.choice=auto",
        ),
        (
            {"kl_control": {"target": 1}},
            "soup.kl_control.target",
            "1",
            "max_prefix_kl, max_second_moment, min_prefix_kl",
        ),
        ({"replay": {"capacity": 1}}, "soup.replay.capacity", "1", "capacity_tokens, choice, max_policy_age"),
        (
            {"prefix_length": {"schedule": {"form": "linear"}}},
            "soup.prefix_length.schedule.form",
            "'linear'",
            "final, shape, steps",
        ),
        ({"mixed_fractoin": 0.5}, "soup.mixed_fractoin", "0.5", "mixed_fraction"),
        ({"prefix_length": {"hi": 3}}, "soup.prefix_length.hi", "3", "distribution, high, low"),
        ({"lookahead": {"steps": 3}}, "soup.lookahead.steps", "3", "age"),
        ({"snapshot": {"size": 3}}, "soup.snapshot.size", "3", "capacity, choice, every"),
    ],
)
def test_refusal_names_key_value_and_what_is_expected(section, key, value, expected):
    message = refusal(section)
    assert message.startswith(f"{key}={value}: expected ")
    assert expected in message


def test_refusal_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


def test_section_that_is_not_a_section_is_refused():
    assert refusal([1]).startswith("soup=[1]: expected a section of keys")


def test_nested_values_arrive():
    soup = SoupConfig.parse({"mixed_fraction": 1, "lookahead": {"age": 7}, "prefix_length": {"low": 2, "high": 9}})
    assert (soup.mixed_fraction, soup.lookahead.age, soup.prefix_length.low, soup.prefix_length.high) == (1, 7, 2, 9)


@pytest.mark.parametrize(("fraction", "mixing"), [(0, False), (0.0, False), (0.01, True), (1, True)])
def test_mixing_is_off_only_at_0(fraction, mixing):
    assert SoupConfig(mixed_fraction=fraction).mixing is mixing


@pytest.mark.parametrize(
    ("fraction", "final", "mixing"), [(0, 0.5, True), (0, 0.0, False), (0.5, 0.0, True), (0, 0.01, True)]
)
def test_a_schedule_from_or_to_0_is_mixing(fraction, final, mixing):
    section = {"mixed_fraction": fraction, "mixed_fraction_schedule": {"shape": "linear", "final": final}}
    assert SoupConfig.parse(section).mixing is mixing


@pytest.mark.parametrize(("age", "ages"), [(7, (7,)), ([2, 8], (2, 8)), ([8, 2], (8, 2)), ([3], (3,))])
def test_one_age_or_several(age, ages):
    assert SoupConfig.parse({"lookahead": {"age": age}}).lookahead.ages == ages


@pytest.mark.parametrize(
    ("length", "budget", "bounds"),
    [
        ({}, 16, (1, 7)),
        ({}, 17, (1, 8)),
        ({"low": 10}, 16, (10, 10)),
        ({"low": 2, "high": 5}, 16, (2, 5)),
        ({}, 1, (1, 1)),
        ({}, 2048, (1, 1023)),
        ({}, 8192, (1, 1024)),
    ],
)
def test_highest_length_defaults_to_half_of_the_budget_up_to_1024_tokens(length, budget, bounds):
    assert SoupConfig.parse({"prefix_length": length}).prefix_length.bounds(budget) == bounds


@pytest.mark.parametrize(
    ("length", "bounds"),
    [
        ({"low": 0.25}, (0.25, 1.0)),
        ({"low": 0.25, "high": 0.5}, (0.25, 0.5)),
        ({"low": 1.0, "high": 1.0, "distribution": "fixed"}, (1.0, 1.0)),
    ],
)
def test_the_highest_share_defaults_to_the_whole_source_response(length, bounds):
    soup = SoupConfig.parse({"source": "replay", "prefix_length": {"unit": "share", **length}})
    assert soup.prefix_length.bounds(16) == bounds


@pytest.mark.parametrize(
    ("low", "high", "final", "key", "longest"),
    [
        (None, 4, 9, "schedule.final", 9),
        (None, 9, 4, "high", 9),
        (None, None, 4, "high", 7),
        (None, None, 12, "schedule.final", 12),
        (10, None, 4, "low", 10),
        (9, 9, 9, "high", 9),
    ],
)
def test_the_longest_prefix_is_that_of_any_step_and_its_key_is_named(low, high, final, key, longest):
    section = {"low": low, "high": high, "schedule": {"shape": "cosine", "final": final}}
    found = SoupConfig.parse({"prefix_length": section}).prefix_length.longest(16)
    assert found == (f"soup.prefix_length.{key}", longest)


def test_a_fixed_length_does_not_move():
    section = {"distribution": "fixed", "low": 4, "high": 4, "schedule": {"shape": "linear", "final": 8}}
    message = refusal({"prefix_length": section})
    assert message.startswith("soup.prefix_length.schedule.shape='linear': expected constant")


def test_a_share_may_be_any_by_default():
    soup = SoupConfig.parse({"source": "replay", "prefix_length": {"unit": "share"}})
    assert soup.prefix_length.bounds(16) == (0.0, 1.0)


@pytest.mark.parametrize(
    "section",
    [
        {"source": "replay", "prefix_length": {"unit": "share", "low": 0.1, "high": 0.9}},
        {"source": "snapshot", "position": "suffix", "warm_start": True},
        {"source": "replay", "position": "whole"},
        {"source": "replay", "replay": {"choice": "balanced"}, "prefix_length": SHARE},
        {"source": "snapshot", "snapshot": {"choice": "auto"}, "kl_control": {"target_kl": 0.05}},
        {"source": "lookahead", "snapshot": {"choice": "auto"}},  # of another source: not looked at
        {"kl_control": {"min_prefix_kl": 0.01, "max_prefix_kl": 0.2, "patience": 1}},
        {"keep_best": "val-soup/math-500/pass@4"},
        {"keep_best": "-val-aux/num_turns/mean"},
        {"log_samples": {"every": 0, "count": 0}},
        {"prefix_objective": "shaped", "prefix_correction": "min_prefix", "behavior_log_probs": "actor"},
    ],
)
def test_a_section_that_can_work_is_accepted(section):
    assert SoupConfig.parse(section).mixing


# ---- every name that may be chosen is implemented, and nothing else is ----


@pytest.mark.parametrize(
    ("names", "implemented"),
    [
        (sections.PREFIX_OBJECTIVES, core_algos.PREFIX_OBJECTIVES),
        (sections.PREFIX_CORRECTIONS, core_algos.PREFIX_CORRECTIONS),
        (sections.BASELINES, core_algos.GROUPINGS),
        ((None, *sections.POLICY_LOSSES), policy_losses.POLICY_LOSSES),
        (sections.REPLAY_CHOICES, (*response_choice.CHOICES, "balanced")),  # which takes two of them in turn
    ],
)
def test_the_names_to_choose_from_are_those_implemented(names, implemented):
    assert names == tuple(implemented)
    assert set(core_algos.MEAN_WEIGHTS) <= set(sections.BASELINES)


# What has no table of its own is tried name by name: test_build_source.py (sources), test_mixing.py (positions),
# history/test_snapshot.py (snapshot choices), test_actor_worker.py (corrections), test_policy_engine.py (log-probs).


def test_the_store_takes_every_choice_there_is():
    store = ResponseStore(capacity_tokens=10_000, per_prompt=2, max_policy_age=None)
    for reward in (0.0, 1.0):
        store.add(PolicyResponse("p", np.ones(1, np.int32), np.zeros(1, np.float32), 0, reward, True))
    for choice in response_choice.CHOICES:
        assert len(store.choose("p", 1, choice=choice, seed=0)) == 1


# ---- the shipped recipe ----


def test_the_yaml_and_the_dataclasses_have_the_same_defaults():
    section = yaml.safe_load(RECIPE.read_text())["soup"]
    assert SoupConfig.parse(section) == SoupConfig()


def test_the_yaml_spells_out_every_key():
    def keys(node):
        return {k: keys(v) for k, v in node.items()} if isinstance(node, dict) else None

    section = yaml.safe_load(RECIPE.read_text())["soup"]
    assert keys(section) == keys(dataclasses.asdict(SoupConfig()))


def test_a_list_may_be_omegaconfs():
    """Workers are handed the section as verl's configuration holds it."""
    section = OmegaConf.create({"lookahead": {"age": [2, 8]}})
    assert SoupConfig.parse(section) == SoupConfig.parse({"lookahead": {"age": [2, 8]}})


def test_errors_keep_their_message_when_they_are_pickled():
    for error in (ConfigError("soup.seed", -1, "more"), TornCheckpoint(Path("a"), "torn")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
