"""Checkpoints as runs leave them, and evaluations of them, as tests need them."""

import json

import yaml

from soup_verl.stack import checkpoint
from tests.unit.reporting.folders import write_run

SETTINGS = {
    "soup.source": "lookahead",
    "soup.lookahead.age": [4],
    "actor_rollout_ref.model.lora_rank": 4,
    "data.train_files": ["sha256:0123456789abcdef"],
}
FACTS = {
    "started": "2026-11-01T10:00:00+0000",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"verl": "0.9.1", "torch": "2.11.0", "numpy": "2.3.5"},
}


def write_checkpoint(folder, *, lora=False, settings=SETTINGS, base="Qwen/Qwen2.5-Math-7B"):
    """`global_step_2` of a run in `folder`, with shards that hold nothing."""
    write_run(
        folder, metrics={"val-soup/even/pass@8": [0.25, 0.5], "val-core/even/acc/mean@8": [0.1, 0.2]}, facts=FACTS
    )
    said = yaml.safe_load((folder / "config.yaml").read_text())
    said["actor_rollout_ref"] = {"model": {"path": base}}
    said["data"] = {"train_files": [str(folder.parent / "data" / "dapo.parquet")]}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    actor = folder / "global_step_2" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"weights")
    if lora:
        (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    checkpoint.write(actor.parent, state={"step": 2, "settings": settings}, write_history=lambda _: None)
    return actor.parent


def write_evaluation(folder, *, model, fingerprint="", mean=0.5, **settings):
    """Results of `soup_verl.evaluate` on one data file, with one interval and one metric without."""
    folder.mkdir(parents=True)
    metrics = {"pass@8": {"mean": mean, "low": 0.25, "high": 0.75}, "truncated": {"mean": 0, "low": None, "high": None}}
    settings = {"model": [str(model), fingerprint], "historical": [], "temperature": 0.6, "n": 8} | settings
    results = {"settings": settings, "k": [8], "files": {"math-500.parquet": {"problems": 2, "metrics": metrics}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder
