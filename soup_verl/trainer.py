"""SoupTrainer: verl's synchronous trainer with history. The only file that overrides verl's steps.

One step, in the order it runs (`verl` marks stages that are verl's, untouched):

    prepare_step            verl   fetch the prompts of step t
      _next_train_batch            put the prefixes of step t beside them          <- PrefixSource.prefixes
      _submit_batch_to_rollout     dispatch; then let the source ask for prefixes  <- PrefixSource.after_submit
    replay_buffer.sample    verl   wait for the responses
    on_sample_end                  wait for the prefixes, then sleep the replicas  <- PrefixSource.before_sleep
    _compute_old_log_prob   verl   log pi_old of every token, prefix included
    _compute_advantage             metrics; old_log_probs of the prefix; estimator `soup`
    _update_actor                  verl's update, segment metrics finished
    _save_checkpoint               verl's checkpoint, then ours
    on_step_end                    history from the new weights, then wake replicas <- PrefixSource.after_update
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_to_nested

from soup_verl import checkpoint, core_algos, register
from soup_verl.actor_worker import SUM_PREFIX, SoupActorWorker
from soup_verl.config import ConfigError, PortableError, SoupConfig
from soup_verl.history import LookaheadSource, PendingPrefixes, PrefixSource, build_source
from soup_verl.metrics import StepBatch, finish_update_metrics, step_metrics
from soup_verl.mixing import MixingPlanner
from soup_verl.prompt_stream import ReadAheadLoader
from soup_verl.rollout import GROUP_PREFIXES

logger = logging.getLogger(__name__)

CURRENT = "current"
"""Name under which the actor keeps its own weights while a past policy is lent to the rollout engine."""


class SessionsFailed(PortableError):
    """Sessions of a batch ended with an error; verl itself would go on with what is left of their groups."""

    def __init__(self, errors: list[str], step: int):
        super().__init__(f"{len(errors)} responses failed at step {step}; first: {errors[0]}")


def prompt_key(raw_prompt: Any) -> str:
    """A fingerprint of a prompt's chat messages: the same in every process and run."""
    messages = [dict(m) for m in raw_prompt]
    return hashlib.sha256(json.dumps(messages, sort_keys=True, default=str).encode()).hexdigest()[:16]


