"""Real evaluations: killed and resumed, a checkpoint merged, a prefix of one model continued by another."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.launch import ROOT, processes_with, survivors

LIMIT = 900  # seconds an evaluation may take; most take 20 to 40 of processor time, but not on a busy machine
END = 2


def start(out, *arguments):
    """An evaluation under way; its output goes to `out` + .txt."""
    command = [sys.executable, "-m", "soup_verl.evaluate", "--out", out, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOUP_TEST_MARK": str(out), "HF_HUB_OFFLINE": "1"}
    with open(f"{out}.txt", "a") as log:
        return subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def evaluate(out, *arguments):
    process = start(out, *arguments)
    try:
        code = process.wait(timeout=LIMIT)
    finally:
        process.kill()
    assert code == 0, (out.parent / f"{out.name}.txt").read_text()


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(process, file, count):
    """Until `file` has `count` lines; the process must not have ended before."""
    deadline = time.monotonic() + LIMIT
    while lines(file) < count and time.monotonic() < deadline:
        assert process.poll() is None, "ended too early"
        time.sleep(0.01)


def rows(out):
    """What was said and how it was judged, by sample; every sample once."""
    found = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    by_key = {(row["file"], row["index"], row["session"]): row for row in found}
    assert len(by_key) == len(found)
    return by_key


SAID, KNOWN = r"\boxed{B}", ("choice.parquet", "instructions.parquet")


@torch.no_grad()
def model_that_answers_b(source, folder):
    """A copy of the random model that answers SAID where the question ends in a question mark, which the template
    repeats: each token of SAID has a dimension of its own, which no other token fills and only the next one reads."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template += "{{ messages[-1]['content'][-1] }}"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    said = [*tokenizer.encode("?" + SAID), END]
    own = len(said) - 1
    embedding[:, :own] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:own] = layer.mlp.down_proj.weight[:own] = 0
    head[:, :own] = head[said] = 0  # nobody else says them
    for place, (token, following) in enumerate(itertools.pairwise(said)):
        embedding[token, place], head[following, place] = 1e4, 100
    for part in (tokenizer, model):
        part.save_pretrained(folder)


def questions(domain, *golds, **extra):
    """A row a gold; they differ, and end in a question mark."""
    return pd.DataFrame(
        {
            "data_source": domain,
            "prompt": [{"role": "user", "content": f"{index}?"}],
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"index": index, "domain": domain, **extra},
        }
        for index, gold in enumerate(golds)
    )


def instructions(**checks):
    """The gold of a row: its checks by name, and their arguments."""
    return json.dumps({"instruction_id_list": [*checks], "kwargs": [*checks.values()]})


FOLLOWED = {"punctuation:no_comma": {}, "keywords:existence": {"keywords": ["boxed"]}}
BROKEN = {"startend:quotation": {}}


