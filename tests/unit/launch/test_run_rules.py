import copy
import functools
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from soup_verl.launch.run_rules import check_run
from soup_verl.method import core_algos
from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig

RECIPE = Path(__file__).parents[3] / "recipe/soup/config"
MANAGER = "soup_verl.stack.rollout.SoupAgentLoopManager"
BALANCED = {"source": "replay", "replay": {"choice": "balanced"}, "prefix_length": {"unit": "share"}}


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
INFLIGHT = {"source": "inflight", "mixed_fraction": 1}
MODE = "trainer__v1__trainer_mode"
LOSS_MODE = "actor_rollout_ref__actor__policy_loss__loss_mode"


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"mixed_fraction": 0.1}, {}, "soup.mixed_fraction=0.1: expected a share"),
        ({}, {f"{ROLLOUT}__n": 1}, "soup.mixed_fraction=0.5: expected a share"),
        ({"source": "forget", "mixed_fraction": 1}, {}, "soup.mixed_fraction=1: expected a share that leaves one of"),
        (
            {"source": "forget", "mixed_fraction": 0.9},
            {f"{ROLLOUT}__n": 4},
            "soup.mixed_fraction=0.9: expected a share that leaves one of actor_rollout_ref.rollout.n=4 responses to "
            "unlearn, because soup.source=forget",
        ),
        ({}, {"algorithm__adv_estimator": "grpo"}, "algorithm.adv_estimator='grpo': expected soup"),
        ({}, {f"{ROLLOUT}__name": "sglang"}, "actor_rollout_ref.rollout.name='sglang': expected vllm when"),
        (
            {"source": "snapshot", "position": "suffix"},
            {f"{ROLLOUT}__agent__default_agent_loop": "tool_agent"},
            "actor_rollout_ref.rollout.agent.default_agent_loop='tool_agent': expected soup_agent or single_turn_agent "
            "with soup.position=suffix. That needs a single turn: for others take",
        ),
        (
            {"source": "forget"},
            {f"{ROLLOUT}__agent__default_agent_loop": "tool_agent"},
            "actor_rollout_ref.rollout.agent.default_agent_loop='tool_agent': expected soup_agent or single_turn_agent "
            "with soup.source=forget. That needs",
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
            {f"{ROLLOUT}__logprobs_mode": "raw_logprobs", f"{ROLLOUT}__temperature": 0.7},
            "actor_rollout_ref.rollout.logprobs_mode='raw_logprobs': expected processed_logprobs",
        ),
        (
            {},
            {f"{ROLLOUT}__logprobs_mode": "raw_logits"},
            "actor_rollout_ref.rollout.logprobs_mode='raw_logits': expected processed_logprobs",
        ),
        ({}, {f"{ROLLOUT}__top_p": 0.9}, "actor_rollout_ref.rollout.top_p=0.9: expected 1"),
        *(
            (
                {"prefix_objective": objective},
                {LOSS_MODE: mode},
                f"soup.prefix_objective='{objective}': expected {fitting} with {LOSS_MODE.replace('__', '.')}={mode}",
            )
            for mode, objectives, fitting in [
                ("gspo", ("shaped",), "behavior or decoupled or masked"),
                ("geo_mean", ("decoupled", "shaped"), "behavior or masked"),
                ("gpg", ("behavior", "decoupled", "shaped"), "masked"),
            ]
            for objective in objectives
        ),
        (
            {"prefix_correction": "min_prefix"},
            {LOSS_MODE: "geo_mean"},
            "soup.prefix_correction='min_prefix': expected none with",
        ),
        (
            {"kl_control": {"max_second_moment": 0.04}},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.kl_control.max_second_moment=0.04",
        ),
        ({}, {f"{ROLLOUT}__top_k": 50}, "actor_rollout_ref.rollout.top_k=50: expected -1"),
        (
            {"behavior_log_probs": "actor"},
            {f"{ROLLOUT}__top_p": 0.9, "algorithm__rollout_correction__bypass_mode": True},
            "actor_rollout_ref.rollout.top_p=0.9: expected 1",
        ),
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
        (
            {"prefix_objective": "shaped_ratio"},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.prefix_objective=shaped_ratio",
        ),
        *(
            (
                {"mixed_fraction": low, "mixed_fraction_schedule": {"shape": "linear", "final": high}, **BALANCED},
                {},
                f"soup.mixed_fraction={low}: expected a share that leaves at least one",
            )
            for low, high in ((1.0, 0.5), (0.5, 0.9))
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
                ("shaped_ratio", "actor", "rollout_is", "token", "null with soup.behavior_log_probs=actor"),
                ("behavior", "rollout", "rollout_rs", "token_k1,seq_mean_k3", "no seq_mean_*"),
                ("shaped", "rollout", "rollout_rs", "seq_mean_k1", "no seq_mean_*"),
            ]
        ),
        *(
            (
                {"prefix_objective": "masked", "behavior_log_probs": "actor"},
                {f"algorithm__rollout_correction__{name}": "token_k1", f"{ROLLOUT}__{cut}": value},
                f"algorithm.rollout_correction.{name}='token_k1': expected null with "
                f"actor_rollout_ref.rollout.{cut}={value}: the engine's log-probs are of the truncated softmax",
            )
            for name in ("rollout_is", "rollout_rs")
            for cut, value in (("top_p", 0.9), ("top_k", 50))
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
        (
            {"baseline": "min_variance"},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.baseline=min_variance",
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
        *(
            (section, {"algorithm__filter_groups__enable": True} | more, message)
            for section, more, message in (
                ({"source": "forget"}, {}, "soup.source='forget': expected lookahead, snapshot or replay with algo"),
                (
                    INFLIGHT,
                    {MODE: "soup_colocate_async"},
                    "soup.source='inflight': expected lookahead, snapshot or replay with algorithm.filter_groups",
                ),
                (
                    {"source": "snapshot", "position": "suffix", "prefix_length": {"high": 4}},
                    {},
                    "soup.position='suffix': expected prefix or whole with algorithm.filter_groups.enable=true",
                ),
                (
                    {"source": "replay", "behavior_log_probs": "actor"},
                    {},
                    "soup.behavior_log_probs='actor': expected rollout with soup.source=replay and algo",
                ),
                (
                    {},
                    {"trainer__v1__sampler__custom_sampler__path": "mine.py"},
                    "trainer.v1.sampler.custom_sampler.path='mine.py': expected null",
                ),
            )
        ),
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


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
def test_a_gradients_cut_is_set_where_the_engine_reads_it(mixed_fraction):
    soup = SoupConfig.parse({"mixed_fraction": mixed_fraction})
    cut = {"actor_rollout_ref__actor__grad_clip": 0.3}
    said = (
        r"actor.grad_clip=0.3: expected 1.0: no engine of verl's reads it. Set actor_rollout_ref.actor.optim.clip_grad"
    )
    with pytest.raises(ConfigError, match=said):
        check_run(soup, run_config(**cut))
    check_run(soup, run_config(**cut, actor_rollout_ref__actor__optim__clip_grad=0.3))


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
def test_workers_of_our_trainers_are_for_fsdp(mixed_fraction):
    soup = SoupConfig.parse({"mixed_fraction": mixed_fraction})
    with pytest.raises(
        ConfigError, match=r"actor.strategy='megatron': expected fsdp or fsdp2 with trainer.v1.trainer_m"
    ):
        check_run(soup, run_config(actor_rollout_ref__actor__strategy="megatron"))
    check_run(soup, run_config(actor_rollout_ref__actor__strategy="fsdp"))


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "actor_rollout_ref.actor.checkpoint.async_save",
            "false: with it verl does not say which",
        ),
        ("trainer.remove_previous_ckpt_in_save", "false, or not there. Set trainer.max_actor_ckpt_to_keep=1."),
    ],
)
def test_what_our_checkpoints_cannot_do_is_refused_with_every_mixed_fraction(mixed_fraction, key, expected):
    soup = SoupConfig.parse({"mixed_fraction": mixed_fraction})
    with pytest.raises(ConfigError, match=f"{key}=True: expected {expected}"):
        check_run(soup, run_config(**{key.replace(".", "__"): True}))


