"""The rules between the `soup:` section and the rest of a run's configuration. Plain Python; run before Ray starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.config import SoupConfig, require


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
    if not soup.mixing:
        return
    _check_mixing_possible(soup, config)
    _check_actor_always_trains(config)
    _check_prefix_fits(soup, config)
    _check_behavior_log_probs(config)
    _check_objective(soup, config)
    _check_rollout_correction(soup, config)
    _check_kl_in_reward(config)
    _check_prompt_order(soup, config)
    _check_store(soup, config)


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
    estimator = _get(config, "algorithm.adv_estimator")
    require(
        estimator == "soup",
        "algorithm.adv_estimator",
        estimator,
        "soup, because soup.mixed_fraction is above 0",
        "Set algorithm.adv_estimator=soup, or soup.mixed_fraction=0.",
    )
    agent = _get(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    require(
        agent == "soup_agent",
        "actor_rollout_ref.rollout.agent.default_agent_loop",
        agent,
        "soup_agent, the agent loop that can continue a prefix",
        "Other agent loops run with soup.mixed_fraction=0.",
    )
    manager = _get(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class")
    require(
        manager == "soup_verl.rollout.SoupAgentLoopManager",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
        manager,
        "soup_verl.rollout.SoupAgentLoopManager, because soup.mixed_fraction is above 0",
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


def _check_behavior_log_probs(config: Mapping[str, Any]) -> None:
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
    require(
        mode == "processed_logprobs",
        f"{rollout}.logprobs_mode",
        mode,
        "processed_logprobs, log-probs at the sampling temperature",
    )
    for name, neutral in (("top_p", 1.0), ("top_k", -1)):
        value = _get(config, f"{rollout}.{name}", neutral)
        require(
            value == neutral,
            f"{rollout}.{name}",
            value,
            f"{neutral}: truncated sampling has other log-probs than the trainer's full softmax",
            "Truncate in validation (rollout.val_kwargs) instead.",
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
            soup.prefix_objective != "behavior" or soup.behavior_log_probs == "rollout",
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
    if soup.prefix_objective in ("decoupled", "shaped"):
        settings["soup.prefix_objective"] = soup.prefix_objective
    if soup.prefix_correction != "none":
        settings["soup.prefix_correction"] = soup.prefix_correction
    for name in ("max_prefix_kl", "min_prefix_kl", "target_kl"):
        if (value := getattr(soup.kl_control, name)) is not None:
            settings[f"soup.kl_control.{name}"] = value
    return settings


def _check_prompt_order(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    require(
        not _get(config, "algorithm.filter_groups.enable", False),
        "algorithm.filter_groups.enable",
        True,
        "false when soup.mixed_fraction is above 0: refilled prompts have no prefix planned",
    )
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
