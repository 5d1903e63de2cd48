"""The training step of the search instrument, in the order of `soup_verl.trainer`:

source.prefixes, source.after_submit      the prefixes of this batch; lookahead asks for later ones
Simulation.roll_out                       responses of the current policy, from their prefixes on, and rewards
Simulation.observed                       SOUP's metrics, and what the batch says about the history
Simulation.update                         loss and AdamW, by mini-batch
source.after_update                       snapshot keeps weights and samples the next prefixes
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks import sampling
from benchmarks.plain_engine import PlainEngine, PromptOrder
from benchmarks.policy import Prompts, Shape, Weights, read_weights, response_logits
from benchmarks.rewards import compute_score
from benchmarks.run_inputs import Assets, RunSettings
from benchmarks.sampling import Given, Sampled
from benchmarks.update import TrainedTokens, masked_mean, policy_loss, token_scores
from soup_verl import core_algos, metrics
from soup_verl.config import ScheduleConfig, SoupConfig
from soup_verl.history import CollapseWatch, GroupPrefixes, PolicyResponse, PrefixSource, build_source
from soup_verl.mixing import MixingPlanner, Schedule, SolvedRates


@dataclass(frozen=True)
class StepData:
    """One step's responses, padded at the end up to the longest. Tensors are (batch, response_length) unless said.

    Args:
        ids: tokens.
        mask: boolean, true on responses.
        prefix_mask: boolean, true on historical tokens.
        policy_version: (batch,) of the historical policy; -1 without.
        behavior_log_probs: of each token under the policy that sampled it.
        rewards: (batch,).
        answers: (batch,) final answers in one spelling.
    """

    ids: Tensor
    mask: Tensor
    prefix_mask: Tensor
    policy_version: Tensor
    behavior_log_probs: Tensor
    rewards: Tensor
    answers: list[str]

    def rows(self, some: slice) -> StepData:
        """A part of the batch."""
        return StepData(*(getattr(self, f.name)[some] for f in fields(self)))


def _schedule(start: float, settings: ScheduleConfig, last_step: int) -> Schedule:
    return Schedule(start, settings.final, settings.steps or last_step, settings.shape)


def build_planner(soup: SoupConfig, settings: RunSettings, response_length: int) -> MixingPlanner:
    """SOUP's plan of a run, from the same settings as the trainer's."""
    low, high = soup.prefix_length.bounds(response_length)
    return MixingPlanner(
        seed=soup.seed,
        n=settings.n,
        mixed_fraction=_schedule(soup.mixed_fraction, soup.mixed_fraction_schedule, settings.steps),
        low=low,
        high=_schedule(high, soup.prefix_length.schedule, settings.steps),
        in_shares=soup.prefix_length.unit == "share",
        position=soup.position,
        ages=soup.lookahead.ages if soup.source == "lookahead" else (0,),
    )


def joined_updates(parts: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step's updates: verl's as means, the sums of `metrics.update_sums` finished."""
    of_actor = {key for key in parts[0] if key.startswith("actor/")}
    found = {key: sum(part[key] for part in parts) / len(parts) for key in sorted(of_actor)}
    sums = {
        key: (max if key.endswith("_max") else sum)(part[key] for part in parts) for key in parts[0].keys() - of_actor
    }
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
        self.solved = SolvedRates(self.soup.when)
        kl_control = self.soup.kl_control
        self.collapse = CollapseWatch(kl_control.min_prefix_kl, kl_control.patience)
        self.engine = self._build_engine()
        self.source: PrefixSource | None = None
        if self.soup.mixing:
            self.source = build_source(
                self.soup, self.engine, response_length=assets.response_length, last_step=settings.steps
            )
            self.source.before_first_step(1)

    def _build_engine(self) -> PlainEngine:
        assets, settings = self.assets, self.settings
        return PlainEngine(
            weights=self.weights,
            shape=self.shape,
            prompts=[row["ids"] for row in assets.train],
            order=PromptOrder(settings.seed, len(assets.train), settings.prompts),
            planner=build_planner(self.soup, settings, assets.response_length),
            solved=self.solved,
            response_length=assets.response_length,
            temperature=settings.temperature,
            seed=settings.seed,
        )

    # ---- one step ----

    def step(self, step: int) -> dict[str, float]:
        """Train on one batch; returns its metrics."""
        started = time.perf_counter()
        source = self.source
        groups = source.prefixes(step) if source else None
        if source:
            source.after_submit(step)
        data = self.roll_out(step, groups)
        if source:
            source.before_sleep()
        generated = time.perf_counter()
        found = self.update(step, data)
        self.engine.version = step
        if source:
            source.after_update(step)
        found["timing_s/gen"], found["timing_s/step"] = generated - started, time.perf_counter() - started
        return found

    def roll_out(self, step: int, groups: list[GroupPrefixes] | None) -> StepData:
        """Responses to the batch of `step`, each from its prefix on, with rewards."""
        rows, length = self.settings.prompts * self.settings.n, self.assets.response_length
        nothing = Given.nothing(rows, length)
        ids, lengths, limits = nothing.ids.clone(), nothing.lengths.clone(), nothing.limits.clone()
        given_log_probs, prefix_mask = torch.zeros(rows, length), torch.zeros(rows, length, dtype=torch.bool)
        version = torch.full((rows,), -1)
        for i, group in enumerate(groups or ()):
            for session, prefix in group.by_session.items():
                row, end = i * self.settings.n + session, len(prefix)
                ids[row, :end] = torch.tensor(prefix.token_ids)
                given_log_probs[row, :end] = torch.tensor(prefix.log_probs)
                prefix_mask[row, prefix.head : end] = True
                lengths[row], limits[row] = end, end if prefix.complete else length
                if prefix.historical:
                    version[row] = prefix.policy_version
        sampled = self.engine.sample_rows(step, Given(ids, lengths, limits), "responses")
        is_given = torch.arange(length) < lengths[:, None]
        behavior = torch.where(is_given, given_log_probs, sampled.log_probs)
        scores = self._scores(step, sampled)
        rewards = torch.tensor([score["score"] for score in scores])
        used = slice(0, int(sampled.lengths.max()))
        return StepData(
            sampled.ids[:, used],
            sampled.mask[:, used],
            prefix_mask[:, used],
            version,
            behavior[:, used],
            rewards,
            [str(score["pred"]) for score in scores],
        )

    def _scores(self, step: int, sampled: Sampled) -> list[dict[str, float | str]]:
        questions = [self.assets.train[i]["question"] for i in self.engine.order.batch(step)]
        rows = sampled.ids.tolist()
        texts = [
            sampling.text_of(row[:length], self.assets.tokens, self.shape.end_token)
            for row, length in zip(rows, sampled.lengths.tolist(), strict=True)
        ]
        return [compute_score(self.assets.task, text, questions[i // self.settings.n]) for i, text in enumerate(texts)]

    def update(self, step: int, data: StepData) -> dict[str, float]:
        """Metrics, advantages, and an update for every mini-batch."""
        prompts, batches = self.engine.padded(step), self.settings.mini_batches
        with torch.set_grad_enabled(batches == 1):  # one update: the same forward pass serves twice
            scored = self._scored(prompts, data)
        old, entropy = (x.detach() for x in scored)
        found = self._observed(step, data, old, entropy)
        found["actor/entropy"] = masked_mean(entropy, data.mask).item()
        tokens = self._trained_tokens(step, data, old)
        if batches == 1:
            parts = [self._optimize(scored, tokens, data)]
        else:
            parts = [self._optimize_part(prompts, tokens, data, part) for part in range(batches)]
        return found | joined_updates(parts)

    def _scored(self, prompts: Prompts, data: StepData) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the response tokens, (batch, response_length)."""
        logits = response_logits(self.weights, self.shape, prompts, data.ids, copies=self.settings.n)
        return token_scores(logits, data.ids, self.settings.temperature)

    def _optimize_part(self, prompts: Prompts, tokens: TrainedTokens, data: StepData, part: int) -> dict[str, float]:
        """The update of mini-batch `part`."""
        share = self.settings.prompts // self.settings.mini_batches
        some = slice(part * share, (part + 1) * share)
        rows = slice(some.start * self.settings.n, some.stop * self.settings.n)
        prompts, data = Prompts(prompts.ids[some], prompts.mask[some]), data.rows(rows)
        return self._optimize(self._scored(prompts, data), tokens.rows(rows), data)

    def _optimize(self, scored: tuple[Tensor, Tensor], tokens: TrainedTokens, data: StepData) -> dict[str, float]:
        """One step of AdamW; returns verl's actor metrics and the sums of `metrics.update_sums`."""
        log_probs, entropy = scored
        loss_settings = self.settings.loss
        tokens = self._moved_with_policy(log_probs.detach(), tokens, data)
        loss, found = policy_loss(log_probs, entropy, tokens, loss_settings)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.grad_clip)
        self.optimizer.step()
        sums = metrics.update_sums(
            log_probs=log_probs.detach(),
            old_log_probs=tokens.old_log_probs,
            advantages=tokens.advantages,
            response_mask=tokens.mask,
            prefix_mask=data.prefix_mask,
            clip_ratio_low=loss_settings.clip_ratio_low,
            clip_ratio_high=loss_settings.clip_ratio_high,
            clip_ratio_c=loss_settings.clip_ratio_c,
        )
        return found | {"actor/grad_norm": norm.item()} | sums

    def _moved_with_policy(self, log_probs: Tensor, tokens: TrainedTokens, data: StepData) -> TrainedTokens:
        """What depends on the policy while it moves: `prefix_correction` and the objective `shaped`."""
        old, advantages, prefix = tokens.old_log_probs, tokens.advantages, data.prefix_mask
        if self.soup.prefix_correction == "min_prefix":
            advantages = advantages * core_algos.min_prefix_weight(
                log_probs, data.behavior_log_probs, prefix_mask=prefix
            )
        if self.soup.prefix_objective == "shaped":
            old, advantages = core_algos.shaped_tokens(
                log_probs, old, advantages, prefix_mask=prefix, gamma=self.soup.shaped_gamma
            )
        return replace(tokens, old_log_probs=old, advantages=advantages)

    def _observed(self, step: int, data: StepData, old: Tensor, entropy: Tensor) -> dict[str, float]:
        """Tell the source what the batch says; returns SOUP's metrics of it."""
        keys = self.engine.token_keys(step)
        uids = [key for key in keys for _ in range(self.settings.n)]
        batch = metrics.StepBatch(
            uids=uids,
            response_mask=data.mask,
            prefix_mask=data.prefix_mask,
            policy_version=data.policy_version,
            current_version=step - 1,
            behavior_log_probs=data.behavior_log_probs,
            old_log_probs=old,
            entropy=entropy,
            rewards=data.rewards,
            solved=data.rewards == 1.0,
            answers=data.answers,
        )
        found = metrics.step_metrics(batch)
        found["critic/score/mean"] = data.rewards.mean().item()
        found["critic/score/std"] = data.rewards.std().item()
        found["response_length/mean"] = data.mask.sum(dim=-1).double().mean().item()
        decoded = data.mask
        if self.source:
            kl_by_age = metrics.prefix_kl_by_age(batch)
            found |= metrics.prefix_kl_metrics(kl_by_age) | self.source.metrics()
            self._tell_source(step, data, uids, kl_by_age)
            decoded = decoded if self.source.decodes_prefixes else decoded & ~data.prefix_mask
        found["soup/decode_tokens_total"] = float(decoded.sum())
        return found

    def _tell_source(self, step: int, data: StepData, uids: list[str], kl_by_age: dict) -> None:
        assert self.source is not None
        for key, rates in zip(dict.fromkeys(uids), data.rewards.view(-1, self.settings.n), strict=True):
            self.solved.record(key, (rates == 1.0).double().mean().item())
        if self.source.wants_responses:
            self.source.observe_responses(self._responses(step, data, uids))
        if kl_by_age:
            tokens = sum(n for _, n in kl_by_age.values())
            self.collapse.observe(sum(kl * n for kl, n in kl_by_age.values()) / tokens)
        self.source.observe_kl({age: kl for age, (kl, _) in kl_by_age.items()}, collapsed=self.collapse.collapsed)
        self.source.before_update(step)

    def _responses(self, step: int, data: StepData, uids: list[str]) -> list[PolicyResponse]:
        """The responses without historical tokens, without their end tokens; empty ones are left out."""
        found = []
        for row, (uid, length) in enumerate(zip(uids, data.mask.sum(dim=-1).tolist(), strict=True)):
            ids = data.ids[row, :length].numpy().astype(np.int32)
            ended = bool(ids[-1] == self.shape.end_token)
            ids = ids[:-1] if ended else ids
            if data.policy_version[row] < 0 and len(ids):
                log_probs = data.behavior_log_probs[row, : len(ids)].numpy().astype(np.float32)
                found.append(PolicyResponse(uid, ids, log_probs, step - 1, data.rewards[row].item(), ended))
        return found

    def _trained_tokens(self, step: int, data: StepData, old: Tensor) -> TrainedTokens:
        """What the loss reads, as `soup_verl.trainer` and `register` prepare it."""
        objective = core_algos.PREFIX_OBJECTIVES[self.soup.prefix_objective]
        prefix, mask = data.prefix_mask, data.mask
        uids = [i for i in range(self.settings.prompts) for _ in range(self.settings.n)]
        groups = core_algos.GROUPINGS[self.soup.baseline](uids, prefix.any(dim=-1))
        advantages = core_algos.group_relative_advantage(data.rewards, groups, norm_by_std=self.settings.norm_by_std)
        weight = objective.weight(old, data.behavior_log_probs, cap=self.soup.decoupled_weight_cap)
        anchor = old
        if objective.anchor_is_behavior:
            anchor = core_algos.join_log_probs(
                prefix_mask=prefix, prefix_log_probs=data.behavior_log_probs, other_log_probs=old
            )
        trained = mask if objective.trained else mask & ~prefix
        limit = self.soup.kl_control.max_prefix_kl
        if limit is not None:
            trained = trained & ~core_algos.past_kl_limit(
                old, data.behavior_log_probs, prefix_mask=prefix, max_kl=limit
            )
        spread = core_algos.token_advantages(advantages, response_mask=mask, prefix_mask=prefix, prefix_weight=weight)
        return TrainedTokens(anchor, spread, trained, self._reference(step, data))

    @torch.no_grad()
    def _reference(self, step: int, data: StepData) -> Tensor | None:
        if self.settings.loss.kl_loss_coef == 0:
            return None
        prompts = self.engine.padded(step)
        logits = response_logits(self.initial, self.shape, prompts, data.ids, copies=self.settings.n)
        return token_scores(logits, data.ids, self.settings.temperature)[0]
