"""`replay`: the prefix is cut from a response that an earlier policy gave to the same prompt.

Every response that the current policy gives without a prefix goes into a store, with its behaviour log-probs and its
reward. At a later visit of the prompt a stored response is chosen and cut; its head is the prefix. Those tokens are
not decoded again, so a mixed response costs less than an on-policy one. Mixed responses are not stored: their tokens
come from more than one policy.

A response that was chosen for what it is comes from pi_h *given* that: the stored log-probs b are those of pi_h alone
and no longer the probability with which such tokens are sampled, so no ratio to b is an exact importance ratio. Only
`uniform` and `latest` choose without looking, and a gate (`soup.when`) looks, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from soup_verl.method.history.balance import PassRateControl
from soup_verl.method.history.base import PolicyEngine, PrefixSource
from soup_verl.method.history.prefixes import (
    GroupPrefixes,
    PolicyResponse,
    Prefix,
    PromptPlan,
    cut_response,
    whole_response,
)
from soup_verl.method.history.response_store import ResponseStore
from soup_verl.method.mixing import PrefixRequest, stable_seed
from soup_verl.method.sections import ReplayConfig

STORE_FILE = "responses.parquet"
CONTROL_FILE = "pass_rates.json"


class ReplaySource(PrefixSource):
    """Prefixes cut from the store of earlier responses.

    Args:
        engine: knows the prompts of the batches to come.
        settings: capacities, eviction and choice.
        response_length: budget of a response in tokens; a prefix leaves at least one of them.
        seed: seed of the choice `uniform`.
        control: of `choice=balanced`: says whether successes or failures of a prompt are cut, and where.
    """

    wants_responses = True
    decodes_prefixes = False
    chooses_at_submission = True

    def __init__(
        self,
        engine: PolicyEngine,
        settings: ReplayConfig,
        *,
        response_length: int,
        seed: int,
        control: PassRateControl | None = None,
    ):
        assert (control is not None) == (settings.choice == "balanced"), settings.choice
        self._engine = engine
        self._settings = settings
        self._response_length = response_length
        self._seed = seed
        self._control = control
        self.store = self._new_store()

    def _new_store(self) -> ResponseStore:
        s = self._settings
        return ResponseStore(
            capacity_tokens=s.capacity_tokens, per_prompt=s.per_prompt, max_policy_age=s.max_policy_age
        )

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        if not len(self.store) or not self._engine.wants_prefixes(step):
            return None
        prompts = zip(self._engine.plan(step), self._engine.token_keys(step), strict=True)
        return [self._group(step, plan, token_key) for plan, token_key in prompts]

    def observe_responses(self, responses: Sequence[PolicyResponse]) -> None:
        for response in responses:
            self.store.add(response)

    def observe_solved(self, onpolicy: Mapping[str, float], mixed: Mapping[str, float]) -> None:
        if self._control:
            self._control.observe(onpolicy, mixed)

    def after_update(self, step: int) -> None:
        self.store.expire(step)

    def _group(self, step: int, plan: PromptPlan, token_key: str) -> GroupPrefixes:
        choice, requests = self._settings.choice, plan.requests
        if self._control:
            if (cut := self._control.cut(plan.prompt_key)) is None:
                return GroupPrefixes(plan.prompt_key, {})
            choice, requests = cut[0], tuple(replace(request, share=cut[1]) for request in requests)
        if not requests:
            return GroupPrefixes(plan.prompt_key, {})
        seed = stable_seed("replay", self._seed, step, token_key)
        chosen = self.store.choose(token_key, len(requests), choice=choice, seed=seed)
        prefixes = {r.session: self._cut(source, r) for r, source in zip(requests, chosen, strict=False)}
        return GroupPrefixes(plan.prompt_key, prefixes)

    def _cut(self, source: PolicyResponse, request: PrefixRequest) -> Prefix:
        if request.to_the_end:
            return whole_response(source)
        own = len(source.token_ids) if source.loss_mask is None else int(source.loss_mask.sum())
        wanted = request.length if request.share is None else round(request.share * own)
        return cut_response(source, wanted=max(1, wanted), longest=self._response_length - 1)

    def metrics(self) -> dict[str, float]:
        return {
            "soup/replay_responses_total": float(len(self.store)),
            "soup/replay_tokens_total": float(self.store.tokens),
        } | (self._control.metrics() if self._control else {})

    def without_history(self, step: int) -> list[int]:
        return [step] if not len(self.store) and self._engine.wants_prefixes(step) else []

    def save(self, folder: Path) -> None:
        self.store.save(folder / STORE_FILE)
        if self._control:
            (folder / CONTROL_FILE).write_text(json.dumps(self._control.state()))

    def load(self, folder: Path) -> None:
        self.store = self._new_store()
        self.store.load(folder / STORE_FILE)
        if self._control and (file := folder / CONTROL_FILE).exists():  # a checkpoint of another choice has none
            self._control.take_up(json.loads(file.read_text()))
