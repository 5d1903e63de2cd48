"""One training step of SOUP, whole, in one process: read `Simulation.step` first.

What SOUP decides is in `soup_verl.method`, for this instrument and for the real stack alike. What verl, vLLM and FSDP
do in a real run is done here in plain PyTorch; the comments in `step` name who does it there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks import sampling, verls
from benchmarks.domains import compute_score
from benchmarks.plain_engine import PlainEngine, PromptOrder
from benchmarks.policy import Prompts, Shape, Weights, read_weights, response_logits
from benchmarks.run_inputs import Assets, RunSettings
from benchmarks.sampling import Given, Sampled
from benchmarks.update import Aggregate, LossTensors, masked_mean, token_scores, with_bonuses
from soup_verl.method import metrics, step_size
from soup_verl.method.config import SoupConfig
from soup_verl.method.down_sampling import trained_rows
from soup_verl.method.history import GroupPrefixes, PolicyResponse, build_source
from soup_verl.method.observation import History
from soup_verl.method.policy_losses import LossTokens, loss_of_tokens
from soup_verl.method.sections import SQUARED_LOSSES
from soup_verl.method.step import InLoss, advantages, moved_with_policy, plan_of_run, trained_tokens
from soup_verl.method.step_batch import StepBatch

MEASURED = "measured/"
"""Sums for `metrics.finish_measured`, beside those for `finish_update_metrics`."""


@dataclass(frozen=True)
class Rollout:
    """Responses to one batch.

    Args:
        ids: (batch, response_length) tokens, padded at the end up to the longest response.
        batch: everything else; the policy's own log-probs are not computed yet.
    """

    ids: Tensor
    batch: StepBatch


def known(values: Tensor | None) -> Tensor:
    """What a `StepBatch` may lack and here never does."""
    assert values is not None
    return values


def joined_updates(parts: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step's updates: verl's as means, the sums of `metrics` finished."""
    of_actor = {key for key in parts[0] if key.startswith("actor/")}
    found = {key: sum(part[key] for part in parts) / len(parts) for key in sorted(of_actor)}
    sums = {
        key: (max if key.endswith("_max") else sum)(part[key] for part in parts) for key in parts[0].keys() - of_actor
    }
    measured = {key.removeprefix(MEASURED): sums.pop(key) for key in list(sums) if key.startswith(MEASURED)}
    found |= metrics.finish_measured(measured)
    if "onpolicy_clipped" not in sums:
        return found
    tokens, clipped, dual = (
        sum(sums[f"{segment}_{noun}"] for segment in metrics.SEGMENTS) for noun in ("tokens", "clipped", "dual_clipped")
    )
    found["actor/pg_clipfrac"] = (clipped - dual) / tokens  # verl counts the dual clip apart
    found["actor/pg_clipfrac_lower"] = dual / tokens
    return found | metrics.finish_update_metrics(sums)


