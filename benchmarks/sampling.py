"""Sampling responses, whole or from a given head on, and what the benchmarks report of many samples a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from benchmarks.domains import compute_score
from benchmarks.policy import Prompts, Reserved, Shape, Weights, hidden_states, logits_of, read_prompts
from soup_verl.method.mixing import stable_seed

POWERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Sampled:
    """Responses, padded at the end.

    Args:
        ids: (rows, response_length); the end token is part of a response.
        log_probs: (rows, response_length) of the sampled tokens under the policy at the sampling temperature, in nats;
            0 on given tokens and on padding.
        lengths: (rows,) tokens of each response, given ones included.
    """

    ids: Tensor
    log_probs: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(rows, response_length) boolean, true on the responses' tokens."""
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class Given:
    """What each response starts with, and where it must stop.

    Args:
        ids: (rows, response_length), read up to `lengths`.
        lengths: (rows,) given tokens.
        limits: (rows,) most tokens in all.
    """

    ids: Tensor
    lengths: Tensor
    limits: Tensor

    @classmethod
    def nothing(cls, rows: int, response_length: int) -> Given:
        """Whole responses."""
        none = torch.zeros(rows, dtype=torch.int64)
        return cls(none[:, None].expand(-1, response_length), none, torch.full_like(none, response_length))


@torch.no_grad()
def sample(weights: Weights, shape: Shape, prompts: Prompts, given: Given, *, temperature: float, seed: int) -> Sampled:
    """Sample from softmax(logits / temperature), all rows together, a token at a time.

    Args:
        weights, shape: the policy.
        prompts: the questions; their responses are next to each other, equally many each.
        given: what responses start with.
        temperature: above 0.
        seed: the same seed gives the same responses.
    """
    rows, length = given.ids.shape
    copies = rows // len(prompts.ids)
    past, hidden = read_prompts(weights, shape, prompts, copies=copies)
    cache = Reserved(past, length)
    mask = prompts.mask.repeat_interleave(copies, dim=0)[:, None, None, :]
    start = prompts.lengths.repeat_interleave(copies)
    generator = torch.Generator().manual_seed(seed)
    ids, log_probs = torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, length)
    lengths, active = torch.zeros(rows, dtype=torch.int64), given.limits > 0
    for t in range(int(given.limits.max())):
        scores = torch.log_softmax(logits_of(weights, hidden[:, 0]) / temperature, dim=-1)
        noise = torch.empty_like(scores).exponential_(generator=generator).log_()
        drawn = (scores - noise).argmax(dim=-1)
        is_given = t < given.lengths
        token = torch.where(is_given, given.ids[:, t], drawn)
        chosen = scores.gather(1, token[:, None])[:, 0]
        ids[:, t] = torch.where(active, token, 0)
        log_probs[:, t] = torch.where(active & ~is_given, chosen, 0.0)
        lengths += active
        active = active & (token != shape.end_token) & (t + 1 < given.limits)
        if not active.any() or t + 1 == length:
            break
        visible = torch.cat([mask, torch.ones(rows, 1, 1, t + 1, dtype=torch.bool)], dim=-1)
        hidden = hidden_states(weights, shape, token[:, None], (start + t)[:, None], visible, cache)
    return Sampled(ids, log_probs, lengths)


def text_of(ids: Sequence[int], tokens: Sequence[str], end_token: int) -> str:
    """The response as text, up to the token that ends it."""
    kept = ids[: ids.index(end_token)] if end_token in ids else ids
    return "".join(tokens[i] for i in kept)


def pad_prompts(prompts: Sequence[Sequence[int]]) -> Prompts:
    """Token ids of several prompts, padded on the left."""
    length = max(map(len, prompts))
    ids, mask = (
        torch.zeros(len(prompts), length, dtype=torch.int64),
        torch.zeros(len(prompts), length, dtype=torch.bool),
    )
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = True
    return Prompts(ids, mask)


# ---- what many samples say ----


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that one of k of the samples is right (arXiv 2107.03374)."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def summarize(valid: Sequence[Sequence[bool]], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over questions.

    Args:
        valid, answers: a row a question, equally many samples each; answers in one spelling.

    Returns:
        `pass@k` for k = 1, 2, 4 .. samples, and `distinct_valid@n`: different valid answers among a question's samples.
    """
    samples = len(valid[0])
    found = {}
    for k in (k for k in POWERS if k <= samples):
        found[f"pass@{k}"] = sum(pass_at_k(samples, sum(row), k) for row in valid) / len(valid)
    distinct = [len({a for a, ok in zip(*pair, strict=True) if ok}) for pair in zip(answers, valid, strict=True)]
    return found | {f"distinct_valid@{samples}": sum(distinct) / len(distinct)}


def evaluate(
    weights: Weights,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[str],
    *,
    task: str,
    tokens: Sequence[str],
    response_length: int,
    samples: int,
    seed: int,
    rows: int = 2048,
) -> dict[str, float]:
    """Sample every question `samples` times at temperature 1, `rows` at a time, and summarize.

    Besides `summarize`: `entropy`, the mean of -log p over sampled tokens, in nats (an unbiased estimate).
    """
    valid, answers, surprise, count = [], [], 0.0, 0
    for start in range(0, len(questions), rows // samples):
        chosen = range(start, min(start + rows // samples, len(questions)))
        out = sample(
            weights,
            shape,
            pad_prompts([prompts[i] for i in chosen]),
            Given.nothing(len(chosen) * samples, response_length),
            temperature=1.0,
            seed=stable_seed("evaluation", seed, start),
        )
        surprise, count = surprise - out.log_probs.sum().item(), count + int(out.lengths.sum())
        texts = [text_of(ids, tokens, shape.end_token) for ids in out.ids.tolist()]
        for i, question in enumerate(questions[j] for j in chosen):
            scored = [compute_score(task, text, question) for text in texts[i * samples : (i + 1) * samples]]
            valid.append([score["acc"] == 1.0 for score in scored])
            answers.append([str(score["pred"]) for score in scored])
    return summarize(valid, answers) | {"entropy": surprise / count}