def check_known_answers(out):
    """Of 32 times SAID to four questions with two options, and to three wishes."""
    choice, wishes = (json.loads((out / "results.json").read_text())["files"][name] for name in KNOWN)
    assert choice["correct"] == [32, 0, 32, 32] and wishes["correct"] == [32, 0, 0]
    for name in ("avg@32", "pass@32", "maj@32", "score"):
        assert choice["metrics"][name]["mean"] == 0.75
    assert wishes["metrics"]["score"]["mean"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    judged = {(row["file"], row["response"], row["pred"]) for row in rows(out).values() if row["file"] in KNOWN}
    unmet = ", ".join(BROKEN)
    assert judged == {(KNOWN[0], SAID, "B"), (KNOWN[1], SAID, ""), (KNOWN[1], SAID, unmet)}


def test_killed_twice_it_ends_with_the_samples_of_an_evaluation_that_was_not(made_assets, tmp_path):
    """Sums, answered at random, and two domains whose answers are known."""
    model_that_answers_b(made_assets / "model", tmp_path / "model")
    questions("choice", "B", "A", "B", "B", options=["3", "4"]).to_parquet(tmp_path / KNOWN[0])
    golds = (instructions(**FOLLOWED), instructions(**FOLLOWED, **BROKEN), instructions(**BROKEN))
    questions("instructions", *golds).to_parquet(tmp_path / KNOWN[1])
    files = [*(made_assets / f"{name}.parquet" for name in ("train", "val")), *(tmp_path / name for name in KNOWN)]
    # Four waves of 256 responses, of which a test that looks a hundred times a second sees the first end.
    arguments = ["--model", tmp_path / "model", "--data", *files, "--n", 32, "--max-tokens", 64]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    evaluate(whole, *arguments)
    check_known_answers(whole)

    # The engine's process first: the command says so in one line and keeps what there is.
    process = start(out, *arguments)
    engine = engine_of(process, out)
    wait_for(process, out / "unscored.jsonl", 100)
    os.kill(engine, signal.SIGKILL)
    assert process.wait(timeout=LIMIT) == 1
    said = [line for line in (tmp_path / "killed.txt").read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith("error: the engine ended with exit code -9")
    kept = lines(out / "unscored.jsonl")
    assert 100 <= kept < 35 * 32

    # Then the command itself, in the middle of a line: its engine must not survive it.
    process = start(out, *arguments)
    wait_for(process, out / "unscored.jsonl", kept + 100)
    process.kill()
    process.wait()
    assert survivors(out, within=60) == []
    with open(out / "unscored.jsonl", "ab") as file:
        file.write(b'{"file": "train.par')

    evaluate(out, *arguments)
    assert rows(out) == rows(whole)
    assert len(rows(whole)) == 35 * 32
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, out)]
    assert results[0] == results[1]
    assert results[0]["files"]["train.parquet"]["metrics"]["pass@32"]["low"] is not None
    assert (out / "pass_at_k.png").read_bytes()[:4] == b"\x89PNG"


def engine_of(process, out):
    """The engine's process, as soon as there is one."""
    deadline = time.monotonic() + LIMIT
    while not (found := [p for p in processes_with(f"SOUP_TEST_MARK={out}") if p != process.pid and _is_engine(p)]):
        assert process.poll() is None and time.monotonic() < deadline, "no engine"
        time.sleep(0.05)
    (engine,) = found
    return engine


def _is_engine(process):
    with open(f"/proc/{process}/cmdline", "rb") as file:
        return b"spawn_main" in file.read()


@torch.no_grad()
def most_probable(model, prompt, response):
    """At each place of the response the token that the model finds most probable, by a plain forward pass."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.argmax(dim=-1).tolist()


@pytest.mark.long
@pytest.mark.runs("soup_without_mixing")
def test_a_merged_checkpoint_continues_what_an_earlier_model_began(run, made_assets, tmp_path):
    trained = run("soup_without_mixing")
    out = tmp_path / "soup"
    evaluate(
        out,
        *("--model", trained.folder / "global_step_3", "--historical", made_assets / "model"),
        *("--prefix-tokens", "3:6", "--data", made_assets / "train.parquet", "--n", 1, "--temperature", 0),
        *("--max-tokens", 12, "--reward", f"{made_assets / 'rewards.py'}:score"),
    )
    (merged,) = (tmp_path / "merged_checkpoints").iterdir()
    weights = load_file(merged / "model.safetensors")
    assert weights.keys() == trained.weights(3).keys()
    for name, weight in trained.weights(3).items():  # verl's merger rounds to bfloat16
        torch.testing.assert_close(weights[name], weight.to(torch.bfloat16), rtol=0, atol=0)

    tokenizer = AutoTokenizer.from_pretrained(made_assets / "model")
    earlier = AutoModelForCausalLM.from_pretrained(made_assets / "model", dtype=torch.float32)
    current = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    unlike = 0
    for (_, index, _), row in rows(out).items():
        message = [{"role": "user", "content": f"{index % 7}+{index % 5}="}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        said, length = row["response_ids"], row["prefix_length"]
        by_earlier, by_current = (most_probable(model, prompt, said) for model in (earlier, current))
        assert said == by_earlier[:length] + by_current[length:]
        assert length == row["prefix_wanted"] or by_earlier[length] == END
        assert len(said) == 12 if row["finish_reason"] == "length" else said[-1] == END
        unlike += by_earlier[:length] != by_current[:length]
    assert unlike > 0, "prefixes of the earlier model were those of the present one"
