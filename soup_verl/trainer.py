"""SoupTrainer: verl's synchronous trainer with history. The only file that overrides verl's steps.

One step, in the order it runs (`verl` marks stages that are verl's, untouched):

    prepare_step            verl   fetch the prompts of step t
      _next_train_batch            put the prefixes of step t beside them          <- PrefixSource.prefixes
      _submit_batch_to_rollout     dispatch; then let the source ask for prefixes  <- PrefixSource.after_submit
    replay_buffer.sample    verl   wait for the responses
    on_sample_end                  wait for the prefixes, then sleep the replicas  <- PrefixSource.before_sleep
      _balance_batch               rows in the order of their prompts, then verl's balancing
    _compute_old_log_prob   verl   log pi_old of every token, prefix included
    _compute_advantage             metrics; a few samples written; old_log_probs of the prefix; estimator `soup`
      _observe                     what the batch says about the history           <- PrefixSource.observe_*
    _update_actor                  verl's update, segment metrics finished         <- PrefixSource.before_update
    _save_checkpoint               verl's checkpoint, then ours
    on_step_end                    history from the new weights, then wake replicas <- PrefixSource.after_update
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer
from verl.workers.engine_workers import ActorRolloutRefWorker

from soup_verl import batch as batches
from soup_verl import checkpoint, core_algos, register, resume, sample_log
from soup_verl.actor_worker import PREFIX_CORRECTION, SHAPED_GAMMA, SUM_PREFIX, SoupActorWorker
from soup_verl.batch import BatchData, items
from soup_verl.config import PortableError, ScheduleConfig, SoupConfig
from soup_verl.history import CollapseWatch, NoiseWatch, PrefixSource, build_source
from soup_verl.metrics import StepBatch, finish_update_metrics, prefix_kl_by_age, prefix_kl_metrics, step_metrics
from soup_verl.mixing import MixingPlanner, Schedule, SolvedRates
from soup_verl.policy_engine import TrainerPolicyEngine, prompt_key
from soup_verl.prompt_stream import ReadAheadLoader
from soup_verl.rollout import GROUP_PREFIXES
from soup_verl.validation import is_solved, pass_at_k_metrics

logger = logging.getLogger(__name__)

SOLVED_RATES = "solved_rates.json"


class SessionsFailed(PortableError):
    """Sessions of a batch ended with an error; verl itself would go on with what is left of their groups."""

    def __init__(self, errors: list[str], step: int):
        super().__init__(f"{len(errors)} responses failed at step {step}; first: {errors[0]}")


class GradientsNotFinite(PortableError):
    """Step after step an update had to be left out."""

    def __init__(self, steps: int, step: int):
        super().__init__(
            f"the gradient was not finite at step {step} and in {steps} steps in a row: expected less than "
            f"soup.max_skipped_steps={steps}. No such update was made: look at the rewards and log-probs of these "
            "steps, lower the learning rate, or go on from an earlier checkpoint."
        )


@register_trainer("soup")
class SoupTrainer(PPOTrainerSync):
    """Single-sample mix-policy training on verl's V1 trainer. With `soup.mixed_fraction=0` it is verl's GRPO."""

    train_dataloader: Any

    def __init__(self, config: DictConfig):
        config.trainer.v1.trainer_mode = "sync"  # verl compares this name with "sync" to choose its behaviour
        self._soup = SoupConfig.parse(OmegaConf.to_container(config.soup, resolve=True))
        self._solved = SolvedRates(self._soup.when)
        self._collapse = CollapseWatch(self._soup.kl_control.min_prefix_kl, self._soup.kl_control.patience)
        self._noise = NoiseWatch(self._soup)
        self._source: PrefixSource | None = None
        self._skipped_steps = 0
        self._place_of_uid: dict[str, int] = {}
        super().__init__(config)

    # ------------------------------ set up ------------------------------

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self._settings = resume.run_settings(self._soup, self.config)  # with the files as they are now
        last_step = min(self.total_training_steps, self.steps_per_epoch * self.config.trainer.total_epochs)
        self._planner = self._build_planner(last_step)
        if self._soup.mixing:
            self.train_dataloader = ReadAheadLoader(self.train_dataloader)
            self._build_history(last_step)

    def _build_planner(self, last_step: int) -> MixingPlanner:
        soup, rollout = self._soup, self.config.actor_rollout_ref.rollout
        low, high = soup.prefix_length.bounds(rollout.response_length)
        return MixingPlanner(
            seed=soup.seed,
            n=rollout.n,
            mixed_fraction=_schedule(soup.mixed_fraction, soup.mixed_fraction_schedule, last_step),
            low=low,
            high=_schedule(high, soup.prefix_length.schedule, last_step),
            in_shares=soup.prefix_length.unit == "share",
            position=soup.position,
            ages=soup.lookahead.ages if soup.source == "lookahead" else (0,),
        )

    def _build_history(self, last_step: int) -> None:
        self._engine = TrainerPolicyEngine(self, self._planner, self._solved)
        response_length = self.config.actor_rollout_ref.rollout.response_length
        self._source = build_source(self._soup, self._engine, response_length=response_length, last_step=last_step)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if issubclass(worker.__ray_metadata__.modified_class, ActorRolloutRefWorker):
                self.role_worker_mapping[role] = ray.remote(SoupActorWorker)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        if self._source is None:
            return
        self._engine.fetched_step = self.global_steps - 1
        self._source.before_first_step(self.global_steps)
        if steps := self._source.without_history(self.global_steps):
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

    def _val_metrics_update(
        self,
        data_sources: list[str],
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list],
        sample_turns: list[int],
        expected_acc_counts: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, float]:
        """verl's metrics, and the unbiased pass@k: verl's `best@k` resamples with replacement and reads low."""
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts
        )
        rewards = reward_extra_infos_dict["reward"]
        acc = reward_extra_infos_dict.get("acc", [None] * len(rewards))
        expected = sum((expected_acc_counts or {}).values())
        if len(rewards) < expected:
            logger.warning(
                "step %d: %d of %d validation responses are missing: val-soup/*/pass@k is of the prompts that have k",
                self.global_steps,
                expected - len(rewards),
                expected,
            )
        return metrics | pass_at_k_metrics(data_sources, sample_uids, list(map(is_solved, acc, rewards)))

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self._source is None:
            return batch
        self._engine.fetched_step = self.global_steps
        keys = [prompt_key(raw) for raw in items(batch["raw_prompt"])]
        self._key_of_uid = dict(zip(items(batch["uid"]), keys, strict=True))
        groups = self._source.prefixes(self.global_steps)
        if groups is None:
            return batch
        if keys != [group.prompt_key for group in groups]:
            raise RuntimeError(f"the prefixes of step {self.global_steps} belong to other prompts than its batch")
        batch[GROUP_PREFIXES] = NonTensorStack(*(NonTensorData(group) for group in groups))
        return batch

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        self._place_of_uid |= zip(items(batch["uid"]), itertools.count(len(self._place_of_uid)))
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
        batches.sort_rows(batch, self._place_of_uid)
        self._place_of_uid.clear()  # nothing is under way any more
        batch = super()._balance_batch(batch, *args, **kwargs)
        if self._soup.mixing:
            batches.mark_padding_unmixed(batch)
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Segment metrics, the prefix's old_log_probs and masks, then verl's own stage with the estimator `soup`."""
        if self.config.algorithm.adv_estimator != "soup":
            return super()._compute_advantage(batch, metrics)
        data = batches.read(batch, mixing=self._soup.mixing)
        recomputed = not self.config.algorithm.rollout_correction.get("bypass_mode", False)
        step_batch = batches.step_batch(data, current_version=self.global_steps - 1, recomputed=recomputed)
        metrics.update(step_metrics(step_batch))
        if warning := self._noise.warning(metrics):
            logger.warning("step %d: %s", self.global_steps, warning)
        self._log_samples(batch, data, recomputed=recomputed)
        if self._source:
            metrics.update(self._observe(batch, data, step_batch))
        prefix_weight = self._prepare_prefix_tokens(batch, data, metrics) if self._soup.mixing else None
        segments = register.Segments(
            counted=batches.counted_rows(batch),
            is_mixed=data.is_mixed,
            prefix_mask=data.prefix_mask if self._soup.mixing else None,
            prefix_weight=prefix_weight,
            baseline=self._soup.baseline,
            norm_by_std=self.config.algorithm.get("norm_adv_by_std_in_grpo", True),
        )
        with register.batch_segments(segments):
            return super()._compute_advantage(batch, metrics)

    def _log_samples(self, batch: KVBatchMeta, data: BatchData, *, recomputed: bool) -> None:
        settings, step = self._soup.log_samples, self.global_steps
        if not sample_log.due(step, every=settings.every, count=settings.count):
            return
        rows = sample_log.choose(data.real_rows, data.is_mixed.tolist(), count=settings.count, seed=step)
        decode = partial(self.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        records = batches.sample_records(batch, data, rows, step=step, recomputed=recomputed, decode=decode)
        sample_log.append(Path(self.config.trainer.default_local_dir), records)

    def _observe(self, batch: KVBatchMeta, data: BatchData, step_batch: StepBatch) -> dict[str, float]:
        """Tell the source, the gate and the watch what the batch says; returns what they report."""
        assert self._source is not None
        for uid, rate in batches.solved_rates(step_batch).items():
            self._solved.record(self._key_of_uid[uid], rate)
        if self._source.wants_responses:
            responses = batches.policy_responses(
                batch,
                data,
                current_version=self.global_steps - 1,
                response_length=self.config.actor_rollout_ref.rollout.response_length,
                from_actor=self._soup.behavior_log_probs == "actor",
            )
            self._source.observe_responses(responses)
        kl_by_age = prefix_kl_by_age(step_batch)
        metrics = prefix_kl_metrics(kl_by_age)
        if kl_by_age:
            tokens = sum(n for _, n in kl_by_age.values())
            self._watch_collapse(sum(kl * n for kl, n in kl_by_age.values()) / tokens)
        self._source.observe_kl({age: kl for age, (kl, _) in kl_by_age.items()}, collapsed=self._collapse.collapsed)
        decoded = data.response_mask[data.real_rows].bool()
        if not self._source.decodes_prefixes:
            decoded = decoded & ~data.prefix_mask[data.real_rows].bool()
        return (
            metrics
            | self._source.metrics()
            | self._settings_of_step()
            | {
                "soup/decode_tokens_total": float(decoded.sum()),
                "soup/prefix_kl_low_steps": float(self._collapse.low_steps),
            }
        )

    def _watch_collapse(self, prefix_kl: float) -> None:
        before = self._collapse.collapsed
        self._collapse.observe(prefix_kl)
        if self._collapse.collapsed and not before:
            logger.warning(
                "step %d: prefix KL has been under soup.kl_control.min_prefix_kl=%s for %d steps: the history is no "
                "different from the present; raise the age of the history%s",
                self.global_steps,
                self._collapse.min_kl,
                self._collapse.patience,
                ", the oldest kept policy serves for now" if self._soup.source == "snapshot" else "",
            )

    def _settings_of_step(self) -> dict[str, float]:
        return {
            "soup/mixed_fraction": self._planner.mixed_fraction.at(self.global_steps),
            "soup/prefix_length_limit": float(self._planner.longest(self.global_steps)),
        }

    def _prepare_prefix_tokens(self, batch: KVBatchMeta, data: BatchData, metrics: dict) -> torch.Tensor:
        """Write what the loss reads of prefix tokens; returns the weights of their advantages."""
        assert data.behavior_log_probs is not None
        objective = core_algos.PREFIX_OBJECTIVES[self._soup.prefix_objective]
        limit, cut = self._soup.kl_control.max_prefix_kl, None
        if limit is not None:
            cut = core_algos.past_kl_limit(
                data.old_log_probs, data.behavior_log_probs, prefix_mask=data.prefix_mask, max_kl=limit
            )
            metrics["soup/prefix_tokens_cut_share"] = float(cut.sum() / data.prefix_mask.sum().clamp(min=1))
        batches.write_prefix_fields(batch, data, objective, untrained=cut)
        return objective.weight(data.old_log_probs, data.behavior_log_probs, cap=self._soup.decoupled_weight_cap)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.before_update(self.global_steps)
            shaped = self._soup.prefix_objective == "shaped"
            batch.extra_info[SHAPED_GAMMA] = self._soup.shaped_gamma if shaped else 0.0
            batch.extra_info[PREFIX_CORRECTION] = self._soup.prefix_correction
        batch = super()._update_actor(batch, metrics)
        prefix = f"actor/{SUM_PREFIX}"
        sums = {key.removeprefix(prefix): metrics.pop(key) for key in list(metrics) if key.startswith(prefix)}
        if sums:
            metrics.update(finish_update_metrics(sums))
        self._count_skipped_updates(metrics)
        return batch

    def _count_skipped_updates(self, metrics: dict) -> None:
        skipped = max(self.actor_rollout_wg.take_skipped_updates())
        metrics["soup/skipped_updates_total"] = float(skipped)
        self._skipped_steps = self._skipped_steps + 1 if skipped else 0
        if self._skipped_steps >= self._soup.max_skipped_steps:
            raise GradientsNotFinite(self._skipped_steps, self.global_steps)

    def on_step_end(self) -> None:
        if self._source:
            with marked_timer("prefix", self.timing_raw, color="purple"):
                self._source.after_update(self.global_steps)
        super().on_step_end()

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

    # ------------------------------ checkpoints ------------------------------

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        try:
            super()._save_checkpoint()
            self._save_history(folder)
        except Exception as error:
            raise checkpoint.CheckpointNotWritten(folder, getattr(error, "cause", None) or error) from error
        checkpoint.prune(folder)

    def _save_history(self, folder: Path) -> None:
        checkpoint.write(
            folder,
            state={
                "step": self.global_steps,
                "settings": self._settings,
                "low_kl_steps": self._collapse.low_steps,
            },
            write_history=self._write_history,
            include_verl=not self.config.actor_rollout_ref.actor.get("checkpoint", {}).get("async_save", False),
        )

    def _write_history(self, folder: Path) -> None:
        if self._source:
            self._source.save(folder)
            (folder / SOLVED_RATES).write_text(json.dumps(self._solved.rates))

    def _load_checkpoint(self) -> None:
        folder = resume.checkpoint_to_resume(self.config.trainer)
        state = None
        if folder is not None:
            resume.check_weights(folder, self.config)
            state = self._stored_state(folder)
        with resume.only_from(folder, self.config.trainer):
            super()._load_checkpoint()
        if folder is not None and state is not None:
            assert self._source is not None
            self._collapse.low_steps = state["low_kl_steps"]
            self._solved.rates.update(json.loads((folder / checkpoint.FOLDER / SOLVED_RATES).read_text()))
            self._source.load(folder / checkpoint.FOLDER)

    def _stored_state(self, folder: Path) -> dict[str, Any] | None:
        """What the checkpoint says of its history; None if this run or the checkpoint has none.

        A run that goes on by itself must be the same run; a checkpoint that was asked for by name may start another.
        """
        state = checkpoint.read_state(folder) if (folder / checkpoint.FOLDER).exists() else None
        named = self.config.trainer.resume_mode == "resume_path"
        has_history = state is not None and resume.mixes(state["settings"])
        if state is not None and not (named and (self._source is None or not has_history)):
            resume.check_settings(folder, state["settings"], self._settings, history_only=named)
        if self._source and not has_history:
            logger.warning("%s has no history of SOUP: it starts anew", folder)
        return state if self._source and has_history else None


def _schedule(start: float, settings: ScheduleConfig, last_step: int) -> Schedule:
    return Schedule(start, settings.final, settings.steps or last_step, settings.shape)
