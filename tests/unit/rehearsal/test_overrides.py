from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from soup_verl.launch import preflight
from soup_verl.rehearsal import overrides
from tests.unit.preflight_files import TRAINING, configure


def settings(*given, example=None):
    return preflight.settings_of(configure(*TRAINING, *given, example=example))


def sizes(*given, **more):
    run = settings(*given, **more)
    the_plan = overrides.plan(run, overrides.batches(run))
    return overrides.sizes(run, the_plan, prompt_tokens=50, vocab=152064, hidden=64)


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (("soup.mixed_fraction=0",), 1),
        (("soup.source=lookahead",), 2),  # age 1: step 1 samples the prefixes of step 2
        (("soup.source=snapshot",), 3),
        (("soup.source=snapshot", "soup.warm_start=true"), 2),
        (("soup.source=replay",), 3),  # two batches an epoch: a prompt's second visit
    ],
)
def test_the_last_three_steps_are_those_with_history(given, first):
    run = settings(*given)
    plan = overrides.plan(run, overrides.batches(run))
    assert (plan.first, plan.steps) == (first, first + 2)
    assert plan.first <= plan.checkpoint < plan.steps  # a step with history before the kill, one after it
    assert 2 * plan.checkpoint >= plan.steps  # no second checkpoint before the end


def test_sizes_of_the_plain_script():
    found = sizes()
    assert found["data.train_batch_size"] == 2
    assert found["actor_rollout_ref.actor.ppo_mini_batch_size"] == 1  # two updates a step, as in the script
    assert found["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == 2 * (50 + 24)
    assert found["actor_rollout_ref.rollout.max_model_len"] == 50 + 24
    # The head's weight in fp32: 152064 x 64 x 4 bytes = 37.1 MiB, in one bucket.
    assert found["actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"] == 38
    assert found["soup.lookahead.age"] == 1 and "soup.snapshot.every" not in found
    assert not any(key.startswith("soup.prefix_length") for key in found)


def test_one_update_a_step_stays_one():
    assert sizes("actor_rollout_ref.actor.ppo_mini_batch_size=128")["actor_rollout_ref.actor.ppo_mini_batch_size"] == 2


@pytest.mark.parametrize(("fraction", "n"), [(0.5, 4), (0.125, 5), (0.05, 8), (0, 4)])
def test_responses_are_few_but_enough_for_a_mixed_one(fraction, n):
    """round(.125 x 5) = 1; round(.05 x 8) = 0: as many as the script has, whose own check refuses it."""
    run = settings(f"soup.mixed_fraction={fraction}")
    assert overrides.responses(run) == n


@pytest.mark.parametrize(("n", "train_on", "rehearsed"), [(16, 12, 3), (16, 4, 2), (8, 8, 4)])
def test_the_share_that_is_trained_on_stays_but_for_two_at_least(n, train_on, rehearsed):
    """Of four responses."""
    found = sizes(f"actor_rollout_ref.rollout.n={n}", f"soup.down_sampling.train_on={train_on}")
    assert found["soup.down_sampling.train_on"] == rehearsed
    assert "soup.down_sampling.train_on" not in sizes()


def test_prefix_lengths_shrink_with_the_response():
    found = sizes("soup.prefix_length.low=64", "soup.prefix_length.high=256")
    assert found["soup.prefix_length.low"] == found["soup.prefix_length.high"] == 11
    found = sizes("soup.source=snapshot", "soup.position=middle", "soup.prefix_length.high=256")
    assert found["soup.prefix_length.high"] == 5  # a head as long comes before it


def test_a_share_of_a_response_stays_a_share():
    found = sizes("soup.source=replay", "soup.prefix_length.unit=share", "soup.prefix_length.high=0.5")
    assert not any(key.startswith("soup.prefix_length") for key in found)


def test_a_schedule_keeps_the_pace_of_the_whole_run():
    key = "soup.mixed_fraction_schedule.steps"
    assert sizes(example="ablations=schedule")[key] == 100
    assert key not in sizes(f"{key}=50", example="ablations=schedule")
    assert key not in sizes()
    # From 0 up: the first steps of the run have no prefix, so the end of the schedule comes at once.
    upwards = ("soup.mixed_fraction=0", "soup.mixed_fraction_schedule.shape=linear", f"{key}=50")
    assert sizes(*upwards, "soup.mixed_fraction_schedule.final=0.5")[key] == 2


def test_micro_batches_by_number_shrink_too():
    key = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
    assert key not in sizes()
    assert sizes(f"{key}=16", "actor_rollout_ref.actor.use_dynamic_bsz=false")[key] == 1


def test_nothing_is_read_or_written_outside():
    run = settings("trainer.validation_data_dir=/data/validations", "trainer.resume_mode=disable")
    found = overrides.places(run, Path("/r"), model=Path("/r/model"), train=["/r/t"], val=["/r/v"])
    assert found["trainer.default_local_dir"] == "/r/run" and found["trainer.resume_mode"] == "auto"
    assert found["trainer.logger"] == ["console", "file"]
    assert found["trainer.validation_data_dir"] == "/r/validation_data_dir" and "trainer.rollout_data_dir" not in found


def test_what_a_random_model_would_wait_for_is_off():
    assert overrides.not_exercised(settings(example="neighbors=dapo")) == {"algorithm.filter_groups.enable": False}
    saturated = ("soup.source=replay", "soup.when=saturated")
    assert overrides.not_exercised(settings(*saturated)) == {"soup.when": "always"}
    assert overrides.not_exercised(settings("soup.when=saturated")) == {}  # a prompt's first visit is mixed
    exgrpo = settings(
        "soup.source=replay", "soup.when=medium", "soup.start_at_solved_rate=0.35", "soup.replay.choice=surest_right"
    )
    assert overrides.not_exercised(exgrpo) == {
        "soup.when": "always",
        "soup.replay.choice": "latest",
        "soup.start_at_solved_rate": None,
    }
    assert overrides.not_exercised(settings("soup.source=replay", "soup.replay.choice=latest_wrong")) == {}


def test_what_a_cpu_can_do_stays_as_on_the_gpu():
    run = settings("soup.behavior_log_probs=actor", "actor_rollout_ref.model.use_remove_padding=false")
    assert overrides.as_on_gpu(run, {"soup": {"behavior_log_probs": "rollout"}}) == {
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        "soup.behavior_log_probs": "actor",
    }


def test_the_platform_wins_over_the_script_but_not_over_the_rehearsal():
    run = settings("actor_rollout_ref.rollout.enforce_eager=false", "trainer.n_gpus_per_node=8")
    platform = {
        "actor_rollout_ref": {"rollout": {"enforce_eager": True}, "actor": {"strategy": "fsdp2"}},
        "trainer": {"n_gpus_per_node": 1, "logger": "${x}"},
    }
    decided = {"actor_rollout_ref.actor.strategy"}
    assert overrides.hidden_settings(platform, run, decided=decided) == {
        "actor_rollout_ref.rollout.enforce_eager": True,
        "trainer.n_gpus_per_node": 1,
    }


@pytest.mark.parametrize(
    "value",
    [True, None, 3, -1, 0.5, "fsdp", "/a b/it's (1), {x}=y.parquet", ["/a b/c.parquet", "d"], [], "1e-6", ""],
)
def test_hydra_reads_an_assignment_as_it_was_meant(value):
    override = OverridesParser.create().parse_override(overrides.assignment("x.y", value))
    read = override.value()
    assert override.key_or_group == "x.y"
    assert read == (float(value) if value == "1e-6" else value)