class Simulation:
    """One run.

    Args:
        assets: task and model.
        settings: the run's.
    """

    def __init__(self, assets: Assets, settings: RunSettings):
        self.assets, self.settings = assets, settings
        self.soup = SoupConfig.parse(settings.soup | {"seed": settings.seed})
        self.shape = Shape.read(assets.folder / "model")
        self.initial = read_weights(assets.folder / "model")
        self.weights: Weights = {k: w.clone().requires_grad_() for k, w in self.initial.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.999), fused=True
        )
        length, steps = assets.response_length, settings.steps
        planner = plan_of_run(self.soup, n=settings.n, response_length=length, last_step=steps)
        self.history = History(self.soup, planner)
        self.engine = self._build_engine()
        if self.soup.mixing:
            self.history.source = build_source(self.soup, self.engine, response_length=length, last_step=steps)
            self.history.source.before_first_step(1)

    def _build_engine(self) -> PlainEngine:
        assets, settings = self.assets, self.settings
        return PlainEngine(
            weights=self.weights,
            shape=self.shape,
            prompts=[row["ids"] for row in assets.train],
            order=PromptOrder(settings.seed, len(assets.train), settings.prompts),
            planner=self.history.planner,
            solved=self.history.solved,
            response_length=assets.response_length,
            temperature=settings.temperature,
            seed=settings.seed,
            grad_clip=settings.grad_clip,
        )

    # ---- one step ----

    def step(self, step: int) -> dict[str, float]:
        """Train on one batch; returns its metrics. Comments say who does this in a real run."""
        started = time.perf_counter()
        source = self.history.source
        groups = source.prefixes(step) if source else None  # SoupTrainer._next_train_batch
        if source:
            source.after_submit(step)  # SoupTrainer._submit_batch_to_rollout: `lookahead` asks for later prefixes
        sampled = self.roll_out(step, groups)  # verl's agent loops, SessionClient and vLLM; its reward loop
        if source:
            source.before_sleep()  # SoupTrainer.on_sample_end
        generated = time.perf_counter()
        rollout = self._down_sampled(step, sampled)  # SoupTrainer._balance_batch

        prompts, one_update = self.engine.padded(step), self.settings.mini_batches == 1
        with torch.set_grad_enabled(one_update):  # then the same forward pass serves twice
            scored = self._scored(prompts, rollout.ids)  # verl's _compute_old_log_prob
        old_log_probs, entropy = (x.detach() for x in scored)
        batch = replace(rollout.batch, old_log_probs=old_log_probs, entropy=entropy, recomputed=True)
        found = self._observe(batch, sampled)  # SoupTrainer._observe
        tensors = self._loss_tensors(prompts, rollout.ids, batch)  # SoupTrainer._compute_advantage
        if source:
            source.before_update(step)  # SoupTrainer._update_actor
        self._step_sizes: list[tuple[float, float]] = []
        if one_update:
            parts = [self._optimize(scored, tensors, batch)]  # verl's actor with SegmentLoss
        else:
            parts = [self._optimize_part(prompts, rollout.ids, tensors, batch, part) for part in self._parts()]
        self.engine.version = step
        if source:
            source.after_update(step)  # SoupTrainer.on_step_end: `snapshot` keeps weights, samples the next prefixes
        found |= joined_updates(parts) | metrics.step_size_metrics(self._step_sizes)
        found["timing_s/gen"], found["timing_s/step"] = generated - started, time.perf_counter() - started
        return found

    def roll_out(self, step: int, groups: list[GroupPrefixes] | None) -> Rollout:
        """Responses to the batch of `step`, each from its prefix on, with rewards."""
        rows, length = self.settings.prompts * self.settings.n, self.assets.response_length
        nothing = Given.nothing(rows, length)
        ids, lengths, limits = nothing.ids.clone(), nothing.lengths.clone(), nothing.limits.clone()
        given_log_probs, version = torch.zeros(rows, length), torch.full((rows, length), -1)
        for i, group in enumerate(groups or ()):
            for session, prefix in group.by_session.items():
                row, end = i * self.settings.n + session, len(prefix)
                ids[row, :end] = torch.tensor(prefix.token_ids)
                given_log_probs[row, :end] = torch.tensor(prefix.log_probs)
                version[row, prefix.head : end] = prefix.policy_version
                lengths[row], limits[row] = end, end if prefix.complete else length
        sampled = self.engine.sample_rows(step, Given(ids, lengths, limits), "responses")
        is_given = torch.arange(length) < lengths[:, None]
        behavior = torch.where(is_given, given_log_probs, sampled.log_probs)
        scores = self._scores(step, sampled)
        rewards = torch.tensor([score["score"] for score in scores])
        used = slice(0, int(sampled.lengths.max()))
        batch = StepBatch(
            uids=[key for key in self.engine.token_keys(step) for _ in range(self.settings.n)],
            response_mask=sampled.mask[:, used],
            prefix_mask=version[:, used] >= 0,
            policy_version=version[:, used],
            current_version=step - 1,
            behavior_log_probs=behavior[:, used],
            old_log_probs=behavior[:, used],
            recomputed=False,
            entropy=None,
            rewards=rewards,
            solved=rewards == 1.0,
            answers=[str(score["pred"]) for score in scores],
        )
        return Rollout(sampled.ids[:, used], batch)

    def _scores(self, step: int, sampled: Sampled) -> list[dict[str, float | str]]:
        questions = [self.assets.train[i]["question"] for i in self.engine.order.batch(step)]
        rows = sampled.ids.tolist()
        texts = [
            sampling.text_of(row[:length], self.assets.tokens, self.shape.end_token)
            for row, length in zip(rows, sampled.lengths.tolist(), strict=True)
        ]
        return [compute_score(self.assets.task, text, questions[i // self.settings.n]) for i, text in enumerate(texts)]

    def _down_sampled(self, step: int, sampled: Rollout) -> Rollout:
        """The responses that are trained on."""
        rows = trained_rows(
            sampled.batch.rewards.tolist(),
            [row // self.settings.n for row in range(len(sampled.ids))],
            train_on=self.soup.down_sampling.train_on,
            choice=self.soup.down_sampling.choice,
            seed=self.soup.seed,
            step=step,
        )
        return Rollout(sampled.ids[rows], sampled.batch.rows(rows))

    def _scored(self, prompts: Prompts, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the response tokens, (batch, response_length)."""
        logits = response_logits(self.weights, self.shape, prompts, ids, copies=self.settings.trained)
        return token_scores(logits, ids, self.settings.temperature)

    def _observe(self, batch: StepBatch, sampled: Rollout) -> dict[str, float]:
        """Metrics of the batch; the source is told what it says."""
        found, _ = self.history.observe(
            batch,
            key_of_uid={uid: str(uid) for uid in batch.uids},
            responses=lambda: self._responses(sampled.ids, sampled.batch),
            sampled=sampled.batch,
        )
        return found | {
            "critic/score/mean": sampled.batch.rewards.mean().item(),
            "critic/score/std": sampled.batch.rewards.std().item(),
            "response_length/mean": sampled.batch.response_mask.sum(dim=-1).double().mean().item(),
            "actor/entropy": masked_mean(known(batch.entropy), batch.response_mask).item(),
        }

    def _responses(self, ids: Tensor, batch: StepBatch) -> Sequence[PolicyResponse]:
        """The responses without historical tokens, their end tokens kept apart; empty ones are left out."""
        found = []
        for row, (uid, length) in enumerate(zip(batch.uids, batch.response_mask.sum(dim=-1).tolist(), strict=True)):
            own = ids[row, :length].numpy().astype(np.int32)
            log_probs = known(batch.behavior_log_probs)[row, :length].numpy().astype(np.float32)
            ended = bool(own[-1] == self.shape.end_token)
            end_token, end_log_prob = (int(own[-1]), float(log_probs[-1])) if ended else (None, None)
            kept = slice(length - ended)
            if not batch.is_mixed[row] and length > ended:
                tokens = (str(uid), own[kept], log_probs[kept])
                facts = (batch.current_version, batch.rewards[row].item(), ended)
                solved = bool(batch.solved[row])
                found.append(PolicyResponse(*tokens, *facts, end_token, end_log_prob, solved=solved))
        return found

    def _loss_tensors(self, prompts: Prompts, ids: Tensor, batch: StepBatch) -> LossTensors:
        """What the loss reads before the policy moves."""
        tokens, _ = trained_tokens(batch, self.soup)
        reference = self._reference(prompts, ids)
        if self.settings.adv_estimator is not None:
            named, mask = self.settings.adv_estimator, tokens.response_mask
            of_verl = verls.advantages(named, batch.rewards, batch.uids, mask, norm_by_std=self.settings.norm_by_std)
            return LossTensors(tokens.old_log_probs, of_verl, mask, reference)
        of_tokens = advantages(
            batch.rewards,
            batch.uids,
            tokens.response_mask,
            versions=batch.response_version.tolist(),
            baseline=self.soup.baseline,
            norm_by_std=self.settings.norm_by_std,
            prefix_mask=batch.prefix_mask,
            prefix_weight=tokens.prefix_weight,
            log_ratio=tokens.log_ratio,
            policy_loss=self.soup.policy_loss,
        )
        return LossTensors(tokens.old_log_probs, of_tokens, tokens.response_mask, reference)

    @torch.no_grad()
    def _reference(self, prompts: Prompts, ids: Tensor) -> Tensor | None:
        if self.settings.loss.kl_loss_coef == 0:
            return None
        logits = response_logits(self.initial, self.shape, prompts, ids, copies=self.settings.trained)
        return token_scores(logits, ids, self.settings.temperature)[0]

    # ---- an update ----

    def _parts(self) -> list[slice]:
        """The prompts of each mini-batch."""
        share = self.settings.prompts // self.settings.mini_batches
        return [slice(start, start + share) for start in range(0, self.settings.prompts, share)]

    def _optimize_part(
        self, prompts: Prompts, ids: Tensor, tensors: LossTensors, batch: StepBatch, some: slice
    ) -> dict[str, float]:
        """The update of a mini-batch."""
        rows = slice(some.start * self.settings.trained, some.stop * self.settings.trained)
        prompts = Prompts(prompts.ids[some], prompts.mask[some])
        scored = self._scored(prompts, ids[rows])
        return self._optimize(scored, tensors.rows(rows), batch.rows(range(rows.start, rows.stop)))

    def _optimize(self, scored: tuple[Tensor, Tensor], tensors: LossTensors, batch: StepBatch) -> dict[str, float]:
        """One step of AdamW; returns verl's actor metrics and sums for `joined_updates`."""
        log_probs, entropy = scored
        moved = moved_with_policy(
            log_probs.detach(),
            tensors.old_log_probs,
            tensors.advantages,
            prefix_mask=batch.prefix_mask,
            behavior_log_probs=known(batch.behavior_log_probs),
            settings=InLoss.of(self.soup),
        )
        tensors = replace(tensors, old_log_probs=moved.old_log_probs, advantages=moved.advantages)
        settings, own = self.settings.loss, self.soup.policy_loss
        aggregate = settings.aggregate(squared=own.name in SQUARED_LOSSES)
        loss, measured, of_loss = self._policy_loss(log_probs, tensors, batch, aggregate)
        loss, found = with_bonuses(loss, log_probs, entropy, tensors, settings, aggregate)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.grad_clip)
        self._scale_rate(log_probs.detach(), batch)
        self.optimizer.step()
        found |= of_loss | {"actor/grad_norm": norm.item()}
        if measured := moved.measured | measured:
            of_parts = metrics.measured_sums(measured, trained=tensors.mask, prefix_mask=batch.prefix_mask)
            found |= {MEASURED + key: value for key, value in of_parts.items()}
        if own.name or settings.mode:  # what "clipped" means is the clip's rule
            return found
        return found | metrics.update_sums(
            log_probs=log_probs.detach(),
            old_log_probs=tensors.old_log_probs,
            advantages=tensors.advantages,
            response_mask=tensors.mask,
            prefix_mask=batch.prefix_mask,
            clip_ratio_low=settings.clip_ratio_low,
            clip_ratio_high=settings.clip_ratio_high,
            clip_ratio_c=settings.clip_ratio_c,
        )

    def _policy_loss(
        self, log_probs: Tensor, tensors: LossTensors, batch: StepBatch, aggregate: Aggregate
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
        """The loss of a mini-batch, what is measured of each token, and metrics of verl's own."""
        settings = self.settings.loss
        if settings.mode is not None:
            loss, found = verls.policy_loss(
                log_probs, tensors.old_log_probs, tensors.advantages, tensors.mask.bool(), settings
            )
            return loss, {}, found
        tokens = LossTokens(
            log_probs,
            tensors.old_log_probs,
            tensors.advantages,
            tensors.mask.bool(),
            prefix_mask=batch.prefix_mask,
            behavior_log_probs=known(batch.behavior_log_probs),
        )
        of_tokens = loss_of_tokens(tokens, self.soup.policy_loss, settings.clip)
        return aggregate(of_tokens.loss, tensors.mask), of_tokens.measured, {}

    def _scale_rate(self, log_probs: Tensor, batch: StepBatch) -> None:
        """Set the learning rate of the update as `soup.step_size` has it; in a real run the actor's worker does."""
        rule = self.soup.step_size
        if rule.rule == "none" or not self.soup.mixing:
            return
        sums = step_size.log_sums(log_probs, known(batch.behavior_log_probs), prefix_mask=batch.prefix_mask)
        share = step_size.effective_share(sums)
        factor = step_size.scale(share, rule=rule.rule, rho_base=rule.rho_base)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        if share is not None:
            self._step_sizes.append((share, factor))
