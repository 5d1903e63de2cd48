"""The rules between the `soup:` section and the rest of a run's configuration. Plain Python; run before Ray starts.

Those between it and what the loss is made of are in loss_rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.launch import loss_rules
from soup_verl.method.checks import require
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import NEEDS_ONE_TURN, SINGLE_TURN
from soup_verl.records.settings import value_at as _get

ASYNCHRONOUS = ("colocate_async", "separate_async")
"""verl's trainers whose updates interrupt responses."""


def check_run(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """Check the rules between `soup` and the rest of the run.

    Args:
        soup: the parsed section.
        config: the whole resolved configuration as plain mappings.

    Raises:
        ConfigError: the first rule that is broken.
    """
    _check_trainer_mode(soup, config)
    _check_trainers_engine(config)
    loss_rules.check_loss(soup, config)
    _check_down_sampling(soup, config)
    if soup.keep_best is not None:
        _check_keep_best(soup.keep_best, config)
    if not soup.mixing:
        return
    _check_rollout_engine(config)
    _check_mixing_possible(soup, config)
    _check_actor_always_trains(config)
    if soup.planned:
        _check_prefix_fits(soup, config)
    loss_rules.check_mixed_loss(soup, config)
    _check_prompt_order(soup, config)
    _check_dynamic_sampling(soup, config)
    _check_store(soup, config)


def _check_trainer_mode(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """Sources that plan prefixes need the order of events of the synchronous trainer; interrupted responses need one
    that interrupts them. Tests and benchmarks have trainers of other names that end so."""
    key = "trainer.v1.trainer_mode"
    mode = str(_get(config, key, "soup"))
    kind = next((kind for kind in ASYNCHRONOUS if kind in mode), None)
    if kind == "separate_async":
        _check_two_pools(soup, config)
    if not soup.mixing:
        return
    require(
        "soup" in mode or kind is None,
        key,
        mode,
        f"soup_{kind}, because soup.mixed_fraction is above 0",
        "Or set soup.mixed_fraction=0 and algorithm.adv_estimator=grpo.",
    )
    require(
        kind is not None or soup.source != "inflight",
        key,
        mode,
        "soup_colocate_async or soup_separate_async with soup.source=inflight: others interrupt no response",
    )
    ahead = f"trainer.v1.{kind}.num_warmup_batches"
    require(
        soup.source != "inflight" or _get(config, ahead, 1) > 0,
        ahead,
        _get(config, ahead, 1),
        "above 0 with soup.source=inflight: no response is under way when an update comes",
    )
    require(
        kind is None or soup.source == "inflight",
        "soup.source",
        soup.source,
        f"inflight with {key}={mode}: other sources need steps that wait for all of their responses",
    )


def _check_trainers_engine(config: Mapping[str, Any]) -> None:
    """Our trainers' workers and checkpoints are for FSDP, whether or not anything is mixed; verl's own have theirs."""
    mode = str(_get(config, "trainer.v1.trainer_mode", "soup"))
    if "soup" not in mode:
        return
    key = "actor_rollout_ref.actor.strategy"
    strategy = _get(config, key, "fsdp")
    whose = f"fsdp or fsdp2 with trainer.v1.trainer_mode={mode}, whose workers read verl's FSDP engine"
    require(strategy in ("fsdp", "fsdp2"), key, strategy, whose)
    key = "actor_rollout_ref.actor.checkpoint.async_save"
    require(not _get(config, key, False), key, True, "false: with it verl does not say which checkpoint is the newest")
    key = "trainer.remove_previous_ckpt_in_save"
    require(not _get(config, key, False), key, True, "false, or not there", "Set trainer.max_actor_ckpt_to_keep=1.")


def _check_rollout_engine(config: Mapping[str, Any]) -> None:
    key = "actor_rollout_ref.rollout.name"
    name = _get(config, key, "vllm")
    require(
        name == "vllm",
        key,
        name,
        "vllm when soup.mixed_fraction is above 0: no other engine's requests and log-probs have been tried",
    )


def _check_two_pools(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """What verl's separate_async asserts, and what it would do without a word."""
    rollout, because = "actor_rollout_ref.rollout", "with trainer.v1.trainer_mode=*separate_async"
    for name in ("nnodes", "n_gpus_per_node"):
        value = _get(config, f"{rollout}.{name}", 0)
        require(
            value > 0, f"{rollout}.{name}", value, f"above 0 {because}: the rollout engines have a pool of their own"
        )
    backend, key = f"{rollout}.checkpoint_engine.backend", "trainer.v1.separate_async.parameter_sync_step"
    engine, updates = _get(config, backend, "naive"), _get(config, key, 4)
    require(engine != "naive", backend, engine, f"nccl, or another engine that reaches the other pool, {because}")
    judge, pool = "reward.reward_model.enable", "reward.reward_model.enable_resource_pool"
    require(
        not _get(config, judge, False) or bool(_get(config, pool, False)),
        pool,
        False,
        f"true with {judge}=true {because}: the rollout engines never pause to free GPUs for a reward model",
    )
    prompts, mini = _get(config, "data.train_batch_size"), _get(config, "actor_rollout_ref.actor.ppo_mini_batch_size")
    require(
        updates > 0 and prompts == updates * mini,
        key,
        updates,
        f"data.train_batch_size={prompts} / actor_rollout_ref.actor.ppo_mini_batch_size={mini}: a mini-batch an update",
    )
    some = soup.down_sampling.train_on
    require(
        some is None or updates == 1,
        key,
        updates,
        f"1 with soup.down_sampling.train_on={some}, which sees a whole step",
    )
    model = "actor_rollout_ref.model"
    rank, merged = _get(config, f"{model}.lora_rank", 0), bool(_get(config, f"{model}.lora.merge", False))
    require(rank <= 0 or merged, f"{model}.lora.merge", merged, f"true {because}, whose engines are sent no adapters")


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
