"""What `prefix_sampler.PRIORITY` leans on in vLLM: a real engine with fewer slots and less cache than is wanted.

The engine runs in a process of its own, for what vLLM does to the one that imports it.
"""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from soup_verl.evaluation.engine import installed_vllm
from soup_verl.stack.cpu import ENVIRONMENT
from soup_verl.stack.prefix_sampler import PRIORITY
from tests.e2e import assets

pytestmark = [
    pytest.mark.contract,
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or installed_vllm()[1] != "cpu", reason="needs vLLM built for CPUs"
    ),
]
PROMPT, RESPONSE = 100, 100  # tokens; a response takes a second block of 128 from its 29th token on
SLOTS, BLOCKS = 4, 6  # three responses fit to their end, four begin
PREFIXES = [f"prefix{i}" for i in range(6)]
OWN = [f"own{i}" for i in range(3)]


def start_engine(model):
    from vllm import EngineArgs, LLMEngine

    layers, heads, size, numbers, block = 2, 1, 32, 2, 128
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            dtype="float32",
            max_model_len=PROMPT + RESPONSE,
            max_num_seqs=SLOTS,
            max_num_batched_tokens=2048,
            enable_chunked_prefill=False,
            enforce_eager=True,
            kv_cache_memory_bytes=(BLOCKS + 1) * block * layers * heads * size * numbers * 4,  # vLLM keeps one block
            distributed_executor_backend="uni",
            scheduling_policy="priority",
            logprobs_mode="processed_logprobs",
        )
    )
    assert engine.vllm_config.cache_config.num_gpu_blocks == BLOCKS + 1
    return engine


class Engine:
    """Answers requests named `prefixN` and `ownN`, which have seeds and prompts of their own."""

    def __init__(self, model):
        self._engine = start_engine(model)
        self.preempted = {}

    def add(self, name, priority):
        from vllm import SamplingParams, TokensPrompt

        number = (PREFIXES + OWN).index(name)
        params = SamplingParams(max_tokens=RESPONSE, seed=number, logprobs=0, ignore_eos=True, detokenize=False)
        ids = [3 + (7 * number + i) % 200 for i in range(PROMPT)]
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=ids), params, priority=priority)

    def step(self):
        """The requests that ended: name -> prompt, tokens, log-probs."""
        ended = [output for output in self._engine.step() if output.finished]
        for request in self._engine.engine_core.engine_core.scheduler.requests.values():
            self.preempted[request.request_id.split("-")[0]] = request.num_preemptions
        return {o.request_id.split("-")[0]: (list(o.prompt_token_ids), *_answer(o.outputs[0])) for o in ended}

    def start_anew(self):
        """Nothing cached and nothing counted."""
        assert self._engine.reset_prefix_cache()
        self.preempted.clear()

    def run(self):
        """Every request to its end, in the order in which they ended."""
        ended = {}
        while self._engine.has_unfinished_requests():
            ended |= self.step()
        return ended


def _answer(output):
    ids = list(output.token_ids)
    return ids, [found[token].logprob for token, found in zip(ids, output.logprobs, strict=True)]


def alone_and_together(model):
    """In a process of its own: each request alone; then all, the step's own when some prefixes are under way."""
    os.environ.update(ENVIRONMENT)
    engine = Engine(model)
    alone = {}
    for name in PREFIXES + OWN:
        engine.add(name, 0)
        alone |= engine.run()
    engine.start_anew()
    together = {}
    for name in PREFIXES:
        engine.add(name, PRIORITY)
    for _ in range(5):
        together |= engine.step()
    for name in OWN:
        engine.add(name, 0)
    together |= engine.run()
    return alone, together, engine.preempted


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priority")
    assets.make(folder)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        alone, together, preempted = pool.submit(alone_and_together, folder / "model").result()
    return SimpleNamespace(model=folder / "model", alone=alone, together=together, preempted=preempted)


def test_prefixes_that_wait_start_after_the_steps_own_and_those_under_way_give_way(found):
    place = {name: i for i, name in enumerate(found.together)}
    assert sorted(place) == sorted(PREFIXES + OWN)
    waiting = PREFIXES[SLOTS:]  # they came before the step's own
    assert max(place[name] for name in OWN) < min(place[name] for name in waiting)
    assert [found.preempted[name] for name in OWN] == [0, 0, 0]
    assert max(found.preempted[name] for name in PREFIXES) > 0


def test_a_request_that_gave_way_has_the_tokens_and_log_probs_that_it_would_have_had(found):
    for name, (_, ids, log_probs) in found.together.items():
        assert ids == found.alone[name][1], name
        torch.testing.assert_close(torch.tensor(log_probs), torch.tensor(found.alone[name][2]), atol=1e-4, rtol=1e-4)


def test_its_log_probs_are_the_models(found):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(found.model, dtype=torch.float32)
    for prompt, ids, log_probs in found.together.values():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=1e-4)
