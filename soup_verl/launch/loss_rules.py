"""Rules between the `soup:` section and what the loss is made of: verl's losses, log-probs and corrections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from soup_verl.method.checks import require
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import POLICY_LOSSES, RESPONSE_LOSSES, SQUARED_LOSSES
from soup_verl.records.settings import value_at as _get


def check_loss(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """The rules for every run; arguments and errors as those of `run_rules.check_run`."""
    _check_gradient_cut(config)
    _check_one_update(soup, config)
    _check_policy_loss(soup, config)
    if soup.policy_loss.name in RESPONSE_LOSSES:
        _check_response_loss(soup.policy_loss.name, config)


def check_mixed_loss(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """The rules where responses are mixed; arguments and errors as those of `run_rules.check_run`."""
    _check_behavior_log_probs(soup, config)
    _check_verls_loss(soup, config)
    _check_objective(soup, config)
    _check_rollout_correction(soup, config)
    _check_kl_in_reward(config)


def _check_gradient_cut(config: Mapping[str, Any]) -> None:
    """verl has two keys for it, and its engines read the optimizer's alone."""
    key, read = "actor_rollout_ref.actor.grad_clip", "actor_rollout_ref.actor.optim.clip_grad"
    value, default = _get(config, key, 1.0), 1.0
    require(
        value in (default, _get(config, read, default)),
        key,
        value,
        f"{default}: no engine of verl's reads it",
        f"Set {read}.",
    )


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
    for key, value, neutral in _truncations(config):
        require(
            raw or (soup.behavior_log_probs == "actor" and not bypass),
            key,
            value,
            f"{neutral}, since the engine's log-probs of truncated sampling are not the trainer's",
            f"Or set {rollout}.logprobs_mode=raw_logprobs at temperature 1, or soup.behavior_log_probs=actor without "
            "bypass_mode; or truncate in validation alone (rollout.val_kwargs).",
        )


def _truncations(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(key, value, what it is without) of what keeps the rollout engine from sampling from the full softmax."""
    for name, neutral in (("top_p", (1,)), ("top_k", (-1, 0))):
        key = f"actor_rollout_ref.rollout.{name}"
        value = _get(config, key, neutral[0])
        if value not in neutral:
            yield key, value, neutral[0]


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
        mode = "actor_rollout_ref.rollout.logprobs_mode"
        for truncation, cut, _ in _truncations(config):
            require(
                _get(config, mode, "processed_logprobs") == "raw_logprobs",
                key,
                value,
                f"null with {truncation}={cut}: the engine's log-probs are of the truncated softmax, the trainer's of "
                "the full one, and the kept mass would enter every weight",
                f"Or set {mode}=raw_logprobs at temperature 1.",
            )
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
