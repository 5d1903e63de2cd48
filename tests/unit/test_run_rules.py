import copy
import functools
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from soup_verl.config import ConfigError, SoupConfig
from soup_verl.run_rules import check_run

RECIPE = Path(__file__).parents[2] / "recipe/soup/config"
MANAGER = "soup_verl.rollout.SoupAgentLoopManager"


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
        ({}, {f"{ROLLOUT}__response_length": 1}, "soup.prefix_length.high=1: expected less than the response budget"),
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
        (
            {"prefix_objective": "shaped"},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.prefix_objective=shaped",
        ),
        *(
            (
                {"prefix_objective": objective, "behavior_log_probs": behavior},
                {f"algorithm__rollout_correction__{name}": value},
                f"algorithm.rollout_correction.{name}='{value}': expected {expected}",
            )
            for objective, behavior, name, value, expected in [
                ("decoupled", "actor", "rollout_rs", "token_k1", "null with soup.prefix_objective=decoupled"),
                ("behavior", "actor", "rollout_is", "token", "null with soup.behavior_log_probs=actor"),
                ("behavior", "actor", "rollout_rs", "seq_sum_k1", "null with soup.behavior_log_probs=actor"),
                ("behavior", "rollout", "rollout_rs", "token_k1,seq_mean_k3", "no seq_mean_*"),
                ("shaped", "rollout", "rollout_rs", "seq_mean_k1", "no seq_mean_*"),
            ]
        ),
        ({}, {"algorithm__use_kl_in_reward": True}, "algorithm.use_kl_in_reward=True: expected false"),
        (
            {"prefix_objective": "masked"},
            {"algorithm__use_kl_in_reward": True},
            "algorithm.use_kl_in_reward=True: expected false",
        ),
        (
            {"prefix_correction": "min_prefix"},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.prefix_correction=min_prefix",
        ),
        *(
            (
                {"kl_control": {name: 0.1}},
                {"algorithm__rollout_correction__bypass_mode": True},
                f"algorithm.rollout_correction.bypass_mode=True: expected false with soup.kl_control.{name}=0.1",
            )
            for name in ("max_prefix_kl", "min_prefix_kl", "target_kl")
        ),
        (
            {"mixed_fraction": 0.1, "mixed_fraction_schedule": {"shape": "linear", "final": 0.12}},
            {},
            "soup.mixed_fraction=0.1: expected a share",
        ),
        (
            {"source": "snapshot", "position": "middle", "prefix_length": {"high": 8}},
            {},
            "soup.prefix_length.high=8: expected less than half of the response budget",
        ),
        (
            {"source": "snapshot", "position": "suffix", "prefix_length": {"high": 16}},
            {},
            "soup.prefix_length.high=16: expected less than the response budget",
        ),
        (
            {"prefix_length": {"high": 4, "schedule": {"shape": "linear", "final": 16}}},
            {},
            "soup.prefix_length.schedule.final=16: expected",
        ),
        ({"lookahead": {"age": [2, 10]}}, {}, "soup.lookahead.age=[2, 10]: expected less than"),
        ({}, {"algorithm__filter_groups__enable": True}, "algorithm.filter_groups.enable=True: expected false"),
        (
            {},
            {"trainer__v1__sampler__sync_refill_failed_groups": True},
            "trainer.v1.sampler.sync_refill_failed_groups=True: expected false",
        ),
        ({"lookahead": {"age": 10}}, {}, "soup.lookahead.age=10: expected less than trainer.total_training_steps=10"),
        *(
            ({"source": source}, {"trainer__critic_warmup": 3, "critic__enable": critic}, "trainer.critic_warmup=3: ")
            for source in ("lookahead", "snapshot", "replay")
            for critic in (False, True)
        ),
    ],
)
def test_rule_between_soup_and_the_run(section, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_run(SoupConfig.parse(section), run_config(**changes))
    assert str(caught.value).startswith(message)
    # the same run without mixing is none of our business
    off = {**section, "mixed_fraction": 0, "mixed_fraction_schedule": {}}
    check_run(SoupConfig.parse(off), run_config(**changes))


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
        *(
            (
                {"prefix_objective": objective, "behavior_log_probs": behavior},
                {f"algorithm__rollout_correction__{name}": value},
            )
            for objective, behavior, name, value in [
                ("behavior", "rollout", "rollout_is", "token"),
                ("behavior", "rollout", "rollout_is", "sequence"),
                ("behavior", "rollout", "rollout_rs", "token_k3,seq_max_k2"),
                ("shaped", "actor", "rollout_is", "token"),
                ("shaped", "rollout", "rollout_rs", "seq_sum_k1"),
                ("masked", "actor", "rollout_is", "sequence"),
                ("masked", "actor", "rollout_rs", "seq_mean_k1"),
            ]
        ),
        ({"prefix_objective": "decoupled"}, {}),
        ({"source": "snapshot", "position": "middle"}, {}),
        ({"prefix_objective": "shaped", "prefix_correction": "min_prefix"}, {}),
        ({"kl_control": {"max_prefix_kl": 0.1, "min_prefix_kl": 0.01}}, {}),
        ({"mixed_fraction": 0, "mixed_fraction_schedule": {"shape": "linear", "final": 0.5}}, {}),
        ({"source": "snapshot", "position": "middle", "prefix_length": {"high": 7}}, {}),
        ({"source": "snapshot", "position": "suffix", "prefix_length": {"high": 15}}, {}),
        ({"source": "replay", "prefix_length": {"unit": "share", "low": 0.1}}, {}),
        ({"source": "replay", "prefix_length": {"unit": "share", "low": 1.0}}, {f"{ROLLOUT}__response_length": 1}),
        ({"lookahead": {"age": [2, 9]}}, {}),
    ],
)
def test_run_that_can_work_is_accepted(section, changes):
    config = run_config(**changes)
    before = copy.deepcopy(config)
    check_run(SoupConfig.parse(section), config)
    assert config == before


# ---- the shipped recipe ----


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


@pytest.mark.parametrize(
    ("platform", "device", "mode", "log_probs"),
    [("cpu", "cpu", "soup_cpu", "rollout"), ("gpu", "cuda", "soup", "actor")],
)
def test_the_platform_chooses_device_trainer_and_whose_log_probs_prefixes_have(platform, device, mode, log_probs):
    config = compose(f"platform={platform}", "actor_rollout_ref.rollout.n=4")
    trainer = config["trainer"]
    assert (trainer["device"], trainer["v1"]["trainer_mode"]) == (device, mode)
    assert config["soup"]["behavior_log_probs"] == log_probs


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_both_platforms_shard_with_fsdp2(platform):
    config = compose(f"platform={platform}", "actor_rollout_ref.rollout.n=4")["actor_rollout_ref"]
    assert (config["actor"]["strategy"], config["ref"]["strategy"]) == ("fsdp2", "fsdp2")


def test_the_engine_is_told_to_take_the_steps_own_responses_before_prefixes():
    rollout = compose("platform=gpu", "actor_rollout_ref.rollout.n=4")["actor_rollout_ref"]["rollout"]
    assert rollout["scheduling_policy"] == "priority"


def test_a_misspelled_key_on_the_command_line_is_refused():
    with pytest.raises(Exception, match="mixed_fractoin"):
        compose("soup.mixed_fractoin=0.5")
