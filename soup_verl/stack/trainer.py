"""SoupStages: verl's trainers with history; SoupTrainer is the synchronous one. What overrides verl's steps is here,
but for validation.py, down_sampling.py, history_checkpoints.py and inflight_trainer.py.

One step, in the order it runs (`verl` marks stages that are verl's, untouched):

    prepare_step            verl   fetch the prompts of step t
      _next_train_batch            put the prefixes of step t beside them          <- PrefixSource.prefixes
      _submit_batch_to_rollout     dispatch; then let the source ask for prefixes  <- PrefixSource.after_submit
    replay_buffer.sample    verl   wait for the responses; under dynamic sampling the two above again, in place of
                                   groups that are dropped (`dynamic_sampling.py`)
    on_sample_end                  wait for the prefixes, then sleep the replicas  <- PrefixSource.before_sleep
      _balance_batch               rows in the order of their prompts; those that are trained on; verl's balancing
    _compute_old_log_prob   verl   log pi_old of every token, prefix included
    _compute_advantage             metrics; a few samples written; old_log_probs of the prefix; estimator `soup`
      _observe                     what the batch says about the history           <- PrefixSource.observe_*
    _update_actor                  verl's update, segment metrics finished         <- PrefixSource.before_update
    _save_checkpoint               verl's checkpoint, then ours
    on_step_end                    history from the new weights, then wake replicas <- PrefixSource.after_update
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import (
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.debug import marked_timer
from verl.workers.engine_workers import ActorRolloutRefWorker

from soup_verl.method import step
from soup_verl.method.config import SoupConfig
from soup_verl.method.history import GroupPrefixes, PolicyResponse, PromptBlocks, build_source
from soup_verl.method.metrics import finish_measured, finish_update_metrics, step_size_metrics
from soup_verl.method.observation import History
from soup_verl.records import sample_log
from soup_verl.stack import batch as batches
from soup_verl.stack import register, resume
from soup_verl.stack.actor_worker import IN_LOSS, MEASURED_PREFIX, SUM_PREFIX, SoupActorWorker
from soup_verl.stack.batch import StoredBatch, items
from soup_verl.stack.down_sampling import DownSampling
from soup_verl.stack.dynamic_sampling import DynamicPolicyEngine, NotingReplayBuffer
from soup_verl.stack.images import images_key, prompt_key
from soup_verl.stack.policy_engine import Rescoring, TrainerPolicyEngine, Unlearning
from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.reward_workers import tell_exits
from soup_verl.stack.rollout import GROUP_PREFIXES, IMAGES, ORDINAL
from soup_verl.stack.validation import ExplainedValidation

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
"""Seconds between two looks whether a batch is there. A look lists every response under way; verl's 2.0 has no key."""


