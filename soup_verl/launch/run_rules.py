"""The rules between the `soup:` section and the rest of a run's configuration. Plain Python; run before Ray starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.method.checks import require
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import NEEDS_ONE_TURN, POLICY_LOSSES, RESPONSE_LOSSES, SINGLE_TURN, SQUARED_LOSSES

ASYNCHRONOUS = ("colocate_async", "separate_async")
"""verl's trainers whose updates interrupt responses."""


def _get(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return default if node is None else node


def check_run(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """Check the rules between `soup` and the rest of the run.

    Args:
        soup: the parsed section.
        config: the whole resolved configuration as plain mappings.

    Raises:
        ConfigError: the first rule that is broken.
    """
    _check_trainer_mode(soup, config)
    _check_one_update(soup, config)
    _check_policy_loss(soup, config)
    if soup.policy_loss.name in RESPONSE_LOSSES:
        _check_response_loss(soup.policy_loss.name, config)
    _check_down_sampling(soup, config)
    if soup.keep_best is not None:
        _check_keep_best(soup.keep_best, config)
    if not soup.mixing:
        return
    _check_mixing_possible(soup, config)
    _check_actor_always_trains(config)
    if soup.planned:
        _check_prefix_fits(soup, config)
    _check_behavior_log_probs(soup, config)
    _check_verls_loss(soup, config)
    _check_objective(soup, config)
    _check_rollout_correction(soup, config)
    _check_kl_in_reward(config)
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


def _check_one_update(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """OPO is exactly on-policy by definition; the mean that pairs compare with is that before the first update. A run
    script's own mini-batch wins over that of `neighbors=`."""
    if soup.policy_loss.name == "oapl_paired":
        because = "soup.policy_loss.name=oapl_paired"
    elif _get(config, "algorithm.adv_estimator") == "opo":
        because = "algorithm.adv_estimator=opo"
    else:
        return
    key, prompts = "actor_rollout_ref.actor.ppo_mini_batch_size", _get(config, "data.train_batch_size")
    value = _get(config, key)
    require(
        value == prompts,
        key,
        value,
        f"data.train_batch_size={prompts} with {because}: one update a step",
        "With run.sh: MINI_BATCH, as many as PROMPTS.",
    )
    key = "actor_rollout_ref.actor.ppo_epochs"
    require(_get(config, key, 1) == 1, key, _get(config, key), f"1 with {because}: one update a step")


def _check_policy_loss(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    key, name = "actor_rollout_ref.actor.policy_loss.loss_mode", soup.policy_loss.name
    mode = _get(config, key, "vanilla")
    require(
        name is None or mode == "soup", key, mode, f"soup with soup.policy_loss.name={name}", "It stands for that loss."
    )
    require(
        name is not None or mode != "soup",
        "soup.policy_loss.name",
        None,
        f"the loss that {key}=soup stands for: one of {', '.join(POLICY_LOSSES)}",
    )


def _check_response_loss(name: str, config: Mapping[str, Any]) -> None:
    """What a loss that reads the ratio of a whole response needs of the rest."""
    for part in ("rollout_is", "rollout_rs"):
        key = f"algorithm.rollout_correction.{part}"
        value = _get(config, key)
        require(value is None, key, value, f"null with soup.policy_loss.name={name}, whose ratio is of all tokens")
    if name not in SQUARED_LOSSES:
        return
    for key, expected, why in (
        (
            "actor_rollout_ref.actor.loss_agg_mode",
            "seq-mean-token-sum",
            "the square is of a whole response",
        ),
        ("algorithm.adv_estimator", "soup", "it has an advantage of its own"),
    ):
        value = _get(config, key)
        require(value == expected, key, value, f"{expected} with soup.policy_loss.name={name}: {why}")


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


def _check_behavior_log_probs(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    rollout = "actor_rollout_ref.rollout"
    require(
        bool(_get(config, f"{rollout}.calculate_log_probs", False)),
        f"{rollout}.calculate_log_probs",
        False,
        "true: the rollout engine's log-probs are the behaviour log-probs of the prefix",
    )
    temperature = _get(config, f"{rollout}.temperature", 1.0)
    require(temperature > 0, f"{rollout}.temperature", temperature, "above 0: a greedy prefix has no probability")
    mode = _get(config, f"{rollout}.logprobs_mode", "processed_logprobs")
    raw = mode == "raw_logprobs" and temperature == 1  # the engine's log-probs are those of its full softmax
    require(
        mode == "processed_logprobs" or raw,
        f"{rollout}.logprobs_mode",
        mode,
        f"processed_logprobs, log-probs at the sampling temperature, with {rollout}.temperature={temperature}",
        "At temperature 1 raw_logprobs does too.",
    )
    bypass = bool(_get(config, "algorithm.rollout_correction.bypass_mode", False))
    for name, neutral in (("top_p", (1,)), ("top_k", (-1, 0))):
        value = _get(config, f"{rollout}.{name}", neutral[0])
        require(
            value in neutral or raw or (soup.behavior_log_probs == "actor" and not bypass),
            f"{rollout}.{name}",
            value,
            f"{neutral[0]}, since the engine's log-probs of truncated sampling are not the trainer's",
            f"Or set {rollout}.logprobs_mode=raw_logprobs at temperature 1, or soup.behavior_log_probs=actor without "
            "bypass_mode; or truncate in validation alone (rollout.val_kwargs).",
        )


_FITS = {
    "gspo": (("behavior", "decoupled", "masked"), "its ratio is of the whole response, and shaped tokens have none"),
    "geo_mean": (("behavior", "masked"), "it averages the advantage over the response, and with it a token's weight"),
    "gpg": (("masked",), "it has no ratio, and takes every token for the current policy's"),
}
"""A `loss_mode` of verl's that cannot take every mixed response: the prefix objectives that it fits, and why no other.
`docs/methods.md` says what a loss's ratio means on a mixed response."""


def _check_verls_loss(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    mode = _get(config, "actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla")
    if mode not in _FITS:
        return
    fitting, why = _FITS[mode]
    require(
        soup.prefix_objective in fitting,
        "soup.prefix_objective",
        soup.prefix_objective,
        f"{' or '.join(fitting)} with actor_rollout_ref.actor.policy_loss.loss_mode={mode}: {why}",
    )
    require(
        mode != "geo_mean" or soup.prefix_correction == "none",
        "soup.prefix_correction",
        soup.prefix_correction,
        f"none with actor_rollout_ref.actor.policy_loss.loss_mode={mode}: {why}",
    )


def _check_objective(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    correction = "algorithm.rollout_correction"
    bypass = bool(_get(config, f"{correction}.bypass_mode", False))
    for key, value in _settings_that_need_old_log_probs(soup).items():
        require(
            not bypass,
            f"{correction}.bypass_mode",
            True,
            f"false with {key}={value}, which compares the prefix with the recomputed old_log_probs",
        )


def _check_rollout_correction(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """verl's correction for the rollout engine's numerics compares old_log_probs with the engine's. On prefix tokens
    the two are the same by then, so it leaves them alone: their ratio is against the engine's log-probs as it is.
    `recipe/soup/README.md` has what every segment's tokens are weighted with."""
    for name in ("rollout_is", "rollout_rs"):
        key = f"algorithm.rollout_correction.{name}"
        value = _get(config, key)
        if value is None:
            continue
        require(
            soup.prefix_objective != "decoupled",
            key,
            value,
            "null with soup.prefix_objective=decoupled, which already weights prefix tokens",
            "Both together would correct them twice.",
        )
        require(
            soup.policy_loss.name != "exo_centred",
            key,
            value,
            "null with soup.policy_loss.name=exo_centred, whose prefix ratio is against the engine's",
        )
        require(
            soup.prefix_objective not in ("behavior", "shaped_ratio") or soup.behavior_log_probs == "rollout",
            key,
            value,
            "null with soup.behavior_log_probs=actor, which keeps no log-prob of the engine to correct prefixes by",
            "Set soup.behavior_log_probs=rollout: their ratio is against the engine's own then.",
        )
        require(
            name != "rollout_rs" or soup.prefix_objective == "masked" or "seq_mean" not in value,
            key,
            value,
            f"no seq_mean_* with soup.prefix_objective={soup.prefix_objective}: a mean over prefix tokens too, which "
            "count as 0, tolerates more in a mixed response than in an on-policy one",
            "Take token_*, seq_sum_* or seq_max_*.",
        )


def _check_kl_in_reward(config: Mapping[str, Any]) -> None:
    key = "algorithm.use_kl_in_reward"
    require(
        not _get(config, key, False),
        key,
        True,
        "false when soup.mixed_fraction is above 0: its estimate needs the current policy's own samples, which "
        "prefixes are not, and it would enter the comparison of mixed with on-policy responses",
        "Use actor_rollout_ref.actor.use_kl_loss=true, which leaves the reward alone.",
    )


def _settings_that_need_old_log_probs(soup: SoupConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if soup.prefix_objective in ("decoupled", "shaped", "shaped_ratio"):
        settings["soup.prefix_objective"] = soup.prefix_objective
    if soup.prefix_correction != "none":
        settings["soup.prefix_correction"] = soup.prefix_correction
    if soup.baseline == "min_variance":
        settings["soup.baseline"] = soup.baseline
    if soup.policy_loss.name in ("exo_centred", "oapl_paired"):
        settings["soup.policy_loss.name"] = soup.policy_loss.name
    for name in ("max_prefix_kl", "max_second_moment", "min_prefix_kl", "target_kl"):
        if (value := getattr(soup.kl_control, name)) is not None:
            settings[f"soup.kl_control.{name}"] = value
    return settings


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
