"""Every source over the trainer's engine, manager and workers' code for whole short runs: one prompt, more workers than
prompts, gates that keep prompts out, responses that end early. Ray and the model are stood in for; what they would
refuse is refused."""

import asyncio
import itertools
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from verl.workers.rollout.replica import TokenOutput

from soup_verl.method.config import SoupConfig
from soup_verl.method.history import PolicyResponse, PromptBlocks, build_source
from soup_verl.method.history.prefixes import prompt_hash
from soup_verl.method.mixing import UNLEARNED, SolvedRates
from soup_verl.method.step import plan_of_run
from soup_verl.stack.dynamic_sampling import DynamicPolicyEngine
from soup_verl.stack.images import prompt_key
from soup_verl.stack.kept_policies import KeptPolicies
from soup_verl.stack.policy_engine import SCORES, Rescoring, TrainerPolicyEngine, Unlearning
from soup_verl.stack.prefix_sampler import PrefixSampler
from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.rollout import SoupAgentLoopManager, SoupAgentLoopWorker, token_key
from tests.unit.stack.server import tokens_allowed
from tests.unit.stack.test_policy_engine import Batches, chat
from tests.unit.stack.transfer_queue import Queue

EOS, N, RESPONSE = 2, 4, 8


class Run:
    """The rollout engine and the actor of some ranks: which policy each holds, None while the engine sleeps."""

    def __init__(self, queue, ranks):
        self.queue, self.ranks, self.held, self.actor, self.lent = queue, ranks, None, 0, None
        self._kept, self._dispatch_info = KeptPolicies(), {}
        self._random = random.Random(0)

    @property
    def scoring(self):
        """The policy whose weights the engine is sent and whose log-probs are asked for."""
        return self.actor if self.lent is None else self.lent

    # ---- the engine's client ----

    async def generate(self, request_id, *, prompt_ids, sampling_params, priority):
        assert self.held is not None, "the rollout engine sleeps"
        most = tokens_allowed(prompt_ids, sampling_params, prompt_length=2, response_length=RESPONSE)
        assert most == sampling_params["max_tokens"], "more is asked for than there is room"
        await asyncio.sleep(0)
        ids = [self._random.choice([EOS, 5, 6, 7]) for _ in range(most)]
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        fields = {"global_steps": self.held}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", extra_fields=fields)

    # ---- the checkpoint manager ----

    def update_weights(self, version):
        assert self.held is None and version == self.scoring, (self.held, version, self.scoring)
        self.held = version

    def sleep_replicas(self):
        self.held = None

    # ---- the worker group ----

    def _query_dispatch_info(self, mesh):
        return list(range(self.ranks))

    def compute_log_prob(self, batch):
        self._check(batch)
        ids = self.queue.kv_batch_get(batch.keys, SCORES, ["input_ids"])["input_ids"].unbind()
        scores = torch.nested.as_nested_tensor([torch.full((len(row),), -0.25) for row in ids], layout=torch.jagged)
        self.queue.kv_batch_put(batch.keys, SCORES, TensorDict({"log_probs": scores}, len(ids)))

    def unlearn(self, batch):
        self._check(batch)
        rows = self.queue.kv_batch_get(batch.keys, SCORES, ["old_log_probs", "response_mask"])
        assert rows["response_mask"].sum() > 0, "an update of no tokens"
        self.actor = UNLEARNED
        return {"metrics": {"grad_norms": [1.0]}}

    def _check(self, batch):
        assert self.held is None, "the rollout engine has the memory"
        assert len(batch) % (self.ranks * 2) == 0, "each rank has a multiple of the micro-batch size"

    def keep_policy(self, version):
        assert version == self.actor and self.lent is None
        self._kept.keep(version, {"w": torch.full((4,), float(version))})

    def drop_policy(self, version):
        self._kept.drop(version)

    def kept_bytes(self):
        return [self._kept.bytes] * self.ranks

    def hold_policy(self, version):
        assert version is None or [t.tolist() for _, t in self._kept.weights(version)] == [[version] * 4]
        self.lent = version

    def save_model_to_cpu(self, name):
        self._own = self.actor

    def restore_model_from_cpu(self, name):
        self.actor = self._own

    def clear_cpu_model(self, name):
        del self._own


class Worker(SoupAgentLoopWorker):
    """An actor's code in this process: a call is answered at once."""

    def __init__(self, run):
        self.run, self.processor = run, None
        methods = {name: getattr(super(Worker, self), name) for name in ("sample_share", "prompt_ids", "actor_prompts")}
        for name, method in methods.items():
            setattr(self, name, SimpleNamespace(remote=lambda *args, method=method: asyncio.run(method(*args))))

    async def _opening(self, step, prompt):
        ids = [1, 10 + int(prompt["raw_prompt"][0]["content"])]
        return SimpleNamespace(prompt_ids=ids, params={"logprobs": True}, media={})

    def _prefix_sampler(self):
        return PrefixSampler(self.run, self._opening, RESPONSE, frozenset({EOS}), 0)


def started(soup, run, *, batch, workers, last_step, when, blocks=None):
    manager = SoupAgentLoopManager.__new__(SoupAgentLoopManager)
    manager.agent_loop_workers = [Worker(run) for _ in range(workers)]
    kind = TrainerPolicyEngine if blocks is None else partial(DynamicPolicyEngine, blocks=blocks)
    engine = kind(
        loader=ReadAheadLoader(Batches()),
        fetches=batch,
        planner=plan_of_run(soup, n=N, response_length=RESPONSE, last_step=last_step),
        solved=SolvedRates(when),
        rescoring=Rescoring(1.0, 2) if soup.behavior_log_probs == "actor" else None,
        unlearning=Unlearning(RESPONSE, 1.0, 2) if soup.source == "forget" else None,
        workers=run,
        checkpoint_manager=run,
        manager=manager,
    )
    return engine, build_source(soup, engine, response_length=RESPONSE, last_step=last_step)


