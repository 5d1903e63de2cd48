"""Every setting of a run: does it belong to the method, to the stack, to watching, or is it a name?

One table, from which follows what a resumed run must have as its checkpoint had it (stack/resume.py), what a running
stack can take up for its next run (launch/series.py), and what the report leaves out when it compares runs
(reporting/compare.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a setting is.

    Args:
        kind: `method`: what is trained; a checkpoint goes on with no other value. `stack`: how it is made to fit a
            machine (precision, parallelism, micro-batches, offloading, the engines' own settings). `watching`: how
            long it goes on, what validates, saves or profiles it. `name`: names, folders, logging, resuming; nothing
            that is computed depends on it, and the report does not compare it.
        taken_up: processes that run already can take up another value.
        by_content: a file, or files, of which the content counts and not the place.
        of_history: stored prefixes, policies and responses depend on it.
        without_mixing: a setting of ours that a run depends on which mixes nothing.
    """

    kind: str = "stack"
    taken_up: bool = False
    by_content: bool = False
    of_history: bool = False
    without_mixing: bool = False


# Section, kind and facts, keys in it; no key: the section's others. What is not here belongs to the stack.
_ROWS = (
    (
        "soup",
        "method taken_up",
        "behavior_log_probs decoupled_weight_cap forget inflight kl_control prefix_correction prefix_objective replay "
        "shaped_gamma snapshot step_size warm_start",
    ),
    ("soup", "method taken_up without_mixing", "baseline down_sampling policy_loss sampling_seed"),
    (
        "soup",
        "method taken_up of_history",
        "lookahead mixed_fraction mixed_fraction_schedule position prefix_length seed source start_at_solved_rate when",
    ),
    ("soup", "watching taken_up", "keep_best max_skipped_steps"),
    ("soup", "name taken_up", "log_samples preflight_only restarts stall_minutes"),
    (
        "algorithm",
        "method taken_up",
        "adv_estimator filter_groups.metric gamma kl_ctrl.horizon kl_ctrl.kl_coef kl_ctrl.target_kl kl_ctrl.type "
        "kl_penalty lam norm_adv_by_std_in_grpo pf_ppo.reweight_method pf_ppo.weight_pow use_pf_ppo",
    ),
    ("algorithm", "method taken_up of_history", "filter_groups.enable"),
    (
        "algorithm.rollout_correction",
        "method taken_up",
        "bypass_mode loss_type rollout_is rollout_is_batch_normalize rollout_is_threshold rollout_rs "
        "rollout_rs_threshold",
    ),
    ("algorithm", "method", "use_kl_in_reward"),
    ("algorithm", "stack taken_up", ""),
    (
        "actor_rollout_ref.actor",
        "method taken_up",
        "clip_ratio clip_ratio_c clip_ratio_high clip_ratio_low data_loader_seed entropy_coeff kl_loss_coef "
        "kl_loss_type loss_agg_mode loss_scale_factor ppo_epochs ppo_mini_batch_size",
    ),
    ("actor_rollout_ref.actor", "method", "freeze_vision_tower shuffle tau_neg tau_pos use_kl_loss"),
    (
        "actor_rollout_ref.actor.optim",
        "method taken_up",
        "betas clip_grad lr lr_scheduler_type lr_warmup_steps lr_warmup_steps_ratio min_lr_ratio num_cycles optimizer "
        "optimizer_impl override_optimizer_config warmup_style weight_decay zero_indexed_step",
    ),
    (
        "actor_rollout_ref.actor.policy_loss",
        "method taken_up",
        "clip_cov_lb clip_cov_ratio clip_cov_ub dro_beta kl_cov_ratio loss_mode ppo_kl_coef",
    ),
    ("actor_rollout_ref.actor", "stack taken_up", "optim policy_loss rollout_n"),
    ("actor_rollout_ref.ref", "stack taken_up", "rollout_n"),
    (
        "actor_rollout_ref.model",
        "method",
        "custom_chat_template exclude_modules lora_alpha lora_rank target_modules",
    ),
    ("actor_rollout_ref.rollout", "method taken_up", "temperature top_k top_p"),
    ("actor_rollout_ref.rollout", "method taken_up of_history", "n"),
    ("actor_rollout_ref.rollout", "method", "agent.default_agent_loop ignore_eos logprobs_mode"),
    ("actor_rollout_ref.rollout", "watching taken_up", "val_kwargs"),
    ("actor_rollout_ref.rollout.trace", "name taken_up", "experiment_name"),
    ("actor_rollout_ref.rollout.trace", "name", "project_name"),
    ("critic", "method taken_up", "enable"),
    ("critic", "stack taken_up", ""),  # there is none: it repeats the actor's settings
    ("distillation", "method", "enabled"),
    ("distillation.teacher_models.teacher_model.inference", "stack taken_up", "temperature"),  # the same, no teacher
    (
        "data",
        "method",
        "apply_chat_template_kwargs custom_cls.name filter_overlong_prompts max_prompt_length max_response_length "
        "prompt_key reward_fn_key train_max_samples truncation",
    ),
    ("data", "method by_content", "custom_cls.path"),
    ("data", "method taken_up", "seed shuffle"),
    ("data", "method taken_up of_history", "train_batch_size"),
    ("data", "method taken_up by_content", "train_files"),
    ("data", "watching taken_up", "val_files"),
    ("data", "watching", "val_batch_size val_max_samples validation_shuffle"),
    (
        "reward",
        "method",
        "custom_reward_function.name custom_reward_function.reward_kwargs reward_kwargs reward_manager.module.name "
        "reward_manager.name reward_model.enable reward_model.model_path",
    ),
    ("reward", "method by_content", "custom_reward_function.path reward_manager.module.path"),
    ("trainer", "method taken_up", "critic_warmup"),
    (
        "trainer",
        "method",
        "v1.colocate_async.num_warmup_batches v1.sampler.max_off_policy_strategy v1.sampler.max_off_policy_threshold "
        "v1.separate_async.num_warmup_batches v1.separate_async.parameter_sync_step",
    ),
    ("trainer", "stack", "device n_gpus_per_node nnodes v1.trainer_mode"),  # the mode decides the rollout client
    (
        "trainer",
        "watching taken_up",
        "default_hdfs_dir esi_redundant_time log_val_generations max_actor_ckpt_to_keep max_critic_ckpt_to_keep "
        "save_freq test_freq total_epochs total_training_steps val_before_train val_only",
    ),
    (
        "trainer",
        "name taken_up",
        "default_local_dir experiment_name logger project_name resume_from_path resume_mode rollout_data_dir "
        "validation_data_dir",
    ),
    ("trainer", "stack taken_up", ""),
    ("global_profiler", "watching", ""),
    ("hydra", "name", ""),
)


def _setting(kind: str, *facts: str) -> Setting:
    return Setting(kind, **dict.fromkeys(facts, True))


TABLE: dict[str, Setting] = {
    f"{section}.{key}" if key else section: _setting(*what.split())
    for section, what, keys in _ROWS
    for key in keys.split() or [""]
}


def setting_of(key: str) -> Setting:
    """What the setting of this dotted key is: by its own row, or that of the nearest section that has one."""
    while key and key not in TABLE:
        key = key.rpartition(".")[0]
    return TABLE.get(key, Setting())


def value_at(settings: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested settings; `default` where there is none or null."""
    node: Any = settings
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return default if node is None else node


def flatten(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys; lists and empty sections are values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