def test_verls_own_trainers_have_their_own_workers():
    megatron = {"actor_rollout_ref__actor__strategy": "megatron", MODE: "sync"}
    check_run(SoupConfig.parse({"mixed_fraction": 0}), run_config(**megatron))


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
@pytest.mark.parametrize(
    ("saves", "validations", "possible"),
    [(-1, 5, False), (5, -1, False), (20, 15, False), (0, 5, False), (20, 5, True), (5, 20, True), (5, 5, True)],
)
def test_checkpoints_are_validated_where_the_best_is_kept(mixed_fraction, saves, validations, possible):
    soup = SoupConfig.parse({"mixed_fraction": mixed_fraction, "keep_best": "val-soup/a/pass@8"})
    config = run_config(trainer__save_freq=saves, trainer__test_freq=validations)
    if possible:
        return check_run(soup, config)
    with pytest.raises(ConfigError) as caught:
        check_run(soup, config)
    assert str(caught.value).startswith(
        "soup.keep_best='val-soup/a/pass@8': expected null with "
        f"trainer.save_freq={saves} and trainer.test_freq={validations}. A checkpoint is judged by"
    )


SYNC = "trainer__v1__separate_async__parameter_sync_step"
TWO_POOLS = {
    f"{ROLLOUT}__nnodes": 1,
    f"{ROLLOUT}__n_gpus_per_node": 1,
    f"{ROLLOUT}__checkpoint_engine__backend": "nccl",
    "data__train_batch_size": 8,
    "actor_rollout_ref__actor__ppo_mini_batch_size": 4,
    SYNC: 2,
}


