"""The rules between the `soup:` section and the rest of a run's configuration. Plain Python; run before Ray starts.

Those between it and what the loss is made of are in loss_rules.py, those of trainers and engines in trainer_rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.launch import loss_rules, trainer_rules
from soup_verl.method.checks import require
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import NEEDS_ONE_TURN, SINGLE_TURN
from soup_verl.records.settings import value_at as _get


def check_run(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """Check the rules between `soup` and the rest of the run.

    Args:
        soup: the parsed section.
        config: the whole resolved configuration as plain mappings.

    Raises:
        ConfigError: the first rule that is broken.
    """
    trainer_rules.check_trainer(soup, config)
    loss_rules.check_loss(soup, config)
    _check_down_sampling(soup, config)
    if soup.keep_best is not None:
        _check_keep_best(soup.keep_best, config)
    if not soup.mixing:
        return
    _check_mixing_possible(soup, config)
    _check_actor_always_trains(config)
    if soup.planned:
        _check_prefix_fits(soup, config)
    loss_rules.check_mixed_loss(soup, config)
    _check_prompt_order(soup, config)
    _check_dynamic_sampling(soup, config)
    _check_store(soup, config)


def _check_down_sampling(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    key, some = "soup.down_sampling.train_on", soup.down_sampling.train_on
    if some is None:
        return
    n, estimator = _get(config, "actor_rollout_ref.rollout.n", 1), _get(config, "algorithm.adv_estimator")
    require(some <= n, key, some, f"at most the actor_rollout_ref.rollout.n={n} responses that a prompt has")
    require(estimator == "soup", "algorithm.adv_estimator", estimator, f"soup with {key}={some}")
    in_reward = "algorithm.use_kl_in_reward"
    require(
        not _get(config, in_reward, False),
        in_reward,
        True,
        f"false with {key}={some}: responses are chosen before their log-probs are computed",
        "Use actor_rollout_ref.actor.use_kl_loss=true, which leaves the reward alone.",
    )


def _check_keep_best(metric: str, config: Mapping[str, Any]) -> None:
    saves, validations = _get(config, "trainer.save_freq", -1), _get(config, "trainer.test_freq", -1)
    require(
        min(saves, validations) > 0 and max(saves, validations) % min(saves, validations) == 0,
        "soup.keep_best",
        metric,
        f"null with trainer.save_freq={saves} and trainer.test_freq={validations}",
        "A checkpoint is judged by the validation of its own step: set both, one of them a multiple of the other.",
    )


def _check_mixing_possible(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    n = _get(config, "actor_rollout_ref.rollout.n", 1)
    largest = max(soup.mixed_fraction, soup.mixed_fraction_schedule.final or 0)
    require(
        round(largest * n) >= 1,
        "soup.mixed_fraction",
        soup.mixed_fraction,
        f"a share that makes at least one of actor_rollout_ref.rollout.n={n} responses mixed",
        "Raise it, raise rollout.n, or set it to 0 for plain GRPO.",
    )
    require(
        soup.source != "forget" or round(largest * n) < n,
        "soup.mixed_fraction",
        largest,
        f"a share that leaves one of actor_rollout_ref.rollout.n={n} responses to unlearn, because soup.source=forget",
    )
    require(
        soup.replay.choice != "balanced" or round(largest * n) < n,
        "soup.mixed_fraction",
        soup.mixed_fraction,
        f"a share that leaves at least one of actor_rollout_ref.rollout.n={n} responses on-policy with "
        "soup.replay.choice=balanced",
        "They say which way a prompt is to be steered.",
    )
    estimator = _get(config, "algorithm.adv_estimator")
    require(
        estimator == "soup",
        "algorithm.adv_estimator",
        estimator,
        "soup, because soup.mixed_fraction is above 0",
        "Set algorithm.adv_estimator=soup, or soup.mixed_fraction=0.",
    )
    agent = _get(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    setting = soup.single_turn_setting
    require(
        setting is None or agent in SINGLE_TURN,
        "actor_rollout_ref.rollout.agent.default_agent_loop",
        agent,
        f"{' or '.join(SINGLE_TURN)} with {setting}",
        NEEDS_ONE_TURN,
    )
    manager = _get(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class")
    require(
        manager == "soup_verl.stack.rollout.SoupAgentLoopManager",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
        manager,
        "soup_verl.stack.rollout.SoupAgentLoopManager, because soup.mixed_fraction is above 0",
    )


def _check_actor_always_trains(config: Mapping[str, Any]) -> None:
    """History is made around the actor's update, which verl leaves out of warm-up steps."""
    steps = _get(config, "trainer.critic_warmup", 0)
    require(
        steps == 0,
        "trainer.critic_warmup",
        steps,
        "0 when soup.mixed_fraction is above 0: the estimator soup reads no critic",
        "verl does not train the actor in such steps.",
    )


def _check_prefix_fits(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    if soup.prefix_length.unit == "share":
        return  # cut to what the response budget leaves room for
    budget = _get(config, "actor_rollout_ref.rollout.response_length", 0)
    key, longest = soup.prefix_length.longest(budget)
    given = 2 * longest if soup.position == "middle" else longest
    require(
        given < budget,
        key,
        longest,
        f"less than {'half of ' if soup.position == 'middle' else ''}the response budget "
        f"data.max_response_length={budget} tokens",
        "A prefix must leave room for a continuation.",
    )


def _check_prompt_order(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    refill = "trainer.v1.sampler.sync_refill_failed_groups"
    require(not _get(config, refill, False), refill, True, "false when soup.mixed_fraction is above 0")
    total = _get(config, "trainer.total_training_steps")
    if soup.source == "lookahead" and total is not None:
        require(
            max(soup.lookahead.ages) < total,
            "soup.lookahead.age",
            soup.lookahead.age,
            f"less than trainer.total_training_steps={total}",
            "Otherwise the run ends before the first prefix is used.",
        )


def _check_dynamic_sampling(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """What of mixing needs to know which step will take a prompt, or that nothing is dropped."""
    key = "algorithm.filter_groups.enable"
    if not _get(config, key, False):
        return
    require(
        soup.source in ("lookahead", "snapshot", "replay"),
        "soup.source",
        soup.source,
        f"lookahead, snapshot or replay with {key}=true: forget samples a prompt's other responses before its step, "
        "and inflight has not been tried with it",
    )
    require(
        soup.position in ("prefix", "whole"),
        "soup.position",
        soup.position,
        f"prefix or whole with {key}=true: a head that the current policy samples ahead may be taken a step later",
    )
    require(
        soup.source != "replay" or soup.behavior_log_probs == "rollout",
        "soup.behavior_log_probs",
        soup.behavior_log_probs,
        f"rollout with soup.source=replay and {key}=true: responses that are dropped are stored too, not recomputed",
    )
    sampler = "trainer.v1.sampler.custom_sampler.path"
    require(
        not _get(config, sampler), sampler, _get(config, sampler), f"null with {key}=true: prompts are verl's to drop"
    )


def _check_store(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    budget = _get(config, "actor_rollout_ref.rollout.response_length", 0)
    capacity = soup.replay.capacity_tokens
    require(
        soup.source != "replay" or capacity >= 2 * budget,
        "soup.replay.capacity_tokens",
        capacity,
        f"at least twice the response budget data.max_response_length={budget} tokens",
        "Take many times as much: a step adds up to train_batch_size * rollout.n responses.",
    )
