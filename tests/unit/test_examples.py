"""Every file of examples/ablations and examples/neighbors composes as on the command line and passes every check."""

import functools
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from soup_verl.config import SoupConfig
from soup_verl.run_rules import check_run
from tests.unit.preflight_files import script_settings

pytestmark = pytest.mark.e2e  # Hydra takes a second a file
ROOT = Path(__file__).parents[2]
RUN = (
    "platform=gpu",
    "actor_rollout_ref.rollout.n=8",
    "data.max_response_length=1024",
    "trainer.total_training_steps=100",
)


def files(group):
    return sorted((ROOT / "examples" / group).glob("*.yaml"))


ABLATIONS, NEIGHBORS = files("ablations"), files("neighbors")
NAMES = {"ids": lambda path: path.stem}


@functools.cache
def compose(*overrides):
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{ROOT}/examples]"
    with hydra.initialize_config_dir(str(ROOT / "recipe/soup/config"), version_base=None):
        config = hydra.compose("soup_trainer", overrides=[search, *RUN, *overrides])
    return OmegaConf.to_container(config, resolve=True)


def example(path):
    return compose(f"{path.parent.name}={path.stem}")


def flat(section, path=""):
    """Dotted keys of nested dictionaries."""
    found = {}
    for key, value in section.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def differences(one, other, path=""):
    """Dotted keys whose values differ."""
    found = []
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}")
    return found


def header(path):
    """The comment lines before the first key, without the package directive, as one text."""
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    comment = []
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


@pytest.mark.parametrize("path", ABLATIONS + NEIGHBORS, **NAMES)
def test_it_composes_and_passes_every_check(path):
    config = example(path)
    check_run(SoupConfig.parse(config["soup"]), config)
    assert config["actor_rollout_ref"]["rollout"]["response_length"] == 1024  # the budget it was checked against


@pytest.mark.parametrize("path", ABLATIONS + NEIGHBORS, **NAMES)
def test_a_run_script_takes_it(path):
    config_dir, *settings = script_settings("run_qwen2.5_math_7b.sh", f"{path.parent.name}={path.stem}")
    assert config_dir == f"--config-dir={ROOT}/examples"
    config = compose(*settings)
    check_run(SoupConfig.parse(config["soup"]), config)
    asked = flat(OmegaConf.to_container(OmegaConf.load(path)))
    assert {key: OmegaConf.select(OmegaConf.create(config), key) for key in asked} == asked


def test_a_run_script_without_an_example_needs_no_folder_of_examples():
    assert not [line for line in script_settings("run_qwen2.5_math_7b.sh") if line.startswith("--")]


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
METHODS = {"dapo", "decoupled_ppo_tis", "dppo_tv", "dr_grpo", "grpo", "luffy_shaped", "opo", "prefix_rl", "repo"}


def test_every_factor_and_every_neighbour_has_its_file():
    assert {path.stem for path in ABLATIONS} >= FACTORS
    assert {path.stem for path in NEIGHBORS} == METHODS


@pytest.mark.parametrize("group", ["ablations", "neighbors"])
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
                "actor_rollout_ref.actor.clip_ratio_low": 0.2,
                "actor_rollout_ref.actor.clip_ratio_high": 0.28,
                "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
            },
        ),
        (
            "dr_grpo",
            {
                "soup.mixed_fraction": 0,
                "algorithm.norm_adv_by_std_in_grpo": False,
                "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
            },
        ),
        ("opo", {"soup.mixed_fraction": 0, "algorithm.adv_estimator": "opo"}),
        ("prefix_rl", {"soup.prefix_objective": "masked", "soup.when": "unsolved"}),
        ("repo", {"soup.source": "replay", "soup.baseline": "split", "soup.prefix_length.low": 1.0}),
        ("luffy_shaped", {"soup.prefix_objective": "shaped", "soup.shaped_gamma": 0.1, "soup.prefix_length.low": 1.0}),
        ("decoupled_ppo_tis", {"soup.prefix_objective": "decoupled", "soup.decoupled_weight_cap": 2.0}),
        ("dppo_tv", {"actor_rollout_ref.actor.policy_loss.loss_mode": "dppo_tv"}),
    ],
)
def test_a_neighbour_sets_what_makes_it_that_method(name, facts):
    config = OmegaConf.create(compose(f"neighbors={name}"))
    assert {key: OmegaConf.select(config, key) for key in facts} == facts
