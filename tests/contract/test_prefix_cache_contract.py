"""What sampling leans on in vLLM's prefix cache, with the blocks of platform=cpu: a prompt is computed once for the
responses of a group, and nothing of it outlives the weights that it was computed with.

The engine runs in a process of its own, for what vLLM does to the one that imports it.
"""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from soup_verl.evaluation.engine import installed_vllm
from soup_verl.stack.cpu import ENVIRONMENT
from tests.e2e import assets

pytestmark = [
    pytest.mark.contract,
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or installed_vllm()[1] != "cpu", reason="needs vLLM built for CPUs"
    ),
]
PLATFORM = Path(__file__).parents[2] / "recipe" / "soup" / "config" / "platform" / "cpu.yaml"
PROMPT = list(range(3, 43))  # 40 tokens: one block of 32 that is full


def start_engine(model):
    from vllm import EngineArgs, LLMEngine

    rollout = yaml.safe_load(PLATFORM.read_text())["actor_rollout_ref"]["rollout"]
    same = {name: rollout[name] for name in ("dtype", "enforce_eager", "enable_chunked_prefill")}
    same |= {name: rollout["engine_kwargs"]["vllm"][name] for name in ("kv_cache_memory_bytes", "block_size")}
    engine_args = EngineArgs(model=str(model), max_model_len=64, distributed_executor_backend="uni", **same)
    return LLMEngine.from_engine_args(engine_args)


def ask(engine, name):
    """(tokens of the prompt that were found in the cache, log-prob of the token that follows it greedily)."""
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(max_tokens=1, temperature=0, logprobs=0, detokenize=False)
    engine.add_request(name, TokensPrompt(prompt_token_ids=PROMPT), params)
    ended = []
    while engine.has_unfinished_requests():
        ended += engine.step()
    (token,) = ended[-1].outputs[0].token_ids
    return ended[-1].num_cached_tokens, token, ended[-1].outputs[0].logprobs[0][token].logprob


def double_the_embedding(engine):
    """Another policy, at the very place where the first one's weights were."""
    model = engine.model_executor.driver_worker.worker.get_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)


def asked(model):
    """In a process of its own: each answer by what it was asked after."""
    os.environ.update(ENVIRONMENT)
    engine = start_engine(model)
    found = {name: ask(engine, name) for name in ("first", "second")}
    double_the_embedding(engine)
    found["stale"] = ask(engine, "stale")
    assert engine.reset_prefix_cache()
    return found | {name: ask(engine, name) for name in ("other policy", "other policy again")}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix_cache")
    assets.make(folder)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = pool.submit(asked, folder / "model").result()
    return SimpleNamespace(model=folder / "model", **{name.replace(" ", "_"): found for name, found in answers.items()})


def expected(folder, factor):
    """The same of transformers: (token, log-prob)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(factor)
        log_probs = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    return int(log_probs.argmax()), float(log_probs.max())


def test_the_second_response_to_a_prompt_finds_its_full_blocks_and_says_the_same(found):
    assert [found.first[0], found.second[0]] == [0, 32]
    for _, token, log_prob in (found.first, found.second):
        assert (token, log_prob) == (expected(found.model, 1)[0], pytest.approx(expected(found.model, 1)[1], abs=1e-4))


def test_after_new_weights_the_cache_is_to_be_cleared_or_answers_are_of_two_policies(found):
    assert [found.stale[0], found.other_policy[0], found.other_policy_again[0]] == [32, 0, 32]
    token, log_prob = expected(found.model, 2)
    for _, said, its_log_prob in (found.other_policy, found.other_policy_again):
        assert (said, its_log_prob) == (token, pytest.approx(log_prob, abs=1e-4))
    assert found.stale[1] != token or abs(found.stale[2] - log_prob) > 1e-3
