"""Every `soup/*` metric: pure functions of tensors, one place for each definition.

A response token belongs to one of three segments:
    prefix        sampled by a historical policy
    continuation  the rest of a mixed response
    onpolicy      a response without a prefix
and, where updates interrupt responses (`soup.source=inflight`), to a fourth:
    stale         a response without a token of the current policy
Token metrics of an empty segment are left out rather than reported as 0 or NaN. docs/metrics.md has each key's
meaning and unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from soup_verl.method import core_algos
from soup_verl.method.mixing import UNLEARNED
from soup_verl.method.step_batch import StepBatch

SEGMENTS = ("prefix", "continuation", "onpolicy")
STALE = "stale"


def segment_masks(response_mask: Tensor, prefix_mask: Tensor, *, stale_apart: bool = False) -> dict[str, Tensor]:
    """Boolean masks of the segments, each (batch, response_length); together they are `response_mask`.

    Args:
        stale_apart: whether wholly historical responses are `stale`; else they are `prefix`, and there are three.
    """
    trained, prefix = response_mask.bool(), prefix_mask.bool()
    mixed_row = prefix.any(dim=-1, keepdim=True)
    masks = {
        "prefix": trained & prefix,
        "continuation": trained & mixed_row & ~prefix,
        "onpolicy": trained & ~mixed_row,
    }
    if stale_apart:
        has_own = masks["continuation"].any(dim=-1, keepdim=True)
        masks["prefix"], masks[STALE] = masks["prefix"] & has_own, masks["prefix"] & ~has_own
    return masks


def _segments(batch: StepBatch) -> dict[str, Tensor]:
    return segment_masks(batch.response_mask, batch.prefix_mask, stale_apart=batch.stale_apart)


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
    stale_apart: bool = False,
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
    for segment, mask in segment_masks(response_mask, prefix_mask, stale_apart=stale_apart).items():
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
    for segment in (*SEGMENTS, STALE):
        tokens = sums.get(f"{segment}_tokens", 0)
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


def step_size_metrics(step_sizes: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Means over the updates of a step, given as (effective share, factor on the learning rate)."""
    if not step_sizes:
        return {}
    shares, factors = zip(*step_sizes, strict=True)
    return {"soup/step_size_share_mean": fmean(shares), "soup/step_size_factor_mean": fmean(factors)}


def measured_sums(
    measured: dict[str, Tensor], *, trained: Tensor, prefix_mask: Tensor, stale_apart: bool = False
) -> dict[str, float]:
    """Sums a segment of what a policy loss measured on one micro-batch, for `finish_measured`.

    Args:
        measured: noun -> (batch, response_length).
        trained, prefix_mask: (batch, response_length), 1 on tokens of the loss, and on those of a historical policy.
        stale_apart: as for `segment_masks`.
    """
    sums: dict[str, Tensor] = {}
    for segment, mask in segment_masks(trained, prefix_mask, stale_apart=stale_apart).items():
        sums[f"{segment}_tokens"] = mask.sum()
        for noun, of_tokens in measured.items():
            sums[f"{segment}_{noun}"] = torch.where(mask, of_tokens.double(), 0.0).sum()
    values = torch.stack([value.double() for value in sums.values()]).tolist()  # the one wait for the device
    return dict(zip(sums, values, strict=True))


def finish_measured(sums: dict[str, float]) -> dict[str, float]:
    """`soup/<segment>_<noun>`: means over the trained tokens of the segment, over all of a step's updates."""
    return {
        f"soup/{key}": value / tokens
        for key, value in sums.items()
        if not key.endswith("_tokens") and (tokens := sums[f"{key.partition('_')[0]}_tokens"]) > 0
    }


# ---- once a step, before the update ----


def step_metrics(batch: StepBatch, sampled: StepBatch | None = None) -> dict[str, float]:
    """All `soup/*` metrics that are known before the update.

    Args:
        batch: the responses that are trained on; what reads the trainer's log-probs or entropy is over them.
        sampled: every response, where not all are trained on; counts, lengths, rewards and answers are over them.
    """
    sampled = batch if sampled is None else sampled
    return {
        **_counts(sampled),
        **_entropy_by_segment(batch),
        **_historical_divergence(batch),
        **_rewards_by_kind(sampled),
        **_prompts_by_kind(sampled),
        **_alignment(batch),
    }