@pytest.mark.parametrize(
    ("section", "mode", "message"),
    [
        (
            INFLIGHT,
            "soup",
            "trainer.v1.trainer_mode='soup': expected soup_colocate_async or soup_separate_async with",
        ),
        *(
            (INFLIGHT, mode, f"trainer.v1.trainer_mode={mode!r}: expected soup_{mode}, because soup.mixed_fraction")
            for mode in ("colocate_async", "separate_async")
        ),
        *(
            (
                {"source": source},
                mode,
                f"soup.source={source!r}: expected inflight with trainer.v1.trainer_mode={mode}",
            )
            for source in ("lookahead", "snapshot", "replay", "forget")
            for mode in ("soup_colocate_async", "soup_separate_async")
        ),
    ],
)
def test_interrupted_responses_and_the_trainer_that_interrupts_them_go_together(section, mode, message):
    with pytest.raises(ConfigError) as caught:
        check_run(SoupConfig.parse(section), run_config(**TWO_POOLS | {MODE: mode}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kind", ["colocate_async", "separate_async"])
def test_a_batch_must_be_under_way_when_an_update_comes(kind):
    changes = TWO_POOLS | {MODE: f"soup_{kind}", f"trainer__v1__{kind}__num_warmup_batches": 0}
    with pytest.raises(ConfigError, match=f"trainer.v1.{kind}.num_warmup_batches=0: expected above 0 with soup"):
        check_run(SoupConfig.parse(INFLIGHT), run_config(**changes))
    check_run(SoupConfig.parse({**INFLIGHT, "mixed_fraction": 0}), run_config(**changes))


@pytest.mark.parametrize("section", [INFLIGHT, {**INFLIGHT, "mixed_fraction": 0}, {"mixed_fraction": 0}])
@pytest.mark.parametrize("mode", ["soup_colocate_async", "soup_separate_async"])
def test_the_asynchronous_trainers_may_be_asked_for(section, mode):
    check_run(SoupConfig.parse(section), run_config(**TWO_POOLS | {MODE: mode}))


@pytest.mark.parametrize("section", [INFLIGHT, {"mixed_fraction": 0}])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{ROLLOUT}__nnodes": 0},
            "actor_rollout_ref.rollout.nnodes=0: expected above 0 with trainer.v1.trainer_mo",
        ),
        ({f"{ROLLOUT}__n_gpus_per_node": 0}, "actor_rollout_ref.rollout.n_gpus_per_node=0: expected above 0 with"),
        (
            {f"{ROLLOUT}__checkpoint_engine__backend": "naive"},
            "actor_rollout_ref.rollout.checkpoint_engine.backend='naive': expected nccl, or another engine that",
        ),
        (
            {SYNC: 4},
            "trainer.v1.separate_async.parameter_sync_step=4: expected data.train_batch_size=8 / "
            "actor_rollout_ref.actor.ppo_mini_batch_size=4: a mini-batch an update",
        ),
        (
            {"reward__reward_model__enable": True},
            "reward.reward_model.enable_resource_pool=False: expected true with reward.reward_model.enable=true with",
        ),
        ({SYNC: 0}, "trainer.v1.separate_async.parameter_sync_step=0: expected data.train_batch_size=8 / actor"),
        (
            {"actor_rollout_ref__model__lora_rank": 8},
            "actor_rollout_ref.model.lora.merge=False: expected true with trainer.v1.trainer_mode=*separate_async",
        ),
    ],
)
def test_what_two_pools_need(section, changes, message):
    changes = TWO_POOLS | {MODE: "soup_separate_async"} | changes
    with pytest.raises(ConfigError) as caught:
        check_run(SoupConfig.parse(section), run_config(**changes))
    assert str(caught.value).startswith(message)


