"""Rules between the `soup:` section and what trains and samples: verl's trainers, their engines, two pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.method.checks import require
from soup_verl.method.config import SoupConfig
from soup_verl.records.settings import value_at as _get

ASYNCHRONOUS = ("colocate_async", "separate_async")
"""verl's trainers whose updates interrupt responses."""


def check_trainer(soup: SoupConfig, config: Mapping[str, Any]) -> None:
    """The rules for every run; arguments and errors as those of `run_rules.check_run`."""
    _check_trainer_mode(soup, config)
    _check_trainers_engine(config)
    if soup.mixing:
        _check_rollout_engine(config)


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