def check_group(group, step, number, soup):
    """The prefixes of prompt `number` fit their place, and say whose they are."""
    assert group.prompt_key == prompt_key(chat(number))
    for session, prefix in group.by_session.items():
        assert 0 <= session < N and len(prefix) <= RESPONSE and prefix.prompt_hash == prompt_hash([1, 10 + number])
        assert prefix.complete or len(prefix) < RESPONSE
        assert EOS not in (prefix.token_ids[:-1] if prefix.complete else prefix.token_ids)
        if prefix.historical:
            assert prefix.policy_version in range(step) or prefix.policy_version == UNLEARNED
            scored = -0.25 if soup.behavior_log_probs == "actor" and soup.source != "replay" else -0.5
            assert set(prefix.log_probs[prefix.head :]) == {scored} and set(prefix.log_probs[: prefix.head]) <= {-0.5}


def responses_to(numbers, version):
    """On-policy responses to prompts, for a source that stores them."""
    ids, log_probs = np.array([5, 6, 7], np.int32), np.full(3, -0.5, np.float32)
    keys = {token_key(100 + number, [1, 10 + number]) for number in numbers}
    own = {"ended": True, "end_token_id": EOS, "end_log_prob": -0.5}
    return [PolicyResponse(key, ids, log_probs, version, 1.0, **own) for key in sorted(keys)]


SECTIONS = [
    {"source": "lookahead", "lookahead": {"age": 2}},
    {"source": "lookahead", "lookahead": {"age": [1, 3]}, "warm_start": True},
    {"source": "snapshot"},
    {"source": "snapshot", "position": "middle", "snapshot": {"capacity": 2}},
    {"source": "snapshot", "position": "suffix", "warm_start": True},
    {"source": "snapshot", "position": "whole", "snapshot": {"every": 2, "capacity": 1, "choice": "latest"}},
    {"source": "forget"},
    {"source": "forget", "position": "whole"},
    {"source": "replay"},
    {"source": "replay", "position": "whole"},
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
@settings(max_examples=10)
@given(
    batch=st.integers(1, 4),
    workers=st.integers(1, 5),
    ranks=st.integers(1, 3),
    last_step=st.integers(1, 6),
    actor=st.booleans(),
    when=st.sampled_from(["always", "unsolved"]),
    rates=st.randoms(use_true_random=False),
)
def test_a_run_gets_prefixes_of_its_own_prompts(section, batch, workers, ranks, last_step, actor, when, rates):
    soup = SoupConfig.parse(section | {"behavior_log_probs": "actor" if actor else "rollout"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", lambda refs: refs)
        run = Run(Queue(partition_id=SCORES).stand_in(patch), ranks)
        engine, source = started(soup, run, batch=batch, workers=workers, last_step=last_step, when=when)
        prompts = itertools.cycle(range(8))
        run.held = 0
        source.before_first_step(1)
        for step in range(1, last_step + 1):
            groups = source.prefixes(step)
            numbers = [next(prompts) for _ in range(batch)]
            for _ in numbers:
                next(engine.loader)
            engine.fetched_step = step
            for group, number in zip(groups or [None] * batch, numbers, strict=True):
                if group is not None:
                    check_group(group, step, number, soup)
            source.after_submit(step)
            source.before_sleep()
            run.held = None
            if source.wants_responses:
                source.observe_responses(responses_to(numbers, step - 1))
            source.before_update(step)
            run.actor = step
            for number in numbers:
                engine.solved.record(prompt_key(chat(number)), float(rates.random() < 0.5))
            source.after_update(step)
            assert run.held is None and run.actor == step and run.lent is None and run.queue.rows == {}
            run.held = step


@pytest.mark.parametrize("section", [*SECTIONS[:3], SECTIONS[5], *SECTIONS[-2:]], ids=str)
@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    workers=st.integers(1, 4),
    takes=st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=6),
    actor=st.booleans(),
)
def test_so_does_every_refill_of_dynamic_sampling(section, batch, workers, takes, actor):
    soup = SoupConfig.parse(section | {"behavior_log_probs": "actor" if actor else "rollout"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", lambda refs: refs)
        run, blocks = Run(Queue(partition_id=SCORES).stand_in(patch), 1), PromptBlocks(batch)
        how = {"batch": batch, "workers": workers, "last_step": len(takes), "when": "always", "blocks": blocks}
        engine, source = started(soup, run, **how)
        prompts = itertools.cycle(range(8))

        def take(count):
            start = blocks.handed
            for group, number in zip(blocks.take(count, source), itertools.islice(prompts, count), strict=True):
                next(engine.loader)
                if group is not None:
                    check_group(group, step, number, soup)
            if source.wants_responses:
                source.observe_responses(responses_to([i % 8 for i in range(start, blocks.handed)], step - 1))

        run.held = 0
        source.before_first_step(1)
        for step, refills in enumerate(takes, 1):
            take(batch)
            source.after_submit(step)
            for count in refills:
                take(count)
            source.before_sleep()
            run.held = None
            source.before_update(step)
            run.actor = step
            blocks.end_step(step, source)
            source.after_update(step)
            assert run.held is None and run.actor == step and run.lent is None and run.queue.rows == {}
            run.held = step