def test_a_reward_model_may_have_a_pool_of_its_own():
    reward_model = {"reward__reward_model__enable": True, "reward__reward_model__enable_resource_pool": True}
    check_run(SoupConfig.parse(INFLIGHT), run_config(**TWO_POOLS | {MODE: "soup_separate_async"} | reward_model))


def test_merged_adapters_reach_the_other_pool():
    lora = {"actor_rollout_ref__model__lora_rank": 8, "actor_rollout_ref__model__lora__merge": True}
    check_run(SoupConfig.parse(INFLIGHT), run_config(**TWO_POOLS | {MODE: "soup_separate_async"} | lora))


def test_down_sampling_needs_a_step_that_is_one_update():
    section = SoupConfig.parse({"mixed_fraction": 0, "down_sampling": {"train_on": 2}})
    changes = TWO_POOLS | {MODE: "soup_separate_async"}
    with pytest.raises(ConfigError, match="parameter_sync_step=2: expected 1 with soup.down_sampling.train_on=2"):
        check_run(section, run_config(**changes))
    check_run(section, run_config(**changes | {SYNC: 1, "data__train_batch_size": 4}))


@pytest.mark.parametrize("truncation", [{f"{ROLLOUT}__top_p": 0.9}, {f"{ROLLOUT}__top_k": 50}])
@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ({}, {f"{ROLLOUT}__logprobs_mode": "raw_logprobs"}),
        ({}, {f"{ROLLOUT}__logprobs_mode": "raw_logprobs", "algorithm__rollout_correction__rollout_is": "token"}),
        ({"behavior_log_probs": "actor"}, {}),
        ({"behavior_log_probs": "actor"}, {f"{ROLLOUT}__temperature": 0.7}),
    ],
)
def test_truncated_sampling_is_taken_where_every_log_prob_is_of_the_full_softmax(section, changes, truncation):
    check_run(SoupConfig.parse(section), run_config(**changes, **truncation))


