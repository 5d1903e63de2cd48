"""The table of settings: it knows all of ours, and nothing that a run does not have."""

import dataclasses
import functools
import typing

import pytest
from omegaconf import OmegaConf

from soup_verl.method.config import SoupConfig
from soup_verl.records.settings import TABLE, Setting, flatten, setting_of, value_at
from tests.unit import preflight_files as files


def keys_of(section, path):
    """Dotted keys of a dataclass, those of its sections too."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, hint = f"{path}.{field.name}", hints[field.name]
        yield from keys_of(hint, key) if dataclasses.is_dataclass(hint) else [key]


@functools.cache
def of_a_run():
    return OmegaConf.to_container(files.configure("actor_rollout_ref.rollout.n=4"), resolve=True)


@pytest.mark.parametrize("key", keys_of(SoupConfig, "soup"))
def test_every_setting_of_ours_is_in_the_table(key):
    rows = [f for f in TABLE if key == f or key.startswith(f"{f}.")]
    assert rows and setting_of(key) is TABLE[max(rows, key=len)]
    assert setting_of(key).taken_up  # a series may change any of them


def test_the_table_names_only_what_a_run_has():
    missing = object()
    config = OmegaConf.create(of_a_run())
    assert [key for key in TABLE if OmegaConf.select(config, key, default=missing) is missing] == [
        "reward.custom_reward_function.reward_kwargs",  # given by whoever has some
        "reward.reward_kwargs",
        "hydra",
    ]
    assert {setting.kind for setting in TABLE.values()} == {"method", "stack", "watching", "name"}


def test_a_setting_is_what_its_row_says_or_the_nearest_sections():
    optimizer = "actor_rollout_ref.actor.optim"
    assert setting_of(f"{optimizer}.lr") == Setting("method", taken_up=True)
    assert setting_of(f"{optimizer}._target_") == Setting("stack", taken_up=True)
    assert setting_of("actor_rollout_ref.actor.strategy") == setting_of("no.such.key") == Setting("stack")
    assert setting_of("soup.prefix_length.schedule.final") == Setting("method", taken_up=True, of_history=True)
    assert setting_of("data.train_files") == Setting("method", taken_up=True, by_content=True)


@pytest.mark.parametrize("key", ["name", "nnodes", "n_gpus_per_node"])
def test_a_name_that_begins_as_another_is_one_of_its_own(key):
    """`rollout.n` is the number of responses; an engine that runs cannot become another one."""
    assert setting_of(f"actor_rollout_ref.rollout.{key}") == Setting("stack")
    assert setting_of("actor_rollout_ref.rollout.n") == Setting("method", taken_up=True, of_history=True)


def test_what_counts_for_the_run_is_never_left_out_of_a_comparison():
    """The facts fit the kinds: content and history are the method's."""
    assert all(s.kind == "method" for s in TABLE.values() if s.by_content or s.of_history or s.without_mixing)


def test_nested_settings_have_dotted_keys_and_empty_sections_are_values():
    nested = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}}


def test_a_value_is_found_by_its_dotted_key_and_null_is_no_value():
    nested = {"a": {"b": {"c": 0}, "d": None}, "f": "text"}
    assert (value_at(nested, "a.b.c"), value_at(nested, "a.b")) == (0, {"c": 0})
    assert [value_at(nested, key, 7) for key in ("a.d", "a.x", "a.d.x", "f.x", "x")] == [7] * 5
