"""Which checkpoint a run goes on from, and whether it is one of its own kind: decided before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from soup_verl import checkpoint
from soup_verl.config import SOURCES, ConfigError, SoupConfig

logger = logging.getLogger(__name__)

_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
"""What makes two models the same to a checkpoint, as transformers names it."""


def checkpoint_to_resume(trainer: DictConfig) -> Path | None:
    """The checkpoint that `trainer.resume_mode` asks for; None to start anew. Damaged ones are refused by path.

    Raises:
        TornCheckpoint: `trainer.resume_from_path` is damaged.
        ValueError: there are checkpoints, and none is intact.
    """
    if trainer.resume_mode == "resume_path":
        folder = Path(trainer.resume_from_path).absolute()
        if not folder.is_dir():
            raise ConfigError("trainer.resume_from_path", trainer.resume_from_path, "a folder global_step_N")
        if (folder / checkpoint.FOLDER).exists():
            checkpoint.verify(folder)
        return folder
    if trainer.resume_mode != "auto":
        return None
    root = Path(trainer.default_local_dir).absolute()
    newest, refused = checkpoint.newest_intact(root)
    for error in refused:
        logger.warning("checkpoint refused: %s", error)
    if newest is None and (root / "latest_checkpointed_iteration.txt").exists():
        raise ValueError(f"no intact checkpoint under {root}; newest: {refused[0] if refused else 'none'}")
    return newest


@contextmanager
def only_from(folder: Path | None, trainer: DictConfig) -> Iterator[None]:
    """verl's resume settings for one call: exactly this checkpoint, or none."""
    asked = (trainer.resume_mode, trainer.resume_from_path)
    with open_dict(trainer):
        trainer.resume_mode = "resume_path" if folder else "disable"
        trainer.resume_from_path = str(folder) if folder else None
        yield
        trainer.resume_mode, trainer.resume_from_path = asked


def check_weights(folder: Path, config: DictConfig) -> None:
    """The checkpoint's weights are those of this model, for this number of ranks.

    Raises:
        ConfigError: names the setting, what the checkpoint has, and its path.
    """
    model = config.actor_rollout_ref.model
    if other := _other_shape(folder / "actor" / "huggingface" / "config.json", model):
        raise ConfigError("actor_rollout_ref.model.path", model.path, f"a model with {other}, as in {folder}", _NEW)
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    files = (re.match(r"model_world_size_(\d+)_", file.name) for file in (folder / "actor").glob("model_*"))
    saved = {int(match[1]) for match in files if match}
    if saved and ranks not in saved:
        key, expected = "trainer.nnodes*trainer.n_gpus_per_node", f"{min(saved)} ranks, as in {folder}"
        raise ConfigError(key, ranks, expected, _NEW)


def _other_shape(file: Path, model: DictConfig) -> str:
    """What the saved configuration has and that of `model.path` has not; "" if nothing, or if nothing was saved."""
    if not file.is_file():
        return ""
    from transformers import AutoConfig

    saved = json.loads(file.read_text())
    given = AutoConfig.from_pretrained(model.path, trust_remote_code=model.get("trust_remote_code", False)).to_dict()
    differing = [key for key in _SHAPE if key in saved and key in given and saved[key] != given[key]]
    return " and ".join(f"{key}={saved[key]} (it has {given[key]})" for key in differing)


_NEW = "Keep it, or start a new run in another trainer.default_local_dir."