OAPL, OAPL_PAIRED = ({"policy_loss": {"name": name}, "baseline": "sampler"} for name in ("oapl", "oapl_paired"))
SUMMED = {"actor_rollout_ref__actor__loss_agg_mode": "seq-mean-token-sum"}


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
@pytest.mark.parametrize(
    ("policy_loss", "changes", "message"),
    [
        ({"name": "exo"}, {}, "actor_rollout_ref.actor.policy_loss.loss_mode='vanilla': expected soup with"),
        ({}, {LOSS_MODE: "soup"}, "soup.policy_loss.name=None: expected the loss that"),
    ],
)
def test_a_loss_of_ours_and_verls_loss_mode_go_together(mixed_fraction, policy_loss, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_run(
            SoupConfig.parse({"mixed_fraction": mixed_fraction, "policy_loss": policy_loss}), run_config(**changes)
        )
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            {"policy_loss": {"name": "exo_centred"}},
            {"algorithm__rollout_correction__rollout_is": "token"},
            "algorithm.rollout_correction.rollout_is='token': expected null with soup.policy_loss.name=exo_centred",
        ),
        (
            {"policy_loss": {"name": "exo_centred"}},
            {"algorithm__rollout_correction__bypass_mode": True},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.policy_loss.name=exo_centred",
        ),
        (
            OAPL_PAIRED,
            {"algorithm__rollout_correction__bypass_mode": True, **SUMMED},
            "algorithm.rollout_correction.bypass_mode=True: expected false with soup.policy_loss.name=oapl_paired",
        ),
        (
            OAPL,
            {"actor_rollout_ref__actor__loss_agg_mode": "token-mean"},
            "actor_rollout_ref.actor.loss_agg_mode='token-mean': expected seq-mean-token-sum with",
        ),
        (
            {**OAPL, "mixed_fraction": 0},
            {"algorithm__adv_estimator": "grpo", **SUMMED},
            "algorithm.adv_estimator='grpo': expected soup with soup.policy_loss.name=oapl",
        ),
        *(
            (
                {"policy_loss": {"name": name}, "baseline": "sampler", "mixed_fraction": mixed_fraction},
                {f"algorithm__rollout_correction__{part}": "token", **SUMMED},
                f"algorithm.rollout_correction.{part}='token': expected null with soup.policy_loss.name={name}",
            )
            for name in ("oapl", "oapl_paired", "vespo")
            for part in ("rollout_is", "rollout_rs")
            for mixed_fraction in (0, 0.5)
        ),
        (
            OAPL_PAIRED,
            {"data__train_batch_size": 8, "actor_rollout_ref__actor__ppo_mini_batch_size": 4, **SUMMED},
            "actor_rollout_ref.actor.ppo_mini_batch_size=4: expected data.train_batch_size=8 with "
            "soup.policy_loss.name=oapl_paired: one update a step",
        ),
        (
            OAPL_PAIRED,
            {"actor_rollout_ref__actor__ppo_epochs": 2, **SUMMED},
            "actor_rollout_ref.actor.ppo_epochs=2: expected 1 with soup.policy_loss.name=oapl_paired",
        ),
    ],
)
def test_rule_between_a_loss_of_ours_and_the_run(section, changes, message):
    with pytest.raises(ConfigError) as caught:
        check_run(SoupConfig.parse(section), run_config(**changes, **{LOSS_MODE: "soup"}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("mixed_fraction", [0, 0.5])
@pytest.mark.parametrize(
    ("train_on", "changes", "message"),
    [
        (5, {}, "soup.down_sampling.train_on=5: expected at most the actor_rollout_ref.rollout.n=4 responses"),
        (
            4,
            {"algorithm__adv_estimator": "grpo"},
            "algorithm.adv_estimator='grpo': expected soup with soup.down_sampling.train_on=4",
        ),
        (
            2,
            {"algorithm__use_kl_in_reward": True},
            "algorithm.use_kl_in_reward=True: expected false with soup.down_sampling.train_on=2",
        ),
    ],
)
def test_rule_between_down_sampling_and_the_run(mixed_fraction, train_on, changes, message):
    soup = SoupConfig.parse({"mixed_fraction": mixed_fraction, "down_sampling": {"train_on": train_on}})
    with pytest.raises(ConfigError) as caught:
        check_run(soup, run_config(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ({}, {}),
        ({"down_sampling": {"train_on": 4}}, {}),
        ({"down_sampling": {"train_on": 2}, "mixed_fraction": 0}, {}),
        ({"policy_loss": {"name": "exo"}}, {LOSS_MODE: "soup", "algorithm__rollout_correction__bypass_mode": True}),
        ({"policy_loss": {"name": "exo_centred"}}, {LOSS_MODE: "soup"}),
        ({"policy_loss": {"name": "vespo"}}, {LOSS_MODE: "soup", "algorithm__rollout_correction__bypass_mode": True}),
        (OAPL, {LOSS_MODE: "soup", "algorithm__rollout_correction__bypass_mode": True, **SUMMED}),
        (OAPL_PAIRED, {LOSS_MODE: "soup", **SUMMED}),
        *(
            ({"prefix_objective": objective}, {LOSS_MODE: mode})
            for mode, objectives in {
                "gspo": ("behavior", "decoupled", "masked"),
                "geo_mean": ("behavior", "masked"),
                "cispo": core_algos.PREFIX_OBJECTIVES,
                "sapo": core_algos.PREFIX_OBJECTIVES,
                "gpg": ("masked",),
            }.items()
            for objective in objectives
        ),
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


@pytest.mark.parametrize(("ranks", "executor"), [(1, "uni"), (2, "mp")])
def test_an_engine_of_several_ranks_has_processes_for_them_on_a_cpu_too(ranks, executor):
    parallel = f"actor_rollout_ref.rollout.tensor_model_parallel_size={ranks}"
    rollout = compose("platform=cpu", "actor_rollout_ref.rollout.n=4", parallel)["actor_rollout_ref"]["rollout"]
    assert rollout["engine_kwargs"]["vllm"]["distributed_executor_backend"] == executor


def test_a_misspelled_key_on_the_command_line_is_refused():
    with pytest.raises(Exception, match="mixed_fractoin"):
        compose("soup.mixed_fractoin=0.5")
