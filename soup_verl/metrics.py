"""Every `soup/*` metric: pure functions of tensors, one place for each definition.

A response token belongs to one of three segments:
    prefix        sampled by a historical policy
    continuation  the rest of a mixed response
    onpolicy      a response without a prefix
Token metrics of an empty segment are left out rather than reported as 0 or NaN. The README's glossary has each key's
meaning and unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soup_verl import core_algos

SEGMENTS = ("prefix", "continuation", "onpolicy")


def segment_masks(response_mask: Tensor, prefix_mask: Tensor) -> dict[str, Tensor]:
    """Boolean masks of the three segments, each (batch, response_length); together they are `response_mask`."""
    trained, prefix = response_mask.bool(), prefix_mask.bool()
    mixed_row = prefix.any(dim=-1, keepdim=True)
    return {
        "prefix": trained & prefix,
        "continuation": trained & mixed_row & ~prefix,
        "onpolicy": trained & ~mixed_row,
    }


# ---- while the actor is updated: sums over a micro-batch, added up across micro-batches, ranks and mini-batches ----


def update_sums(
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    prefix_mask: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float,
) -> dict[str, float]:
    """Sums (and one maximum) a segment of one micro-batch, for `finish_update_metrics`.

    All tensors are (batch, response_length); `old_log_probs` is what the loss takes its ratio against.
    """
    ratio = core_algos.token_ratio(log_probs, old_log_probs)
    lost = core_algos.zero_gradient_mask(
        ratio, advantages, clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c
    )
    dual = (advantages < 0) & (ratio > clip_ratio_c)
    kl = core_algos.kl_k3(log_probs, old_log_probs)
    size = advantages.abs()
    sums: dict[str, Tensor] = {}
    for segment, mask in segment_masks(response_mask, prefix_mask).items():
        r = torch.where(mask, ratio, 0.0)  # not ratio[mask]: whose size the host would have to wait for
        sums |= {
            f"{segment}_tokens": mask.sum(),
            f"{segment}_ratio": r.sum(),
            f"{segment}_ratio_max": r.amax() if r.numel() else r.sum(),
            f"{segment}_kl": torch.where(mask, kl, 0.0).sum(),
            f"{segment}_clipped": (mask & lost).sum(),
            f"{segment}_dual_clipped": (mask & dual).sum(),
            f"{segment}_gradient": torch.where(mask, size, 0.0).sum(),
            f"{segment}_gradient_lost": torch.where(mask & lost, size, 0.0).sum(),
        }
    values = torch.stack([value.double() for value in sums.values()]).tolist()  # the one wait for the device
    return dict(zip(sums, values, strict=True))


def finish_update_metrics(sums: dict[str, float]) -> dict[str, float]:
    """`soup/<segment>_ratio_*`, `_update_kl_k3`, `_clip_fraction`, `_dual_clip_fraction`, `_gradient_lost_share`."""
    metrics: dict[str, float] = {}
    for segment in SEGMENTS:
        tokens = sums[f"{segment}_tokens"]
        if tokens == 0:
            continue
        metrics |= {
            f"soup/{segment}_ratio_mean": sums[f"{segment}_ratio"] / tokens,
            f"soup/{segment}_ratio_max": sums[f"{segment}_ratio_max"],
            f"soup/{segment}_update_kl_k3": sums[f"{segment}_kl"] / tokens,
            f"soup/{segment}_clip_fraction": sums[f"{segment}_clipped"] / tokens,
            f"soup/{segment}_dual_clip_fraction": sums[f"{segment}_dual_clipped"] / tokens,
        }
        if sums[f"{segment}_gradient"] > 0:
            share = sums[f"{segment}_gradient_lost"] / sums[f"{segment}_gradient"]
            metrics[f"soup/{segment}_gradient_lost_share"] = share
    return metrics


# ---- once a step, before the update ----


@dataclass(frozen=True)
class StepBatch:
    """One step's responses, padding rows taken out. Tensors are (batch, response_length) unless said otherwise.

    Args:
        uids: prompt of each row.
        response_mask, prefix_mask: 0/1.
        policy_version: (batch,) version of the prefix's policy; -1 for an on-policy response.
        current_version: version of the policy that sampled everything else.
        behavior_log_probs: as the rollout engine reported them.
        old_log_probs: recomputed by the trainer under the current policy; None if it was not (bypass_mode).
        entropy: per token in nats, of the current policy; None if it was not computed.
        rewards: (batch,).
        solved: (batch,) boolean.
        answers: (batch,) final answers, or None where the reward function does not report `pred`.
    """

    uids: Sequence[Hashable]
    response_mask: Tensor
    prefix_mask: Tensor
    policy_version: Tensor
    current_version: int
    behavior_log_probs: Tensor | None
    old_log_probs: Tensor | None
    entropy: Tensor | None
    rewards: Tensor
    solved: Tensor
    answers: Sequence[Hashable] | None

    @property
    def is_mixed(self) -> Tensor:
        """(batch,) boolean."""
        return self.prefix_mask.bool().any(dim=-1)


def step_metrics(batch: StepBatch) -> dict[str, float]:
    """All `soup/*` metrics that are known before the update."""
    return {
        **_counts(batch),
        **_entropy_by_segment(batch),
        **_prefix_divergence(batch),
        **_rewards_by_kind(batch),
        **_prompts_by_kind(batch),
        **_alignment(batch),
    }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _counts(batch: StepBatch) -> dict[str, float]:
    masks = segment_masks(batch.response_mask, batch.prefix_mask)
    total = batch.response_mask.bool().sum().item()
    metrics: dict[str, float] = {f"soup/{name}_tokens_total": mask.sum().item() for name, mask in masks.items()}
    metrics["soup/mixed_responses_share"] = _mean(batch.is_mixed)
    metrics["soup/prefix_tokens_share"] = metrics["soup/prefix_tokens_total"] / max(total, 1)
    if batch.is_mixed.any():
        length = batch.prefix_mask.bool()[batch.is_mixed].sum(dim=-1)
        age = batch.current_version - batch.policy_version[batch.is_mixed]
        for noun, values in (("prefix_length", length), ("policy_age", age)):
            metrics[f"soup/{noun}_mean"] = _mean(values)
            metrics[f"soup/{noun}_min"] = float(values.min())
            metrics[f"soup/{noun}_max"] = float(values.max())
    return metrics


def _entropy_by_segment(batch: StepBatch) -> dict[str, float]:
    if batch.entropy is None:
        return {}
    masks = segment_masks(batch.response_mask, batch.prefix_mask)
    return {f"soup/{name}_entropy_mean": _mean(batch.entropy[mask]) for name, mask in masks.items() if mask.any()}


def _prefix_divergence(batch: StepBatch) -> dict[str, float]:
    if batch.old_log_probs is None or batch.behavior_log_probs is None:
        return {}
    mask = segment_masks(batch.response_mask, batch.prefix_mask)["prefix"]
    if not mask.any():
        return {}
    current, behavior = batch.old_log_probs[mask], batch.behavior_log_probs[mask]
    ratio = core_algos.token_ratio(current, behavior)
    return {
        "soup/prefix_kl_k1": _mean(core_algos.kl_k1(current, behavior)),
        "soup/prefix_kl_k3": _mean(core_algos.kl_k3(current, behavior)),
        "soup/prefix_effective_sample_share": core_algos.effective_sample_share(ratio, torch.ones_like(ratio)).item(),
    }


def prefix_kl_by_age(batch: StepBatch) -> dict[int, tuple[float, int]]:
    """Policy age in steps -> (mean k3 of its prefix tokens in nats, their number); empty where it is not known."""
    if batch.old_log_probs is None or batch.behavior_log_probs is None:
        return {}
    mask = segment_masks(batch.response_mask, batch.prefix_mask)["prefix"]
    ages = batch.current_version - batch.policy_version
    found = {}
    for age in sorted(set(ages[batch.is_mixed].tolist())):
        tokens = mask & (ages == age).unsqueeze(-1)
        k3 = core_algos.kl_k3(batch.old_log_probs[tokens], batch.behavior_log_probs[tokens])
        found[int(age)] = (_mean(k3), k3.numel())
    return found


def prefix_kl_metrics(kl_by_age: dict[int, tuple[float, int]]) -> dict[str, float]:
    """`soup/prefix_kl_k3_age_A_B`: mean over prefix tokens whose policy is A to B steps old, A and B powers of two."""
    sums: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for age, entry in kl_by_age.items():
        low = 1 << (max(age, 1).bit_length() - 1)
        sums[low, 2 * low - 1].append(entry)
    return {
        f"soup/prefix_kl_k3_age_{low}_{high}": sum(kl * n for kl, n in entries) / sum(n for _, n in entries)
        for (low, high), entries in sums.items()
    }


def _rewards_by_kind(batch: StepBatch) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, rows in (("mixed", batch.is_mixed), ("onpolicy", ~batch.is_mixed)):
        if rows.any():
            metrics[f"soup/{name}_reward_mean"] = _mean(batch.rewards[rows])
            metrics[f"soup/{name}_solved_rate"] = _mean(batch.solved[rows])
    return metrics


def _prompts_by_kind(batch: StepBatch) -> dict[str, float]:
    """Share of prompts by who solved them, and distinct final answers a prompt."""
    solved: dict[Hashable, list[tuple[bool, bool]]] = defaultdict(list)
    for uid, mixed, right in zip(batch.uids, batch.is_mixed.tolist(), batch.solved.tolist(), strict=True):
        solved[uid].append((mixed, right))
    count = len(solved)
    none = sum(not any(right for _, right in rows) for rows in solved.values())
    everyone = sum(all(right for _, right in rows) for rows in solved.values())
    solvers = [{mixed for mixed, right in rows if right} for rows in solved.values()]
    kinds = [{mixed for mixed, _ in rows} for rows in solved.values()]
    both = [s for s, k in zip(solvers, kinds, strict=True) if len(k) == 2]
    metrics = {
        "soup/prompts_solved_by_none_share": none / count,
        "soup/prompts_solved_by_all_share": everyone / count,
    }
    if both:
        metrics["soup/prompts_solved_only_mixed_share"] = sum(s == {True} for s in both) / len(both)
        metrics["soup/prompts_solved_only_onpolicy_share"] = sum(s == {False} for s in both) / len(both)
    if batch.answers is not None:
        distinct: dict[Hashable, set[Hashable]] = defaultdict(set)
        for uid, answer in zip(batch.uids, batch.answers, strict=True):
            distinct[uid].add(answer)
        metrics["soup/distinct_answers_mean"] = sum(map(len, distinct.values())) / len(distinct)
    return metrics


def _alignment(batch: StepBatch) -> dict[str, float]:
    """Rollout engine against trainer on tokens of the current policy, whose log-probs are the engine's in any case.

    Both have the same weights there, so whatever differs is numerics: as the largest and mean difference in nats, and
    as the noise floor of the prefix KL, the k3 that two equal policies seem to be apart.
    """
    if batch.old_log_probs is None or batch.behavior_log_probs is None:
        return {}
    own = batch.response_mask.bool() & ~batch.prefix_mask.bool()
    if not own.any():
        return {}
    trainer, engine = batch.old_log_probs[own], batch.behavior_log_probs[own]
    error = (trainer - engine).abs()
    return {
        "soup/alignment_error_max": error.max().item(),
        "soup/alignment_error_mean": _mean(error),
        "soup/noise_floor_kl_k3": _mean(core_algos.kl_k3(trainer, engine)),
    }
