"""LoRA with both FSDPs: adapters alone are trained, kept, held, saved, resumed; an evaluation gets the merged model."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from soup_verl.evaluation.checkpoints import resolve


def of_both(*ends):
    """Parametrize by the run's name, which is followed by each of `ends` in the runs that the test needs."""
    names = ("lora_fsdp2", "lora_fsdp")
    marked = [pytest.param(name, marks=pytest.mark.runs(*(name + end for end in ends))) for name in names]
    return pytest.mark.parametrize("name", marked)


def finished(run, name):
    found = run(name)
    assert found.code == 0, found.output[-3000:]
    return found


@of_both("")
def test_a_kept_policy_is_its_adapters(run, name):
    folder = finished(run, name).folder / "global_step_3"
    kept = folder / "soup" / "policy_2_rank_0_of_1.safetensors"
    whole = folder / "actor" / "model_world_size_1_rank_0.pt"
    assert kept.stat().st_size < whole.stat().st_size / 5
    assert len(load_file(kept)) > 0


@of_both("")
def test_prefixes_are_of_the_kept_adapters_and_continuations_of_the_present_ones(run, name):
    """The engine's log-probs agree with the trainer's on the current policy's tokens, so the present adapters are back;
    and those of the prefix, scored while the kept ones were held, are far from the present policy's."""
    metrics = finished(run, name).metrics()
    assert all(metrics[step]["soup/alignment_error_max"] < 1e-4 for step in (1, 2, 3, 4))
    assert [metrics[step]["soup/policy_age_mean"] for step in (3, 4)] == [1, 2]
    assert all(metrics[step]["soup/prefix_kl_k3"] > 0.01 for step in (3, 4))


@of_both("", "_resumed")
def test_a_resumed_run_goes_on_with_the_same_adapters(run, name):
    first, resumed = (finished(run, name + end) for end in ("", "_resumed"))
    for step in (3, 4):
        for a, b in zip(first.rows(step), resumed.rows(step), strict=True):
            assert a["responses"].tolist() == b["responses"].tolist()
        for key in ("actor/grad_norm", "soup/prefix_kl_k3"):
            assert first.metrics()[step][key] == resumed.metrics()[step][key]


@of_both("")
def test_an_evaluation_gets_the_policy_that_was_trained(run, name, made_assets, tmp_path):
    """Log-probs of step 4's current policy, the checkpoint of step 3, by a plain forward pass: the merged model is
    off by the rounding of its weights to bfloat16, the model without its adapter by all that was trained."""
    trained = finished(run, name)
    merged = resolve(str(trained.folder / "global_step_3"), option="--model", merged=tmp_path, announce=print)
    rows = trained.rows(4)
    found, untrained = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (merged, made_assets / "model")
    )
    assert apart(found, rows) < 0.03 < apart(untrained, rows) / 10


def apart(model, rows):
    """Mean distance of a model's log-probs from those that the run recomputed, in nats a token."""
    found = []
    for row in rows:
        ids = torch.cat([row["prompts"], row["responses"]])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(row["prompts"]) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, row["responses"][:, None])[:, 0]
        found.append((log_probs - row["recomputed_log_probs"]).abs())
    return torch.cat(found).mean().item()
