"""Every file of recipe/soup/config/ablations and neighbors composes as on the command line and passes every check."""

import functools
import os
import re
import subprocess
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from recipe.soup import list as listing
from recipe.soup.list import header, line_of
from soup_verl.launch.run_rules import check_run
from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import PREFIX_OBJECTIVES, SOURCES
from soup_verl.records.settings import flatten
from tests.unit.preflight_files import ROOT, script_settings

pytestmark = pytest.mark.e2e  # Hydra takes a second a file
CONFIG = Path(__file__).parents[2] / "recipe" / "soup" / "config"
RUN = (
    "platform=gpu",
    "actor_rollout_ref.rollout.n=8",
    "data.max_response_length=1024",
    "trainer.total_training_steps=100",
)


def files(group):
    return sorted((CONFIG / group).glob("*.yaml"))


DOMAINS, ABLATIONS, NEIGHBORS = files("domains"), files("ablations"), files("neighbors")
NAMES = {"ids": lambda path: path.stem}


@functools.cache
def compose(*overrides):
    with hydra.initialize_config_dir(str(CONFIG), version_base=None):
        config = hydra.compose("soup_trainer", overrides=[*RUN, *overrides])
    return OmegaConf.to_container(config, resolve=True)


def example(path):
    return compose(f"{path.parent.name}={path.stem}")


def differences(one, other):
    """Dotted keys whose values differ."""
    a, b = flatten(one), flatten(other)
    return [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]


@pytest.mark.parametrize("path", DOMAINS + ABLATIONS + NEIGHBORS, **NAMES)
def test_it_composes_and_passes_every_check(path):
    config = example(path)
    check_run(SoupConfig.parse(config["soup"]), config)
    assert config["actor_rollout_ref"]["rollout"]["response_length"] == 1024  # the budget it was checked against


KNOBS = dict.fromkeys(("opo", "oapl_paired"), {"MINI_BATCH": "128"})
"""What a file's header asks of a run script."""


@pytest.mark.parametrize("path", ABLATIONS + NEIGHBORS, **NAMES)
def test_a_run_script_takes_it(path):
    knobs = KNOBS.get(path.stem, {})
    settings = script_settings("run_qwen2.5_math_7b.sh", f"{path.parent.name}={path.stem}", **knobs)
    config = compose(*settings)
    check_run(SoupConfig.parse(config["soup"]), config)
    asked = flatten(OmegaConf.to_container(OmegaConf.load(path)))
    whole = OmegaConf.create(config)
    for key, value in asked.items():
        if "${" in str(value):  # in terms of the run's own settings
            asked[key] = OmegaConf.to_container(OmegaConf.merge(whole, {"asked": value}), resolve=True)["asked"]
    assert {key: OmegaConf.select(whole, key) for key in asked} == asked


DOMAIN_RUN = {"MODEL_PATH": "a/model", "DATA": "a.parquet", "BENCHMARKS": "b.parquet"}


@pytest.mark.parametrize("path", DOMAINS, **NAMES)
def test_a_run_script_has_the_lengths_and_steps_of_a_domains_file(path):
    config = OmegaConf.create(compose(*script_settings("run.sh", f"domains={path.stem}", **DOMAIN_RUN)))
    asked = flatten(OmegaConf.to_container(OmegaConf.load(path)))
    del asked["trainer.experiment_name"]  # the run's own
    assert {key: OmegaConf.select(config, key) for key in asked} == asked


