"""Exports load and are what was trained: of runs with LoRA, merged and as an adapter, in transformers and vLLM; of runs
that train all weights, in transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from soup_verl.exporting.__main__ import main
from soup_verl.stack.cpu import ENVIRONMENT
from tests.e2e.launch import ROOT
from tests.e2e.test_evaluate import evaluate, most_probable, rows
from tests.e2e.test_lora import apart, finished

WITH_ADAPTER = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

model, adapter, prompts, rank = sys.argv[1:]
engine = LLM(model, dtype="float32", enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=1 << 24,
             enable_lora=True, max_lora_rank=int(rank))
asked = [{"prompt_token_ids": ids} for ids in json.loads(prompts)]
said = engine.generate(asked, SamplingParams(temperature=0, max_tokens=12), lora_request=LoRARequest("a", 1, adapter))
print("SAID", json.dumps([list(one.outputs[0].token_ids) for one in said]))
"""


@pytest.mark.long
@pytest.mark.runs("lora_fsdp2")
def test_the_merged_model_in_transformers_and_vllm(run, made_assets, tmp_path):
    trained = finished(run, "lora_fsdp2")
    assert main([f"{trained.folder}/global_step_3", "--out", f"{tmp_path}/merged"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert apart(model, trained.rows(4)) < 0.03
    assert (tmp_path / "merged" / "README.md").exists() and (tmp_path / "merged" / "generation_config.json").exists()

    reward = f"{made_assets / 'rewards.py'}:score"
    evaluate(
        tmp_path / "evaluation",
        *("--model", tmp_path / "merged", "--data", made_assets / "val.parquet", "--n", 1, "--temperature", 0),
        *("--max-tokens", 12, "--reward", reward),
    )
    prompts = its_prompts(tmp_path / "merged", made_assets)
    for (_, index, _), row in rows(tmp_path / "evaluation").items():
        assert row["response_ids"] == most_probable(model, prompts[index], row["response_ids"])


@pytest.mark.long
@pytest.mark.runs("lora_fsdp2")
def test_the_adapter_in_peft_and_vllm(run, made_assets, tmp_path):
    trained = finished(run, "lora_fsdp2")
    adapter = tmp_path / "adapter"
    assert main([f"{trained.folder}/global_step_3", "--out", str(adapter), "--adapter"]) == 0
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    assert apart(model, trained.rows(4)) < 0.03

    prompts = its_prompts(adapter, made_assets)
    command = [sys.executable, "-c", WITH_ADAPTER, made_assets / "model", adapter, json.dumps(prompts), 8]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (said,) = [json.loads(line.removeprefix("SAID")) for line in done.stdout.splitlines() if line.startswith("SAID")]
    for prompt, response in zip(prompts, said, strict=True):
        assert response == most_probable(model, prompt, response)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param("six_steps", 6, marks=pytest.mark.runs("six_steps")),  # FSDP2, one rank
        pytest.param("two_ranks", 4, marks=pytest.mark.runs("two_ranks")),  # FSDP, a shard for each of two
    ],
)
def test_the_weights_are_the_checkpoints_rounded_to_bfloat16(run, made_assets, tmp_path, name, step):
    trained = finished(run, name)
    assert main([f"{trained.folder}/global_step_{step}", "--out", f"{tmp_path}/whole"]) == 0
    exported, started = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tmp_path / "whole", made_assets / "model")
    )
    saved = {key: weight.to(torch.bfloat16).float() for key, weight in trained.weights(step).items()}
    assert exported.keys() == saved.keys() == started.keys()
    assert all(torch.equal(exported[key], saved[key]) for key in saved)
    if name == "six_steps":  # the other one's learning rate is 1e-8
        assert any(not torch.equal(saved[key], started[key].to(torch.bfloat16).float()) for key in saved)


def its_prompts(model: Path, assets: Path) -> list[list[int]]:
    """Of the validation file, by the chat template of an export."""
    import pandas as pd

    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [list(prompt) for prompt in pd.read_parquet(assets / "val.parquet").prompt]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages]
