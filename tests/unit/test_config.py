import copy
import dataclasses
import functools
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from soup_verl.config import ConfigError, SoupConfig, check_run

RECIPE = Path(__file__).parents[2] / "recipe/soup/config"
MANAGER = "soup_verl.rollout.SoupAgentLoopManager"


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
        ({"source": "replay"}, "soup.source", "'replay'", "lookahead, snapshot"),
        ({"prefix_objective": "shaped"}, "soup.prefix_objective", "'shaped'", "behavior, decoupled, masked"),
        ({"baseline": "none"}, "soup.baseline", "'none'", "shared, split"),
        ({"decoupled_weight_cap": 0}, "soup.decoupled_weight_cap", "0", "above 0"),
        ({"seed": -1}, "soup.seed", "-1", "at least 0"),
        ({"seed": 1.0}, "soup.seed", "1.0", "int"),
        ({"sampling_seed": -1}, "soup.sampling_seed", "-1", "at least 0"),
        ({"sampling_seed": "x"}, "soup.sampling_seed", "'x'", "int or null"),
        (
            {"prefix_length": {"distribution": "normal"}},
            "soup.prefix_length.distribution",
            "'normal'",
            "fixed, uniform",
        ),
        ({"prefix_length": {"low": 0}}, "soup.prefix_length.low", "0", "at least 1"),
        ({"prefix_length": {"high": 0}}, "soup.prefix_length.high", "0", "at least 1"),
        ({"prefix_length": {"high": "all"}}, "soup.prefix_length.high", "'all'", "int or null"),
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
        ({"lookahead": {"age": 1.5}}, "soup.lookahead.age", "1.5", "int"),
        ({"lookahead": None}, "soup.lookahead", "None", "a section of keys"),
        ({"snapshot": {"every": 0}}, "soup.snapshot.every", "0", "at least 1"),
        ({"snapshot": {"capacity": 0}}, "soup.snapshot.capacity", "0", "at least 1"),
        ({"snapshot": {"choice": "newest"}}, "soup.snapshot.choice", "'newest'", "uniform, oldest, latest"),
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
    ("length", "budget", "bounds"),
    [({}, 16, (1, 8)), ({"low": 10}, 16, (10, 10)), ({"low": 2, "high": 5}, 16, (2, 5)), ({}, 1, (1, 1))],
)
def test_highest_length_defaults_to_half_of_the_budget(length, budget, bounds):
    assert SoupConfig.parse({"prefix_length": length}).prefix_length.bounds(budget) == bounds


# ---- against the rest of the run ----