@register_trainer("soup")
class SoupTrainer(PPOTrainerSync):
    """Single-sample mix-policy training on verl's V1 trainer. With `soup.mixed_fraction=0` it is verl's GRPO."""

    train_dataloader: Any

    def __init__(self, config: DictConfig):
        config.trainer.v1.trainer_mode = "sync"  # verl compares this name with "sync" to choose its behaviour
        self._soup = SoupConfig.parse(OmegaConf.to_container(config.soup, resolve=True))
        super().__init__(config)
        self._source: PrefixSource | None = None
        self._fetched_step = 0  # the last step whose prompts were taken from the data loader

    # ------------------------------ set up ------------------------------

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self._planner = self._build_planner()
        if self._soup.mixing:
            self.train_dataloader = ReadAheadLoader(self.train_dataloader)
            last_step = min(self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs)
            self._source = build_source(self._soup, self, last_step=last_step)

    def _build_planner(self) -> MixingPlanner:
        rollout = self.config.actor_rollout_ref.rollout
        low, high = self._soup.prefix_length.bounds(rollout.response_length)
        return MixingPlanner(self._soup.seed, rollout.n, self._soup.mixed_fraction, low, high)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if issubclass(worker.__ray_metadata__.modified_class, ActorRolloutRefWorker):
                self.role_worker_mapping[role] = ray.remote(SoupActorWorker)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._fetched_step = self.global_steps - 1
        if self._source is None:
            return
        if isinstance(self._source, LookaheadSource) and (steps := self._source.without_history(self.global_steps)):
            logger.info("steps %d-%d have no history yet and are plain on-policy", steps[0], steps[-1])
        if self.global_steps > 1:  # resumed: the step before ended with history from its weights
            self.checkpoint_manager.sleep_replicas()
            self._source.after_update(self.global_steps - 1)
            self.checkpoint_manager.update_weights(self.global_steps - 1)

    # ------------------------------ the step ------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        with self._failures_explained():
            return super().step(metrics, timing_raw)

    def _validate(self) -> dict[str, float]:
        with self._failures_explained():
            metrics = super()._validate()
            self._raise_session_errors()
        return metrics

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        self._fetched_step = self.global_steps
        groups = self._source.prefixes(self.global_steps) if self._source else None
        if groups is None:
            return batch
        keys = [prompt_key(raw) for raw in _items(batch["raw_prompt"])]
        if keys != [group.prompt_key for group in groups]:
            raise RuntimeError(f"the prefixes of step {self.global_steps} belong to other prompts than its batch")
        batch[GROUP_PREFIXES] = NonTensorStack(*(NonTensorData(group) for group in groups))
        return batch

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        submitted = super()._submit_batch_to_rollout(batch)
        if self._source:
            self._source.after_submit(self.global_steps)
        return submitted

    def on_sample_end(self) -> None:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.before_sleep()
        self._raise_session_errors()
        super().on_sample_end()

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        batch = super()._balance_batch(batch, *args, **kwargs)
        padding = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding", False)]
        if padding and self._soup.mixing:  # verl copies a real row's fields; ours must have the padding row's length
            mask = torch.zeros(len(padding), 1, dtype=torch.int8)
            version = torch.full((len(padding),), -1)
            fields = TensorDict({"prefix_mask": mask, "policy_version": version}, batch_size=len(padding))
            tq.kv_batch_put(keys=padding, partition_id=batch.partition_id, fields=fields)
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Segment metrics, the prefix's old_log_probs and masks, then verl's own stage with the estimator `soup`."""
        if self.config.algorithm.adv_estimator != "soup":
            return super()._compute_advantage(batch, metrics)
        data = self._read_batch(batch)
        metrics.update(step_metrics(self._step_batch(batch, data)))
        prefix_weight = None
        if self._soup.mixing:
            objective = core_algos.PREFIX_OBJECTIVES[self._soup.prefix_objective]
            prefix_weight = objective.weight(
                data["old_log_probs"], data["rollout_log_probs"], cap=self._soup.decoupled_weight_cap
            )
            self._write_prefix_fields(batch, data, objective)
        segments = register.Segments(
            counted=self._counted_rows(batch),
            is_mixed=data["prefix_mask"].bool().any(dim=-1),
            prefix_mask=data["prefix_mask"] if self._soup.mixing else None,
            prefix_weight=prefix_weight,
            baseline=self._soup.baseline,
            norm_by_std=self.config.algorithm.get("norm_adv_by_std_in_grpo", True),
        )
        with register.batch_segments(segments):
            return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        prefix = f"actor/{SUM_PREFIX}"
        sums = {key.removeprefix(prefix): metrics.pop(key) for key in list(metrics) if key.startswith(prefix)}
        if sums:
            metrics.update(finish_update_metrics(sums))
        return batch

    def on_step_end(self) -> None:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.after_update(self.global_steps)
        super().on_step_end()

    # ------------------------------ the batch in TransferQueue ------------------------------

    def _read_batch(self, batch: KVBatchMeta) -> dict[str, Any]:
        """The fields SOUP needs, tensors padded to (batch, response_length); rows in the order of `batch.keys`."""
        names = ["uid", "response_mask", "rollout_log_probs", "old_log_probs", "entropy", "rm_scores", "extra_fields"]
        if self._soup.mixing:
            names += ["prefix_mask", "policy_version"]
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        uids, extra = _items(stored.pop("uid")), _items(stored.pop("extra_fields"))
        data: dict[str, Any] = {"nested_response_mask": stored["response_mask"]}
        data |= dict(stored.to_padded_tensor().items())
        if not self._soup.mixing:
            data["prefix_mask"] = torch.zeros_like(data["response_mask"])
            data["policy_version"] = torch.full((len(uids),), -1)
        return data | {"uid": uids, "extra_fields": extra}

    def _write_prefix_fields(
        self, batch: KVBatchMeta, data: dict[str, Any], objective: core_algos.PrefixObjective
    ) -> None:
        """What the loss reads: old_log_probs of prefix tokens, and the masks of an objective that leaves them out."""
        fields = {}
        if objective.anchor_is_behavior:
            fields["old_log_probs"] = core_algos.join_log_probs(
                prefix_mask=data["prefix_mask"],
                prefix_log_probs=data["rollout_log_probs"],
                other_log_probs=data["old_log_probs"],
            )
        if not objective.trained:
            mask = torch.where(data["prefix_mask"].bool(), 0, data["response_mask"])
            fields["response_mask"] = fields["loss_mask"] = mask
        nested = {name: response_to_nested(value, data["nested_response_mask"]) for name, value in fields.items()}
        if nested:
            tq.kv_batch_put(
                keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(nested, batch_size=len(batch))
            )

    def _step_batch(self, batch: KVBatchMeta, data: dict[str, Any]) -> StepBatch:
        rows = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        rewards = data["rm_scores"][rows].sum(dim=-1)
        info = [_reward_info(data["extra_fields"][i]) for i in rows]
        acc: list[Any] = [i.get("acc") for i in info]
        bypass = self.config.algorithm.rollout_correction.get("bypass_mode", False)
        return StepBatch(
            uids=[data["uid"][i] for i in rows],
            response_mask=data["response_mask"][rows],
            prefix_mask=data["prefix_mask"][rows],
            policy_version=data["policy_version"][rows],
            current_version=self.global_steps - 1,
            behavior_log_probs=data["rollout_log_probs"][rows] if "rollout_log_probs" in data else None,
            old_log_probs=None if bypass else data["old_log_probs"][rows],
            entropy=data["entropy"][rows] if "entropy" in data else None,
            rewards=rewards,
            solved=rewards > 0 if None in acc else torch.tensor([bool(a > 0.5) for a in acc]),
            answers=[str(i["pred"]) for i in info] if all("pred" in i for i in info) else None,
        )

    @staticmethod
    def _counted_rows(batch: KVBatchMeta) -> torch.Tensor:
        """(batch,) boolean: the last output of each session, as verl's GRPO counts; keys are uid_session_output."""
        last: dict[str, int] = {}
        for key in batch.keys:
            session, output = key.rsplit("_", 1)
            last[session] = max(last.get(session, 0), int(output))
        return torch.tensor([int(k.rsplit("_", 1)[1]) == last[k.rsplit("_", 1)[0]] for k in batch.keys])

    # ------------------------------ failures ------------------------------

    def _raise_session_errors(self) -> None:
        manager: Any = getattr(self, "agent_loop_manager", None)
        errors = manager.take_errors() if hasattr(manager, "take_errors") else []
        if errors:
            raise SessionsFailed(errors, self.global_steps)

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        """verl leaves the cause of a failed session in a worker's log and stumbles over its absence: say the cause."""
        try:
            yield
        except SessionsFailed:
            raise
        except Exception:
            self._raise_session_errors()
            raise

    # ------------------------------ PolicyEngine: what a source may ask for ------------------------------

    def wants_prefixes(self, step: int) -> bool:
        return self._planner.mixes(step)

    def sample_prefixes(self, step: int) -> PendingPrefixes:
        prompts = self._prompts_of(step)
        plan = self._planner.plan_step(step=step, num_prompts=len(prompts))
        keys = [prompt_key(raw) for raw in prompts]
        return self.agent_loop_manager.sample_prefixes(step, prompts, keys, plan)

    def keep_policy(self, version: int) -> None:
        self.actor_rollout_wg.save_model_to_cpu(version)

    def drop_policy(self, version: int) -> None:
        self.actor_rollout_wg.clear_cpu_model(version)

    @contextmanager
    def borrowed_policy(self, version: int) -> Iterator[None]:
        actor = self.actor_rollout_wg
        actor.save_model_to_cpu(CURRENT)
        actor.restore_model_from_cpu(version)
        self.checkpoint_manager.update_weights(version)
        yield
        self.checkpoint_manager.sleep_replicas()
        actor.restore_model_from_cpu(CURRENT)
        actor.clear_cpu_model(CURRENT)

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self.actor_rollout_wg.write_kept_policies(str(folder), list(versions))

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None:
        self.actor_rollout_wg.read_kept_policies(str(folder), list(versions))

    def _prompts_of(self, step: int) -> list[Any]:
        """Chat messages of the batch of a step to come, in batch order."""
        data = self.config.data
        fetches = data.train_batch_size // (data.get("gen_batch_size", None) or data.train_batch_size)
        ahead = step - self._fetched_step - 1
        batches = self.train_dataloader.peek(ahead * fetches, (ahead + 1) * fetches)
        return [raw for batch in batches for raw in batch["raw_prompt"]]

    # ------------------------------ checkpoints ------------------------------

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        checkpoint.write(
            folder,
            state={"step": self.global_steps, "settings": self._history_settings()},
            write_history=self._source.save if self._source else lambda _: None,
            include_verl=not self.config.actor_rollout_ref.actor.get("checkpoint", {}).get("async_save", False),
        )

    def _load_checkpoint(self) -> None:
        folder = self._checkpoint_to_resume()
        with self._resume_from(folder):
            super()._load_checkpoint()
        if folder is None or self._source is None:
            return
        if not (folder / checkpoint.FOLDER).exists():
            logger.warning("%s has no history of SOUP: it starts anew", folder)
            return
        settings = checkpoint.read_state(folder)["settings"]
        for key, value in self._history_settings().items():
            if settings.get(key) != value:
                raise ConfigError(key, value, f"{settings.get(key)!r}, as in {folder}", "Keep it, or start a new run.")
        self._source.load(folder / checkpoint.FOLDER)

    def _history_settings(self) -> dict[str, Any]:
        """Settings that a stored history depends on."""
        soup, length = self._soup, self._soup.prefix_length
        of_source = {"soup.lookahead.age": soup.lookahead.age} if soup.source == "lookahead" else {}
        return of_source | {
            "soup.mixed_fraction": soup.mixed_fraction,
            "soup.source": soup.source,
            "soup.seed": soup.seed,
            "soup.prefix_length": [length.distribution, length.low, length.high],
            "actor_rollout_ref.rollout.n": self.config.actor_rollout_ref.rollout.n,
            "data.train_batch_size": self.config.data.train_batch_size,
        }

    def _checkpoint_to_resume(self) -> Path | None:
        """The checkpoint `trainer.resume_mode` asks for; torn ones are refused with their path."""
        trainer = self.config.trainer
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path).absolute()
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
    def _resume_from(self, folder: Path | None) -> Iterator[None]:
        """verl's resume settings for one call: exactly this checkpoint, or none."""
        trainer = self.config.trainer
        asked = (trainer.resume_mode, trainer.resume_from_path)
        with open_dict(trainer):
            trainer.resume_mode = "resume_path" if folder else "disable"
            trainer.resume_from_path = str(folder) if folder else None
            yield
            trainer.resume_mode, trainer.resume_from_path = asked


def _items(field: Any) -> list[Any]:
    """The values of a non-tensor field, one a row."""
    return [item.data if isinstance(item, NonTensorData) else item for item in field]


def _reward_info(extra_fields: Any) -> dict[str, Any]:
    return extra_fields.get("reward_extra_info", {}) if isinstance(extra_fields, dict) else {}