class SoupStages(ExplainedValidation, DownSampling):
    """Single-sample mix-policy training: a mixin over verl's V1 trainers, whose stages it extends. With
    `soup.mixed_fraction=0` it is verl's GRPO."""

    train_dataloader: Any
    _syncs = True
    """Whether the rollout engine took the current weights at the end of the last step."""

    def __init__(self, config: DictConfig):
        config.trainer.v1.trainer_mode = verls_name(self)
        self._soup = SoupConfig.parse(OmegaConf.to_container(config.soup, resolve=True))
        self._place_of_uid: dict[str, int] = {}
        self._key_of_uid: dict[str, str] = {}
        if self._soup.mixing and config.algorithm.get("filter_groups", {}).get("enable", False):
            self._blocks = PromptBlocks(config.data.train_batch_size)
        super().__init__(config)

    # ------------------------------ set up ------------------------------

    def _setup(self) -> None:
        super()._setup()
        tell_exits(self.reward_loop_manager)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self._settings = resume.run_settings(self._soup, self.config)  # with the files as they are now
        last_step = min(self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs)
        rollout, data = self.config.actor_rollout_ref.rollout, self.config.data
        planner = step.plan_of_run(
            self._soup, n=rollout.n, response_length=rollout.response_length, last_step=last_step
        )
        self._history = History(self._soup, planner)
        if self._soup.planned:
            self.train_dataloader = ReadAheadLoader(self.train_dataloader)
            kind = partial(DynamicPolicyEngine, blocks=self._blocks) if self._blocks else TrainerPolicyEngine
            self._engine = kind(
                loader=self.train_dataloader,
                fetches=data.train_batch_size // (data.get("gen_batch_size", None) or data.train_batch_size),
                planner=planner,
                solved=self._history.solved,
                rescoring=self._rescoring(),
                unlearning=self._unlearning(),
            )
            self._history.source = build_source(
                self._soup, self._engine, response_length=rollout.response_length, last_step=last_step
            )

    def _rescoring(self) -> Rescoring | None:
        if self._soup.behavior_log_probs == "rollout":
            return None
        rollout = self.config.actor_rollout_ref.rollout
        micro_batch = 1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu
        return Rescoring(rollout.temperature, micro_batch)

    def _unlearning(self) -> Unlearning | None:
        if self._soup.source != "forget":
            return None
        rollout, actor = self.config.actor_rollout_ref.rollout, self.config.actor_rollout_ref.actor
        micro_batch = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
        return Unlearning(rollout.response_length, rollout.temperature, micro_batch)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if issubclass(worker.__ray_metadata__.modified_class, ActorRolloutRefWorker):
                self.role_worker_mapping[role] = ray.remote(SoupActorWorker)

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = min(buffer.poll_interval, POLL_INTERVAL)
        return NotingReplayBuffer(buffer, self._discard) if self._blocks else buffer

    def on_train_begin(self) -> None:
        super().on_train_begin()
        if self._source is None:
            return
        self._engine.fetched_step, self._engine.manager = self.global_steps - 1, self.agent_loop_manager
        self._source.before_first_step(self.global_steps)
        resumes_blocks = self._blocks is not None and self.global_steps > 1  # what is ready is with them
        if not resumes_blocks and (steps := self._source.without_history(self.global_steps)):
            logger.info("steps %d-%d have no history yet and are plain on-policy", steps[0], steps[-1])
        if self._soup.position == "whole" and self._soup.mixed_fraction == 1:
            logger.info(
                "historical policies write whole batches: soup/alignment_error_* and soup/noise_floor_kl_k3 have no "
                "token of the current policy there"
            )
        if self.global_steps > 1:  # resumed: the step before ended with history from its weights
            self.checkpoint_manager.sleep_replicas()
            self._after_update(self.global_steps - 1)
            self.checkpoint_manager.update_weights(self.global_steps - 1)
        self._engine.loads = 0  # those belong to no step

    # ------------------------------ the step ------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        with self._failures_explained():
            return self._with_dropped(super().step(metrics, timing_raw))

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """verl's next prompts: those of the step, or under dynamic sampling more of them, in place of others."""
        groups = self._next_prefixes(num_prompts or self.config.data.train_batch_size)
        batch = super()._next_train_batch(num_prompts)
        if self._source is None:
            return batch
        self._engine.fetched_step = self.global_steps
        keys, images = ([key(raw) for raw in items(batch["raw_prompt"])] for key in (prompt_key, images_key))
        self._key_of_uid |= zip(items(batch["uid"]), keys, strict=True)
        if any(images):
            batch[IMAGES] = NonTensorStack(*map(NonTensorData, images))
        if self._blocks:
            ordinals = range(self._blocks.handed - len(keys), self._blocks.handed)
            batch[ORDINAL] = NonTensorStack(*map(NonTensorData, ordinals))
        if groups is None:
            return batch
        if any(group and group.prompt_key != key for group, key in zip(groups, keys, strict=True)):
            raise RuntimeError(f"the prefixes of step {self.global_steps} belong to other prompts than its batch")
        batch[GROUP_PREFIXES] = NonTensorStack(*map(NonTensorData, groups))
        return batch

    def _next_prefixes(self, prompts: int) -> Sequence[GroupPrefixes | None] | None:
        """The prefixes of the prompts that verl is about to fetch; None where none has any."""
        if self._source is None:
            return None
        if self._blocks is None:
            return self._source.prefixes(self.global_steps)
        return self._blocks.take(prompts, self._source)

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        is_refill = len(self._place_of_uid) > 0
        self._place_of_uid |= zip(items(batch["uid"]), itertools.count(len(self._place_of_uid)))
        submitted = super()._submit_batch_to_rollout(batch)
        if self._source and not is_refill:
            self._source.after_submit(self.global_steps)
        return submitted

    def _discard(self, batch: KVBatchMeta) -> None:
        """Groups of this step are about to be gone."""
        stored = self._read(batch, recomputed=False)
        responses = self._policy_responses(batch, stored)
        self._history.discard(stored.responses, key_of_uid=self._key_of_uid, responses=responses)

    def on_sample_end(self) -> None:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.before_sleep()
        self._raise_session_errors()
        if self._syncs:
            super().on_sample_end()
        elif self.curr_step_profile:  # the replicas sleep already
            self._stop_rollout_profiling()

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        batches.sort_rows(batch, self._place_of_uid)
        if self._soup.down_sampling.train_on is not None:
            batch = self._down_sample(batch, self._read(batch, recomputed=False))
        self._place_of_uid.clear()  # nothing is under way any more
        with self._trained_responses_as_n():
            batch = super()._balance_batch(batch, *args, **kwargs)
        if self._soup.mixing:
            batches.mark_padding_unmixed(batch, interrupted=self._soup.interrupted)
        return batch

    def _read(self, batch: KVBatchMeta, *, recomputed: bool) -> StoredBatch:
        version = self.global_steps - 1
        return batches.read(
            batch,
            planned=self._soup.planned,
            interrupted=self._soup.interrupted,
            current_version=version,
            recomputed=recomputed,
        )

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Segment metrics, the prefix's old_log_probs and masks, then verl's own stage with the estimator `soup`."""
        if self.config.algorithm.adv_estimator != "soup":
            return super()._compute_advantage(batch, metrics)
        bypass = self.config.algorithm.rollout_correction.get("bypass_mode", False)
        stored = self._read(batch, recomputed=not bypass)
        self._log_samples(batch, stored)
        self._observe(batch, stored, metrics)
        responses, tokens = stored.responses, None
        if self._soup.mixing:
            tokens, found = step.trained_tokens(responses, self._soup)
            metrics.update(found)
            batches.write_trained_tokens(batch, stored, tokens)
        estimate = partial(
            step.advantages,
            versions=responses.response_version.tolist(),
            baseline=self._soup.baseline,
            norm_by_std=self.config.algorithm.get("norm_adv_by_std_in_grpo", True),
            counted=batches.counted_rows(batch),
            prefix_mask=responses.prefix_mask if tokens else None,
            prefix_weight=tokens.prefix_weight if tokens else None,
            log_ratio=tokens.log_ratio if tokens else None,
            policy_loss=self._soup.policy_loss,
        )
        with register.estimating_with(estimate):
            return super()._compute_advantage(batch, metrics)

    def _log_samples(self, batch: KVBatchMeta, stored: StoredBatch) -> None:
        settings = self._soup.log_samples
        if not sample_log.due(self.global_steps, every=settings.every, count=settings.count):
            return
        is_mixed = stored.responses.is_mixed.tolist()
        numbers = sample_log.numbers_of(self.local_trigger_step, self.parameter_sync_step, count=settings.count)
        rows = sample_log.choose(stored.real_rows, is_mixed, numbers=numbers, seed=self.global_steps)
        decode = partial(self.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        records = batches.sample_records(batch, stored, rows, first=numbers.start, decode=decode)
        sample_log.append(Path(self.config.trainer.default_local_dir), records)

    def _observe(self, batch: KVBatchMeta, stored: StoredBatch, metrics: dict) -> None:
        """Metrics of the batch; the source, the gate and the watches are told what it says."""
        all_rows, everything = self._sampled or (batch, stored)
        responses = self._policy_responses(all_rows, everything)
        real = stored.responses.rows(stored.real_rows)
        sampled = everything.responses if self._sampled else None  # without padding, which comes later
        found, warnings = self._history.observe(real, key_of_uid=self._key_of_uid, responses=responses, sampled=sampled)
        self._key_of_uid.clear()
        metrics.update(found | (self._blocks.metrics() if self._blocks else {}))
        for warning in warnings:
            logger.warning("step %d: %s", self.global_steps, warning)

    def _policy_responses(self, batch: KVBatchMeta, stored: StoredBatch) -> Callable[[], list[PolicyResponse]]:
        return partial(
            batches.policy_responses,
            batch,
            stored,
            response_length=self.config.actor_rollout_ref.rollout.response_length,
            from_actor=self._soup.behavior_log_probs == "actor",
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.before_update(self.global_steps)
        if self._soup.mixing or self._soup.policy_loss.name:
            batch.extra_info[IN_LOSS] = step.InLoss.of(self._soup)
        with self._trained_responses_as_n():
            batch = super()._update_actor(batch, metrics)
        for prefix, finish in ((SUM_PREFIX, finish_update_metrics), (MEASURED_PREFIX, finish_measured)):
            if sums := _taken_out(metrics, f"actor/{prefix}"):
                metrics.update(finish(sums))
        if self._soup.step_size.rule != "none":
            metrics.update(step_size_metrics(self.actor_rollout_wg.take_step_sizes()[0]))  # alike on every rank
        self._count_skipped_updates(metrics)
        return batch

    def on_step_end(self) -> None:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._after_update(self.global_steps)
        self._syncs = self._rollout_engine_is_asked()
        if self._syncs:
            super().on_step_end()

    def _after_update(self, step: int) -> None:
        assert self._source is not None
        if self._blocks:
            self._blocks.end_step(step, self._source)
        self._source.after_update(step)

    def _rollout_engine_is_asked(self) -> bool:
        """For the validation that follows this step, or for the next one's batch: not if historical policies wrote all
        of that and nothing else will be asked for meanwhile."""
        step, settings = self.global_steps, self.config.trainer
        groups = self._source.ready(step + 1) if self._source and self._blocks is None else None
        validates = settings.test_freq > 0 and (step >= self.total_training_steps or step % settings.test_freq == 0)
        n = self.config.actor_rollout_ref.rollout.n
        return validates or groups is None or any(g.complete_responses < n for g in groups)

    def _consume_sync_metrics(self) -> dict:
        found = super()._consume_sync_metrics()
        if self._source:
            found["soup/weight_loads_total"] = float(self._engine.loads + self._syncs)
            self._engine.loads = 0
        return found


def _taken_out(metrics: dict, prefix: str) -> dict[str, float]:
    """The metrics whose keys begin so, by the rest of the key; they are in `metrics` no more."""
    return {key.removeprefix(prefix): metrics.pop(key) for key in list(metrics) if key.startswith(prefix)}


def verls_name(trainer: PPOTrainer) -> str:
    """What verl calls this trainer's kind: it compares the name to choose its behaviour."""
    kinds = {"colocate_async": PPOTrainerColocateAsync, "separate_async": PPOTrainerSeparateAsync}
    return next((name for name, kind in kinds.items() if isinstance(trainer, kind)), "sync")


@register_trainer("soup")
class SoupTrainer(SoupStages, PPOTrainerSync):
    """On verl's synchronous trainer."""
