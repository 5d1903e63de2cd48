"""Snapshots: a kept policy is a real copy, and prefixes come from it and not from the current policy."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from soup_verl.stack.kept_policies import KeptPolicies

RUNS = ("snapshot_fsdp2", "snapshot_fsdp")  # the first with parameter and optimizer offload


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.runs(name)) for name in RUNS])
def snapshots(request, run):
    finished = run(request.param)
    assert finished.code == 0, finished.output[-3000:]
    return finished


def kept(run, version, step):
    folder, policies = run.folder / f"global_step_{step}" / "soup", KeptPolicies()
    versions = json.loads((folder / "snapshots.json").read_text())["versions"]
    files = {v: folder / f"policy_{v}_rank_0_of_1.safetensors" for v in versions}
    policies.read(files.get, versions, like=load_file(files[versions[-1]]))
    assert policies.bytes == run.metrics()[step]["soup/kept_policies_bytes"]
    return torch.cat([t.flatten() for _, t in policies.weights(version)]).sort().values


def actual(run, version):
    return torch.cat([t.flatten() for t in run.weights(version).values()]).sort().values


def test_a_kept_policy_is_bit_for_bit_what_it_was_and_not_the_current_one(snapshots):
    for version, step in ((1, 2), (1, 3), (2, 3), (2, 4), (3, 4)):
        assert torch.equal(kept(snapshots, version, step), actual(snapshots, version))
        assert not torch.equal(kept(snapshots, version, step), actual(snapshots, step))


def test_the_buffer_keeps_the_newest_of_its_capacity(snapshots):
    versions = [
        json.loads((snapshots.folder / f"global_step_{step}" / "soup" / "snapshots.json").read_text())["versions"]
        for step in (1, 2, 3, 4)
    ]
    assert versions == [[], [1], [1, 2], [2, 3]]


def log_probs(run, version, row):
    """The response's log-probs under the policy of `version`, by a plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(run.folder.parents[1] / "assets" / "model", dtype=torch.float32)
    model.load_state_dict(run.weights(version))
    ids = torch.cat([row["prompts"], row["responses"]])
    with torch.no_grad():
        logits = model(ids[None]).logits[0, len(row["prompts"]) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, row["responses"][:, None])[:, 0]


def test_prefixes_are_of_the_kept_policy_and_continuations_of_the_current_one(snapshots):
    mixed = [row for step in (3, 4) for row in snapshots.rows(step) if row["prefix_mask"].any()]
    assert len(mixed) > 20
    farthest = 0.0
    for row in mixed[::4]:
        prefix, historical = row["prefix_mask"].bool(), int(row["policy_version"])
        current = next(s - 1 for s in (3, 4) if any(r is row for r in snapshots.rows(s)))
        assert historical < current
        told = row["rollout_log_probs"]
        torch.testing.assert_close(told[prefix], log_probs(snapshots, historical, row)[prefix], atol=1e-4, rtol=0)
        now = log_probs(snapshots, current, row)
        torch.testing.assert_close(told[~prefix], now[~prefix], atol=1e-4, rtol=0)
        farthest = max(farthest, (told[prefix] - now[prefix]).abs().max().item())
    assert farthest > 1e-3


def test_history_starts_with_the_first_kept_policy(snapshots):
    for step in (1, 2):
        assert not any(row["prefix_mask"].any() for row in snapshots.rows(step))


@pytest.mark.runs("snapshot_fsdp", "snapshot_resumed")
def test_a_resumed_run_goes_on_with_the_same_history(run):
    whole, resumed = run("snapshot_fsdp"), run("snapshot_resumed")
    assert resumed.code == 0, resumed.output[-3000:]
    for step in (3, 4):
        for a, b in zip(whole.rows(step), resumed.rows(step), strict=True):
            assert (a["index"], a["session"]) == (b["index"], b["session"])
            assert torch.equal(a["responses"], b["responses"])
            assert torch.equal(a["policy_version"], b["policy_version"])