def run_config(**changes):
    """The least that a mixing run needs; `changes` are dotted keys with `__` for the dot."""
    config = {
        "algorithm": {"adv_estimator": "soup", "rollout_correction": {"bypass_mode": False, "rollout_is": None}},
        "actor_rollout_ref": {
            "rollout": {
                "n": 4,
                "response_length": 16,
                "calculate_log_probs": True,
                "temperature": 1.0,
                "agent": {"default_agent_loop": "soup_agent", "agent_loop_manager_class": MANAGER},
            }
        },
        "trainer": {"total_training_steps": 10},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return config


ROLLOUT = "actor_rollout_ref__rollout"


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"mixed_fraction": 0.1}, {}, "soup.mixed_fraction=0.1: expected a share"),
        ({}, {f"{ROLLOUT}__n": 1}, "soup.mixed_fraction=0.5: expected a share"),
        ({}, {"algorithm__adv_estimator": "grpo"}, "algorithm.adv_estimator='grpo': expected soup"),
        (
            {},
            {f"{ROLLOUT}__agent__default_agent_loop": "single_turn_agent"},
            "actor_rollout_ref.rollout.agent.default_agent_loop='single_turn_agent': expected soup_agent",
        ),
        (
            {},
            {f"{ROLLOUT}__agent__agent_loop_manager_class": None},
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class=None: expected {MANAGER}",
        ),
        ({"prefix_length": {"high": 16}}, {}, "soup.prefix_length.high=16: expected less than the response budget"),
        ({"prefix_length": {"low": 16}}, {}, "soup.prefix_length.low=16: expected less than the response budget"),
        ({}, {f"{ROLLOUT}__response_length": 1}, "soup.prefix_length.low=1: expected less than the response budget"),
        (
            {},
            {f"{ROLLOUT}__calculate_log_probs": False},
            "actor_rollout_ref.rollout.calculate_log_probs=False: expected true",
        ),
        ({}, {f"{ROLLOUT}__temperature": 0}, "actor_rollout_ref.rollout.temperature=0: expected above 0"),
        (
            {},
            {f"{ROLLOUT}__logprobs_mode": "raw_logprobs"},
            "actor_rollout_ref.rollout.logprobs_mode='raw_logprobs': expected processed_logprobs",
        ),
        ({}, {f"{ROLLOUT}__top_p": 0.9}, "actor_rollout_ref.rollout.top_p=0.9: expected 1.0"),
        ({}, {f"{ROLLOUT}__top_k": 50}, "actor_rollout_ref.rollout.top_k=50: expected -1"),
        (
            {"prefix_objective": "decoupled"},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false",
        ),
        (
            {"prefix_objective": "decoupled"},
            {"algorithm__rollout_correction__rollout_is": "token"},
            "algorithm.rollout_correction.rollout_is='token': expected null",
        ),
        ({}, {"algorithm__filter_groups__enable": True}, "algorithm.filter_groups.enable=True: expected false"),
        (
            {},
            {"trainer__v1__sampler__sync_refill_failed_groups": True},
            "trainer.v1.sampler.sync_refill_failed_groups=True: expected false",
        ),
        ({"lookahead": {"age": 10}}, {}, "soup.lookahead.age=10: expected less than trainer.total_training_steps=10"),
    ],
)
def test_rule_between_soup_and_the_run(section, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_run(SoupConfig.parse(section), run_config(**changes))
    assert str(caught.value).startswith(message)
    # the same run without mixing is none of our business
    check_run(SoupConfig.parse({**section, "mixed_fraction": 0}), run_config(**changes))


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ({}, {}),
        ({"mixed_fraction": 1}, {f"{ROLLOUT}__n": 1}),
        ({"prefix_length": {"high": 15}}, {}),
        ({"lookahead": {"age": 9}}, {}),
        ({"lookahead": {"age": 100}, "source": "snapshot"}, {}),
        ({"lookahead": {"age": 100}}, {"trainer__total_training_steps": None}),
        ({"prefix_objective": "behavior"}, {"algorithm__rollout_correction__bypass_mode": True}),
        ({"prefix_objective": "masked"}, {"algorithm__rollout_correction__rollout_is": "token"}),
        ({"prefix_objective": "decoupled"}, {}),
    ],
)
def test_run_that_can_work_is_accepted(section, changes):
    config = run_config(**changes)
    before = copy.deepcopy(config)
    check_run(SoupConfig.parse(section), config)
    assert config == before


# ---- the shipped recipe ----


def test_the_yaml_and_the_dataclasses_have_the_same_defaults():
    section = yaml.safe_load((RECIPE / "soup_trainer.yaml").read_text())["soup"]
    assert SoupConfig.parse(section) == SoupConfig()


def test_the_yaml_spells_out_every_key():
    def keys(node):
        return {k: keys(v) for k, v in node.items()} if isinstance(node, dict) else None

    section = yaml.safe_load((RECIPE / "soup_trainer.yaml").read_text())["soup"]
    assert keys(section) == keys(dataclasses.asdict(SoupConfig()))


@functools.cache
def compose(*overrides):
    with hydra.initialize_config_dir(str(RECIPE), version_base=None):
        return OmegaConf.to_container(hydra.compose("soup_trainer", overrides=list(overrides)), resolve=True)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_recipe_composes_and_passes_every_check(platform):
    config = compose(f"platform={platform}", "actor_rollout_ref.rollout.n=4")
    soup = SoupConfig.parse(config["soup"])
    assert soup.mixing
    check_run(soup, config)


@pytest.mark.parametrize(("platform", "device", "mode"), [("cpu", "cpu", "soup_cpu"), ("gpu", "cuda", "soup")])
def test_the_platform_chooses_device_and_trainer(platform, device, mode):
    trainer = compose(f"platform={platform}", "actor_rollout_ref.rollout.n=4")["trainer"]
    assert (trainer["device"], trainer["v1"]["trainer_mode"]) == (device, mode)


def test_a_misspelled_key_on_the_command_line_is_refused():
    with pytest.raises(Exception, match="mixed_fractoin"):
        compose("soup.mixed_fractoin=0.5")


def test_errors_keep_their_message_when_they_are_pickled():
    import pickle
    from pathlib import Path

    from soup_verl.checkpoint import TornCheckpoint

    for error in (ConfigError("soup.seed", -1, "more"), TornCheckpoint(Path("a"), "torn")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