def test_a_domain_that_there_is_not_is_refused_before_anything_is_prepared():
    environment = {**os.environ, **DOMAIN_RUN, "DRY_RUN": "1"}
    command = ["bash", "recipe/soup/run.sh", "domains=foo"]
    done = subprocess.run(command, cwd=CONFIG.parents[2], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("run.sh: domains=foo: there is no recipe/soup/config/domains/foo.yaml; ")


def test_a_knob_that_is_set_wins_over_a_domains_file():
    given = script_settings("run.sh", "domains=summaries", **DOMAIN_RUN, RESPONSE_TOKENS="512", STEPS="7")
    assert "data.max_response_length=512" in given and "trainer.total_training_steps=7" in given
    assert "data.max_prompt_length=2048" in given  # the file's


@pytest.mark.parametrize("name", KNOBS)
def test_a_run_script_that_would_make_two_updates_a_step_is_refused(name):
    config = compose(*script_settings("run_qwen2.5_math_7b.sh", f"neighbors={name}"))
    with pytest.raises(ConfigError, match="ppo_mini_batch_size=64: expected data.train_batch_size=128 .*MINI_BATCH"):
        check_run(SoupConfig.parse(config["soup"]), config)


def test_another_model_or_prompt_length_has_folders_of_its_own():
    """The paths of data and of the model with the longer context."""
    found = []
    for knobs in ({}, {"MODEL_PATH": "a/other-7b"}, {"PROMPT_TOKENS": "512"}):
        settings = dict(line.split("=", 1) for line in script_settings("run_qwen2.5_math_7b.sh", **knobs))
        found += [settings["data.train_files"], settings["actor_rollout_ref.model.path"]]
    assert len(set(found)) == 6


@pytest.mark.parametrize("path", ABLATIONS, **NAMES)
def test_an_ablation_changes_the_soup_section_and_nothing_else(path):
    changed = differences(example(path), compose())
    assert changed and all(key.startswith("soup.") for key in changed), changed


@pytest.mark.parametrize("path", NEIGHBORS, **NAMES)
def test_a_neighbour_is_no_plain_soup(path):
    assert differences(example(path), compose())


@pytest.mark.parametrize("path", ABLATIONS, **NAMES)
def test_an_ablation_says_its_question_its_factor_and_values_worth_running(path):
    text = header(path)
    question, _, rest = text.removeprefix("Question: ").partition("?")
    assert text.startswith("Question: ") and len(question) > 20, text
    assert "One factor: " in rest and "Worth running: " in rest, text


SCHEDULE_OF = {
    "soup.mixed_fraction": "soup.mixed_fraction_schedule",
    "soup.prefix_length.high": "soup.prefix_length.schedule",
}


@pytest.mark.parametrize("path", ABLATIONS, **NAMES)
def test_the_factor_an_ablation_names_is_one_it_changes(path):
    factor = header(path).split("One factor: ")[1]
    key = next(word.strip(".,;") for word in factor.split() if word.startswith("soup."))
    if factor.startswith("how "):
        key = SCHEDULE_OF[key]
    changed = differences(example(path), compose())
    assert any(c == key or c.startswith(f"{key}.") for c in changed), (key, changed)


@pytest.mark.parametrize("path", NEIGHBORS, **NAMES)
def test_a_neighbour_says_what_is_the_same_and_what_is_not(path):
    text = header(path)
    assert "arXiv" in text or path.stem == "prefix_rl"
    same, different = text.find("Same: "), text.find("Different: ")
    assert 0 < same < different and len(text) - different > 30, text


FACTORS = {
    "age",
    "baseline",
    "kl_control",
    "mixed_fraction",
    "objective",
    "position",
    "prefix_length",
    "schedule",
    "source",
}
METHODS = {
    "clip_cov",
    "dapo",
    "dapo_soup",
    "decoupled_ppo_tis",
    "dppo_kl",
    "dppo_tv",
    "dr_grpo",
    "cispo",
    "exo",
    "exo_centred",
    "geo_mean",
    "exgrpo",
    "failure_prefixes",
    "grpo",
    "grpo_passk",
    "gspo",
    "kl_cov",
    "luffy_shaped",
    "m2po",
    "oapl",
    "oapl_paired",
    "opo",
    "pods",
    "prefix_rl",
    "prefix_sampling",
    "repo",
    "sapo",
    "vespo",
}


def test_every_factor_and_every_neighbour_has_its_file():
    assert {path.stem for path in ABLATIONS} >= FACTORS
    assert {path.stem for path in NEIGHBORS} >= METHODS


@pytest.mark.parametrize("path", DOMAINS + ABLATIONS + NEIGHBORS, **NAMES)
def test_a_file_has_a_line_of_at_most_100_characters(path):
    assert path.read_text().startswith("# @package _global_\n# ")
    line = line_of(path)
    assert 20 < len(line) <= 100 and line[-1] in ".?", (len(line), line)


def test_the_list_has_every_file_with_its_line(capsys):
    listing.main()
    shown = capsys.readouterr().out
    for group in ("domains", "ablations", "neighbors"):
        (part,) = re.findall(rf"^{group}=NAME: .*\n((?:  .*\n)+)", shown, re.MULTILINE)
        found = dict(line.split(maxsplit=1) for line in part.splitlines())
        assert found == {path.stem: line_of(path) for path in files(group)}
    assert max(map(len, shown.splitlines())) <= 130


ROWS = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", NEIGHBORS, **NAMES)
def test_a_neighbour_has_a_row_in_the_table_of_methods(path):
    assert path.stem in ROWS


@pytest.mark.parametrize("value", [*PREFIX_OBJECTIVES, *SOURCES])
def test_an_objective_and_a_source_have_a_row_in_the_table_of_methods(value):
    assert value in ROWS


@pytest.mark.parametrize("group", ["domains", "ablations", "neighbors"])
def test_an_unknown_name_is_refused_with_the_names_there_are(group):
    with pytest.raises(hydra.errors.MissingConfigException) as caught:
        compose(f"{group}=no_such")
    message = str(caught.value)
    assert f"{group}/no_such" in message
    assert all(path.stem in message for path in files(group))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("grpo", {"soup.mixed_fraction": 0, "algorithm.adv_estimator": "soup"}),
        (
            "dapo",
            {
                "soup.mixed_fraction": 0,
                "algorithm.filter_groups.enable": True,
                "algorithm.filter_groups.metric": "acc",
                "reward.reward_manager.name": "dapo",
                "reward.reward_kwargs.max_resp_len": 1024,
                "reward.reward_kwargs.overlong_buffer_cfg.enable": True,
                "reward.reward_kwargs.overlong_buffer_cfg.len": 205,  # a fifth
                "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": 1.0,
                "actor_rollout_ref.actor.clip_ratio_low": 0.2,
                "actor_rollout_ref.actor.clip_ratio_high": 0.28,
                "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
            },
        ),
        (
            "dapo_soup",
            {
                "soup.mixed_fraction": 0.5,
                "algorithm.filter_groups.enable": True,
                "algorithm.filter_groups.metric": "acc",
                "reward.reward_manager.name": "dapo",
                "actor_rollout_ref.actor.clip_ratio_high": 0.28,
            },
        ),
        (
            "dr_grpo",
            {
                "soup.mixed_fraction": 0,
                "algorithm.norm_adv_by_std_in_grpo": False,
                "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
                "actor_rollout_ref.actor.loss_scale_factor": 1024,
            },
        ),
        (
            "opo",
            {
                "soup.mixed_fraction": 0,
                "algorithm.adv_estimator": "opo",
                "actor_rollout_ref.actor.ppo_mini_batch_size": 96,
                "data.train_batch_size": 96,
            },
        ),
        ("grpo_passk", {"soup.mixed_fraction": 0, "algorithm.adv_estimator": "grpo_passk"}),
        ("clip_cov", {"soup.mixed_fraction": 0, "actor_rollout_ref.actor.policy_loss.loss_mode": "clip_cov"}),
        ("kl_cov", {"soup.mixed_fraction": 0, "actor_rollout_ref.actor.policy_loss.loss_mode": "kl_cov"}),
        ("prefix_rl", {"soup.prefix_objective": "masked", "soup.when": "unsolved"}),
        ("repo", {"soup.source": "replay", "soup.baseline": "split", "soup.position": "whole"}),
        ("luffy_shaped", {"soup.prefix_objective": "shaped", "soup.shaped_gamma": 0.1, "soup.position": "whole"}),
        (
            "exgrpo",
            {
                "soup.position": "whole",
                "soup.prefix_objective": "shaped_ratio",
                "soup.shaped_gamma": 0.1,
                "soup.when": "medium",
                "soup.start_at_solved_rate": 0.35,
                "soup.replay.choice": "surest_right",
                "algorithm.norm_adv_by_std_in_grpo": False,
            },
        ),
        *(
            (name, {"soup.replay.choice": "balanced", "soup.prefix_objective": "masked", "soup.when": when})
            for name, when in (("prefix_sampling", "always"), ("failure_prefixes", "saturated"))
        ),
        ("decoupled_ppo_tis", {"soup.prefix_objective": "decoupled", "soup.decoupled_weight_cap": 2.0}),
        *(
            (
                f"dppo_{name}",
                {
                    "soup.behavior_log_probs": "rollout",  # though platform=gpu says actor
                    "algorithm.rollout_correction.bypass_mode": True,
                    "algorithm.norm_adv_by_std_in_grpo": False,
                    "actor_rollout_ref.actor.policy_loss.loss_mode": f"dppo_{name}",
                    "actor_rollout_ref.actor.clip_ratio_low": threshold,
                    "actor_rollout_ref.actor.clip_ratio_high": threshold,
                    "actor_rollout_ref.actor.clip_ratio_c": 10000,
                    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
                    "actor_rollout_ref.actor.loss_scale_factor": 1024,
                },
            )
            for name, threshold in (("tv", 0.15), ("kl", 0.05))
        ),
        (
            "exo",
            {
                "soup.policy_loss.name": "exo",
                "soup.policy_loss.exo_k": 5.0,
                "actor_rollout_ref.actor.clip_ratio_high": 0.2,
            },
        ),
        (
            "pods",
            {
                "soup.mixed_fraction": 0,
                "soup.down_sampling.train_on": 2,
                "soup.down_sampling.choice": "max_variance",
            },
        ),
        ("exo_centred", {"soup.policy_loss.name": "exo_centred", "soup.prefix_objective": "behavior"}),
        *(
            (
                name,
                {
                    "soup.policy_loss.name": name,
                    "soup.policy_loss.oapl_b1": 1.0,
                    "soup.policy_loss.oapl_b2": 1e-3,
                    "soup.baseline": "sampler",
                    "soup.snapshot.every": 50,
                    "actor_rollout_ref.actor.optim.clip_grad": 1e-3,
                    "algorithm.rollout_correction.bypass_mode": name == "oapl",
                },
            )
            for name in ("oapl", "oapl_paired")
        ),
        ("vespo", {"soup.policy_loss.name": "vespo", "soup.prefix_objective": "behavior"}),
        ("m2po", {"soup.kl_control.max_second_moment": 0.04, "soup.prefix_objective": "decoupled"}),
        *(
            (
                name,
                {
                    "actor_rollout_ref.actor.policy_loss.loss_mode": name,
                    "actor_rollout_ref.actor.clip_ratio_low": low,
                    "actor_rollout_ref.actor.clip_ratio_high": high,
                },
            )
            for name, low, high in (("gspo", 3e-4, 4e-4), ("cispo", 10.0, 0.2), ("geo_mean", 0.4, 0.4))
        ),
        ("sapo", {"actor_rollout_ref.actor.tau_pos": 1.0, "actor_rollout_ref.actor.tau_neg": 1.05}),
    ],
)
def test_a_neighbour_sets_what_makes_it_that_method(name, facts):
    config = OmegaConf.create(compose("data.train_batch_size=96", f"neighbors={name}"))
    assert {key: OmegaConf.select(config, key) for key in facts} == facts