def dropped(batch: StepBatch, sampled: StepBatch) -> dict[str, float]:
    """Responses that were sampled and are not trained on, and their tokens, prefixes included."""
    tokens, trained = (responses.response_mask.bool().sum().item() for responses in (sampled, batch))
    return {
        "soup/dropped_responses_total": float(len(sampled.uids) - len(batch.uids)),
        "soup/dropped_tokens_total": float(tokens - trained),
    }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _counts(batch: StepBatch) -> dict[str, float]:
    masks = _segments(batch)
    total = batch.response_mask.bool().sum().item()
    metrics: dict[str, float] = {f"soup/{name}_tokens_total": mask.sum().item() for name, mask in masks.items()}
    mixed = batch.is_mixed
    if batch.stale_apart:
        mixed = mixed & ~batch.is_stale
        metrics["soup/stale_responses_share"] = _mean(batch.is_stale)
        metrics["soup/stale_tokens_share"] = metrics["soup/stale_tokens_total"] / max(total, 1)
    metrics["soup/mixed_responses_share"] = _mean(mixed)
    metrics["soup/prefix_tokens_share"] = metrics["soup/prefix_tokens_total"] / max(total, 1)
    if batch.cut_short is not None:
        metrics["soup/prefixes_cut_short_total"] = float(batch.cut_short.sum())
    if batch.is_mixed.any():
        length = batch.prefix_mask.bool()[mixed].sum(dim=-1)
        version = batch.response_version[batch.is_mixed]
        age = batch.current_version - version[version != UNLEARNED]
        if batch.stale_apart:  # of every token: a response has several
            ages = batch.policy_age
            age = ages[ages > 0]
        for noun, values in (("prefix_length", length), ("policy_age", age)):
            if values.numel():
                metrics[f"soup/{noun}_mean"] = _mean(values)
                metrics[f"soup/{noun}_min"] = float(values.min())
                metrics[f"soup/{noun}_max"] = float(values.max())
    return metrics


def _entropy_by_segment(batch: StepBatch) -> dict[str, float]:
    if batch.entropy is None:
        return {}
    masks = _segments(batch)
    return {f"soup/{name}_entropy_mean": _mean(batch.entropy[mask]) for name, mask in masks.items() if mask.any()}


def _historical_divergence(batch: StepBatch) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, mask in _segments(batch).items():
        if name not in ("prefix", STALE) or batch.log_probs_to_compare is None or not mask.any():
            continue
        current, behavior = (log_probs[mask] for log_probs in batch.log_probs_to_compare)
        ratio = core_algos.token_ratio(current, behavior)
        effective = core_algos.effective_sample_share(ratio, torch.ones_like(ratio)).item()
        found |= {
            f"soup/{name}_kl_k1": _mean(core_algos.kl_k1(current, behavior)),
            f"soup/{name}_kl_k3": _mean(core_algos.kl_k3(current, behavior)),
            f"soup/{name}_effective_sample_share": effective,
        }
    return found


def prefix_kl_by_age(batch: StepBatch) -> dict[int, tuple[float, int]]:
    """Policy age in steps, -1 for a policy without one -> (mean k3 of its prefix tokens in nats, their number); empty
    where it is not known."""
    if batch.log_probs_to_compare is None:
        return {}
    mask = batch.response_mask.bool() & batch.prefix_mask.bool()
    ages = batch.policy_age
    found = {}
    for age in ages[mask].unique().tolist():  # in order
        tokens = mask & (ages == age)
        k3 = core_algos.kl_k3(*(log_probs[tokens] for log_probs in batch.log_probs_to_compare))
        found[int(age)] = (_mean(k3), k3.numel())
    return found


def prefix_kl_metrics(kl_by_age: dict[int, tuple[float, int]]) -> dict[str, float]:
    """`soup/prefix_kl_k3_age_A_B`: mean over prefix tokens whose policy is A to B steps old, A and B + 1 powers of two
    (0 and 0 for the current policy, where it is held). A policy without an age is left out."""
    sums: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for age, entry in kl_by_age.items():
        if age < 0:
            continue
        low = 1 << (age.bit_length() - 1) if age else 0
        sums[low, max(2 * low - 1, 0)].append(entry)
    return {
        f"soup/prefix_kl_k3_age_{low}_{high}": sum(kl * n for kl, n in entries) / sum(n for _, n in entries)
        for (low, high), entries in sums.items()
    }


def solved_rates(batch: StepBatch, *, among: Tensor | None = None) -> dict[Hashable, float]:
    """Prompt uid -> share of its responses that were right; only of the rows `among`, (batch,) boolean, if given."""
    rights: dict[Hashable, list[bool]] = defaultdict(list)
    for row, (uid, right) in enumerate(zip(batch.uids, batch.solved.tolist(), strict=True)):
        if among is None or among[row]:
            rights[uid].append(right)
    return {uid: sum(values) / len(values) for uid, values in rights.items()}


def _rewards_by_kind(batch: StepBatch) -> dict[str, float]:
    metrics: dict[str, float] = {}
    kinds = {"mixed": batch.is_mixed, "onpolicy": ~batch.is_mixed}
    if batch.stale_apart:
        kinds |= {"mixed": batch.is_mixed & ~batch.is_stale, "stale": batch.is_stale}
    for name, rows in kinds.items():
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
    own = batch.response_mask.bool() & ~batch.prefix_mask.bool()
    if batch.log_probs_to_compare is None or not own.any():
        return {}
    trainer, engine = (log_probs[own] for log_probs in batch.log_probs_to_compare)
    error = (trainer - engine).abs()
    return {
        "soup/alignment_error_max": error.max().item(),
        "soup/alignment_error_mean": _mean(error),
        "soup/noise_floor_kl_k3": _mean(core_algos.kl_k3(trainer, engine)),
    }
