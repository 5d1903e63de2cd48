"""`replay`: the prefix is cut from a response that an earlier policy gave to the same prompt.

Every response that the current policy gives without a prefix goes into a store, with its behaviour log-probs and its
reward. At a later visit of the prompt a stored response is chosen and cut; its head is the prefix. Those tokens are
not decoded again, so a mixed response costs less than an on-policy one. Mixed responses are not stored: their tokens
come from more than one policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from soup_verl.config import ReplayConfig
from soup_verl.history.base import GroupPrefixes, PolicyEngine, PolicyResponse, Prefix, PrefixSource, PromptPlan
from soup_verl.history.response_store import ResponseStore
from soup_verl.mixing import PrefixRequest, stable_seed

STORE_FILE = "responses.parquet"


class ReplaySource(PrefixSource):
    """Prefixes cut from the store of earlier responses.

    Args:
        engine: knows the prompts of the batches to come.
        settings: capacities, eviction and choice.
        response_length: budget of a response in tokens; a prefix leaves at least one of them.
        seed: seed of the choice `uniform`.
        last_step: the last step of the run.
    """

    wants_responses = True
    decodes_prefixes = False

    def __init__(
        self, engine: PolicyEngine, settings: ReplayConfig, *, response_length: int, seed: int, last_step: int
    ):
        self._engine = engine
        self._settings = settings
        self._response_length = response_length
        self._seed = seed
        self._last_step = last_step
        self._ready: dict[int, list[GroupPrefixes]] = {}
        self.store = self._new_store()

    def _new_store(self) -> ResponseStore:
        s = self._settings
        return ResponseStore(
            capacity_tokens=s.capacity_tokens, per_prompt=s.per_prompt, max_policy_age=s.max_policy_age
        )

    def prefixes(self, step: int) -> list[GroupPrefixes] | None:
        return self._ready.pop(step, None)

    def observe_responses(self, responses: Sequence[PolicyResponse]) -> None:
        for response in responses:
            self.store.add(response)

    def after_update(self, step: int) -> None:
        self.store.expire(step)
        if step < self._last_step and len(self.store) and self._engine.wants_prefixes(step + 1):
            prompts = zip(self._engine.plan(step + 1), self._engine.token_keys(step + 1), strict=True)
            self._ready[step + 1] = [self._group(step + 1, plan, token_key) for plan, token_key in prompts]

    def _group(self, step: int, plan: PromptPlan, token_key: str) -> GroupPrefixes:
        if not plan.requests:
            return GroupPrefixes(plan.prompt_key, {})
        seed = stable_seed("replay", self._seed, step, token_key)
        chosen = self.store.choose(token_key, len(plan.requests), choice=self._settings.choice, seed=seed)
        prefixes = {r.session: self._cut(source, r) for r, source in zip(plan.requests, chosen, strict=False)}
        return GroupPrefixes(plan.prompt_key, prefixes)

    def _cut(self, source: PolicyResponse, request: PrefixRequest) -> Prefix:
        wanted = request.length if request.share is None else round(request.share * len(source.token_ids))
        length = max(1, min(wanted, len(source.token_ids), self._response_length - 1))
        ids, log_probs = source.token_ids[:length].tolist(), source.log_probs[:length].tolist()
        return Prefix(tuple(ids), tuple(log_probs), source.policy_version)

    def metrics(self) -> dict[str, float]:
        return {
            "soup/replay_responses_total": float(len(self.store)),
            "soup/replay_tokens_total": float(self.store.tokens),
        }

    def without_history(self, step: int) -> list[int]:
        return [step] if not len(self.store) and self._engine.wants_prefixes(step) else []

    def save(self, folder: Path) -> None:
        self.store.save(folder / STORE_FILE)

    def load(self, folder: Path) -> None:
        self.store = self._new_store()
        self.store.load(folder / STORE_FILE)
