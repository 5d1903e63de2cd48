"""What SOUP's sources ask of a run (`soup_verl.method.history.PolicyEngine`), answered by plain PyTorch in one process.

The sources, the plan and the cutting of prefixes are SOUP's own code; only sampling and weights are done here. Runs of
the search instrument last minutes and are not resumed, so policies are never written to disk.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.policy import Prompts, Shape, Weights, response_logits
from benchmarks.sampling import Given, Sampled, pad_prompts, sample
from benchmarks.update import masked_mean, token_scores
from soup_verl.method.core_algos import unlearning_loss
from soup_verl.method.history import GroupPrefixes, Prefix, PromptPlan
from soup_verl.method.history.prefixes import cut_prefix, extended
from soup_verl.method.mixing import UNLEARNED, MixingPlanner, PrefixRequest, SolvedRates, stable_seed
from soup_verl.method.sections import ForgetConfig


@dataclass(frozen=True)
class PromptOrder:
    """Which questions make up the batch of a step: all of them once an epoch, in a new order each time.

    Args:
        seed: the order's seed.
        questions: how many there are.
        a_step: how many a step takes; what is left over at the end of an epoch is not used in it.
    """

    seed: int
    questions: int
    a_step: int

    def batch(self, step: int) -> list[int]:
        """Positions in the training set; `step` counts from 1."""
        epoch, place = divmod(step - 1, self.questions // self.a_step)
        order = list(range(self.questions))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        return order[place * self.a_step : (place + 1) * self.a_step]


@dataclass(frozen=True)
class Done:
    """Prefixes that are there already."""

    groups: list[GroupPrefixes]

    def result(self) -> list[GroupPrefixes]:
        return self.groups


@dataclass
class PlainEngine:
    """Samples with the weights it holds, and keeps copies of them.

    Args:
        weights: the policy in training; changed in place by the optimizer.
        shape: what the weights' shapes do not say.
        prompts: token ids of every training question.
        order: which of them each step takes.
        planner: SOUP's plan.
        solved: SOUP's gate.
        response_length: budget in tokens.
        temperature: of sampling.
        grad_clip: of an unlearning step.
        version: of `weights`.
    """

    weights: Weights
    shape: Shape
    prompts: list[list[int]]
    order: PromptOrder
    planner: MixingPlanner
    solved: SolvedRates
    response_length: int
    temperature: float
    seed: int
    grad_clip: float = 1.0
    version: int = 0
    kept: dict[int, Weights] = field(default_factory=dict)

    def padded(self, step: int) -> Prompts:
        """The prompts of a step's batch."""
        return pad_prompts([self.prompts[i] for i in self.order.batch(step)])

    # ---- the plan ----

    def wants_prefixes(self, step: int) -> bool:
        return self.planner.mixes(step)

    def plan(self, step: int) -> list[PromptPlan]:
        keys = self.token_keys(step)
        plan = self.planner.plan_step(step=step, num_prompts=len(keys))
        admitted = ((k, requests if self.solved.admits(k) else ()) for k, requests in zip(keys, plan, strict=True))
        return [PromptPlan(*pair) for pair in admitted]

    def token_keys(self, step: int) -> list[str]:
        """The question's number, which is its prompt key, too: here a prompt has tokens and no messages."""
        return [str(i) for i in self.order.batch(step)]

    # ---- sampling ----

    def sample_rows(self, step: int, given: Given, purpose: str) -> Sampled:
        """Responses to the batch of `step`, equally many a prompt, from the policy held now."""
        seed = stable_seed(purpose, self.seed, step, self.version)
        return sample(self.weights, self.shape, self.padded(step), given, temperature=self.temperature, seed=seed)

    def sample_heads(self, step: int) -> Done:
        return self._heads(step, self.plan(step))

    def sample_rest(self, step: int) -> Done:
        rest = partial(self.planner.rest, response_length=self.response_length)
        return self._heads(step, [replace(p, requests=rest(p.requests)) for p in self.plan(step)])

    def _heads(self, step: int, plans: list[PromptPlan]) -> Done:
        lengths = {(i, r.session): r.head for i, plan in enumerate(plans) for r in plan.requests}
        out = self._sample_stretches(step, lengths, {}, "heads")
        groups = []
        for i, plan in enumerate(plans):
            heads = {r.session: self._head(r, *out[i, r.session]) for r in plan.requests}
            groups.append(GroupPrefixes(plan.prompt_key, heads))
        return Done(groups)

    def _head(self, request: PrefixRequest, ids: list[int], log_probs: list[float]) -> Prefix:
        ended = len(ids) < request.head or ids[-1] == self.shape.end_token or len(ids) == self.response_length
        return Prefix(tuple(ids), tuple(log_probs), -1, head=len(ids), complete=ended)

    def sample_prefixes(
        self, step: int, *, ages: Collection[int] | None = None, heads: list[GroupPrefixes] | None = None
    ) -> Done:
        plans = self.plan(step)
        if ages is not None:
            plans = [replace(p, requests=tuple(r for r in p.requests if r.age in ages)) for p in plans]
        given = {(i, s): head for i, group in enumerate(heads or ()) for s, head in group.by_session.items()}
        lengths = {}
        for i, plan in enumerate(plans):
            for r in plan.requests:
                head = given.get((i, r.session))
                if head is None or not head.complete:
                    lengths[i, r.session] = self._wanted(r, head)
        out = self._sample_stretches(step, lengths, given, "prefixes")
        groups = [
            GroupPrefixes(p.prompt_key, self._prefixes(i, p.requests, lengths, given, out)) for i, p in enumerate(plans)
        ]
        return Done(groups)

    def _wanted(self, request: PrefixRequest, head: Prefix | None) -> int:
        start = len(head) if head else 0
        return self.response_length - start if request.to_the_end else min(request.length, self.response_length - 1)

    def _prefixes(self, i: int, requests, lengths, given, out) -> dict[int, Prefix]:
        """The prefixes of prompt `i`, without those that came out empty."""
        found = {}
        for r in requests:
            place = (i, r.session)
            head = given.get(place)
            if place not in lengths:
                found[r.session] = head
                continue
            ids, log_probs = out[place]
            if r.to_the_end:
                stretch: Prefix | None = Prefix(tuple(ids), tuple(log_probs), self.version, complete=True)
            else:
                end = frozenset({self.shape.end_token})
                stretch = cut_prefix(
                    ids, log_probs, wanted=lengths[place], eos_token_ids=end, policy_version=self.version
                )
            prefix = stretch if head is None else extended(head, stretch)
            if prefix is not None:
                found[r.session] = prefix
        return found

    def _sample_stretches(
        self, step: int, lengths: dict[tuple[int, int], int], given: dict[tuple[int, int], Prefix], purpose: str
    ) -> dict[tuple[int, int], tuple[list[int], list[float]]]:
        """So many tokens after what is given, by (prompt, session): ids and log-probs of the new tokens."""
        copies, prompts = self.planner.n, self.order.a_step
        start = Given.nothing(prompts * copies, self.response_length)
        ids, starts, limits = start.ids.clone(), start.lengths.clone(), torch.zeros_like(start.limits)
        for (i, session), length in lengths.items():
            row, head = i * copies + session, given.get((i, session))
            if head is not None:
                ids[row, : len(head)] = torch.tensor(head.token_ids)
                starts[row] = len(head)
            limits[row] = starts[row] + length
        out = self.sample_rows(step, Given(ids, starts, limits), purpose)
        found = {}
        for i, session in lengths:
            row = i * copies + session
            new = slice(int(starts[row]), int(out.lengths[row]))
            found[i, session] = (out.ids[row, new].tolist(), out.log_probs[row, new].tolist())
        return found

    def rescored(self, step: int, groups: list[GroupPrefixes]) -> list[GroupPrefixes]:
        """Unchanged: one process samples and trains, so both give a token the same log-prob."""
        return groups

    # ---- weights ----

    def keep_policy(self, version: int) -> None:
        assert version == self.version, (version, self.version)
        self.kept[version] = {name: weight.detach().clone() for name, weight in self.weights.items()}

    def drop_policy(self, version: int) -> None:
        del self.kept[version]

    def save_policies(self, folder: Path, versions: Sequence[int]) -> None:
        raise NotImplementedError("a run of the search instrument has no checkpoints")

    def load_policies(self, folder: Path, versions: Sequence[int]) -> None:
        raise NotImplementedError("a run of the search instrument has no checkpoints")

    def kept_bytes(self) -> int:
        return sum(weight.nbytes for policy in self.kept.values() for weight in policy.values())

    @contextmanager
    def actor_holding(self, version: int) -> Iterator[None]:
        own, own_version = self.weights, self.version
        self.weights, self.version = self.kept[version], version
        yield
        self.weights, self.version = own, own_version

    @contextmanager
    def actor_unlearned(self, step: int, groups: list[GroupPrefixes], settings: ForgetConfig) -> Iterator[list[float]]:
        own, own_version = self.weights, self.version
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in own.items()}
        self.version = UNLEARNED
        yield [self._unlearn(step, groups, settings) for _ in range(settings.steps)]
        self.weights, self.version = own, own_version

    def _unlearn(self, step: int, groups: list[GroupPrefixes], settings: ForgetConfig) -> float:
        """A step of plain gradient descent on the responses; the gradient's norm before it is clipped."""
        copies = self.planner.n
        shape = (len(groups) * copies, self.response_length)
        ids, old, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        for i, group in enumerate(groups):
            for session, response in group.by_session.items():
                at = (i * copies + session, slice(0, len(response)))
                ids[at], old[at] = torch.tensor(response.token_ids), torch.tensor(response.log_probs)
                mask[at] = True
        logits = response_logits(self.weights, self.shape, self.padded(step), ids, copies=copies)
        log_probs, _ = token_scores(logits, ids, self.temperature)
        masked_mean(unlearning_loss(log_probs, old, clip=settings.clip), mask).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.grad_clip)
        optimizer = torch.optim.SGD(self.weights.values(), lr=settings.lr)
        optimizer.step()
        optimizer.zero_grad()
        return norm.item()

    @contextmanager
    def rollout_awake(self, version: int) -> Iterator[None]:
        assert version == self.version, (version, self.version)
        yield