_TRAINING = (
    "algorithm.adv_estimator",
    "algorithm.filter_groups.enable",
    "algorithm.filter_groups.metric",
    "algorithm.gamma",
    "algorithm.kl_ctrl.horizon",
    "algorithm.kl_ctrl.kl_coef",
    "algorithm.kl_ctrl.target_kl",
    "algorithm.kl_ctrl.type",
    "algorithm.kl_penalty",
    "algorithm.lam",
    "algorithm.norm_adv_by_std_in_grpo",
    "algorithm.pf_ppo.reweight_method",
    "algorithm.pf_ppo.weight_pow",
    "algorithm.rollout_correction.bypass_mode",
    "algorithm.rollout_correction.loss_type",
    "algorithm.rollout_correction.rollout_is",
    "algorithm.rollout_correction.rollout_is_batch_normalize",
    "algorithm.rollout_correction.rollout_is_threshold",
    "algorithm.rollout_correction.rollout_rs",
    "algorithm.rollout_correction.rollout_rs_threshold",
    "algorithm.use_kl_in_reward",
    "algorithm.use_pf_ppo",
    "actor_rollout_ref.actor.clip_ratio",
    "actor_rollout_ref.actor.clip_ratio_c",
    "actor_rollout_ref.actor.clip_ratio_high",
    "actor_rollout_ref.actor.clip_ratio_low",
    "actor_rollout_ref.actor.data_loader_seed",
    "actor_rollout_ref.actor.entropy_coeff",
    "actor_rollout_ref.actor.freeze_vision_tower",
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.actor.kl_loss_type",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.loss_scale_factor",
    "actor_rollout_ref.actor.optim.betas",
    "actor_rollout_ref.actor.optim.clip_grad",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.optim.lr_scheduler_type",
    "actor_rollout_ref.actor.optim.lr_warmup_steps",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio",
    "actor_rollout_ref.actor.optim.min_lr_ratio",
    "actor_rollout_ref.actor.optim.num_cycles",
    "actor_rollout_ref.actor.optim.optimizer",
    "actor_rollout_ref.actor.optim.optimizer_impl",
    "actor_rollout_ref.actor.optim.override_optimizer_config",
    "actor_rollout_ref.actor.optim.warmup_style",
    "actor_rollout_ref.actor.optim.weight_decay",
    "actor_rollout_ref.actor.optim.zero_indexed_step",
    "actor_rollout_ref.actor.policy_loss.clip_cov_lb",
    "actor_rollout_ref.actor.policy_loss.clip_cov_ratio",
    "actor_rollout_ref.actor.policy_loss.clip_cov_ub",
    "actor_rollout_ref.actor.policy_loss.dro_beta",
    "actor_rollout_ref.actor.policy_loss.kl_cov_ratio",
    "actor_rollout_ref.actor.policy_loss.loss_mode",
    "actor_rollout_ref.actor.policy_loss.ppo_kl_coef",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.shuffle",
    "actor_rollout_ref.actor.tau_neg",
    "actor_rollout_ref.actor.tau_pos",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.model.custom_chat_template",
    "actor_rollout_ref.model.exclude_modules",
    "actor_rollout_ref.model.lora_alpha",
    "actor_rollout_ref.model.lora_rank",
    "actor_rollout_ref.model.target_modules",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "actor_rollout_ref.rollout.ignore_eos",
    "actor_rollout_ref.rollout.logprobs_mode",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.rollout.top_p",
    "critic.enable",
    "data.apply_chat_template_kwargs",
    "data.custom_cls.name",
    "data.custom_cls.path",
    "data.filter_overlong_prompts",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.prompt_key",
    "data.reward_fn_key",
    "data.seed",
    "data.shuffle",
    "data.train_batch_size",
    "data.train_files",
    "data.train_max_samples",
    "data.truncation",
    "distillation.enabled",
    "reward.custom_reward_function.name",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.name",
    "reward.reward_manager.module.path",
    "reward.reward_manager.name",
    "reward.reward_model.enable",
    "reward.reward_model.model_path",
    "trainer.critic_warmup",
)
"""What makes a run another one, of verl's settings.

Not here: how long it goes on, what validates, reports or saves it, and what makes it fit a machine (precision,
parallelism, micro-batches, offloading, the rollout engine's own settings).
"""
_FILES = (
    "data.custom_cls.path",
    "data.train_files",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
)
"""Those that are compared by what the file holds."""
_OBSERVING = ("log_samples", "max_skipped_steps", "preflight_only")
"""What of ours does not."""
_OF_HISTORY = (
    "soup.lookahead",
    "soup.mixed_fraction",
    "soup.position",
    "soup.prefix_length",
    "soup.seed",
    "soup.source",
    "soup.when",
    "actor_rollout_ref.rollout.n",
    "data.train_batch_size",
)
"""What stored prefixes, policies and responses depend on."""


def run_settings(soup: SoupConfig, config: DictConfig) -> dict[str, Any]:
    """The settings that make a run what it is, by their full keys, as JSON has them."""
    of_verl = {key: _of_verl(config, key) for key in _TRAINING}
    if not soup.mixing:
        return of_verl | {"soup.mixed_fraction": 0}
    ours = {key: value for key, value in asdict(soup).items() if key not in (*_OBSERVING, *_other_sources(soup))}
    if soup.source == "lookahead":
        ours["lookahead"] = {"age": soup.lookahead.ages}  # one age is a list of one
    return json.loads(json.dumps(of_verl | _flat(ours, "soup")))


def _of_verl(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if key not in _FILES or value is None:
        return value
    return [_content(str(file)) for file in (value if isinstance(value, list) else [value])]


def _content(file: str) -> str:
    """A hash of the file, which may be elsewhere by now; the name of what is no local file (`hdfs://`, `pkg://`)."""
    path = Path(file).expanduser()
    if not path.is_file():
        return file
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"


def mixes(settings: Mapping[str, Any]) -> bool:
    """Whether these are the `run_settings` of a run that has history."""
    return "soup.source" in settings


def _other_sources(soup: SoupConfig) -> list[str]:
    return [source for source in SOURCES if source != soup.source]


def _flat(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{path}.{key}") if isinstance(value, Mapping) else {f"{path}.{key}": value}
    return found


def check_settings(folder: Path, stored: Mapping[str, Any], present: Mapping[str, Any], *, history_only: bool) -> None:
    """The checkpoint is one that these settings would have made, as far as it tells: a setting that was not compared
    yet when it was written is not compared with it.

    Args:
        history_only: look at nothing but what the stored history depends on.

    Raises:
        ConfigError: names the setting, the checkpoint's value and its path.
    """
    first = ("soup.mixed_fraction", "soup.source")  # what other keys there are depends on them
    for key in (*first, *sorted(stored)):
        if history_only and not key.startswith(_OF_HISTORY):
            continue
        if stored.get(key) != present.get(key):
            raise ConfigError(key, present.get(key), f"{stored.get(key)!r}, as in {folder}", _NEW)
