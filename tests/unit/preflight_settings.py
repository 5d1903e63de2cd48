"""Settings for the tests of preflight's single checks, and what it finds under them."""

from omegaconf import OmegaConf

from soup_verl.launch.preflight import Hardware, look_at_data
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.launch.preflight.sizing import ModelShape

ACTOR, ROLLOUT, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
HERE = Hardware(gpus=8, gpu_bytes=1, host_bytes=1, disk_bytes=1)
SHAPE = ModelShape(
    params=1000, layers=2, hidden=8, intermediate=16, heads=28, kv_heads=4, head_dim=2, vocab=50, tied=False
)
BASE = {
    "trainer.n_gpus_per_node": 8,
    "trainer.total_epochs": 2,
    "trainer.val_before_train": False,
    "data.train_batch_size": 16,
    "data.max_prompt_length": 40,
    f"{ROLLOUT}.prompt_length": 40,
    f"{ROLLOUT}.response_length": 60,
    f"{ROLLOUT}.n": 4,
    f"{ROLLOUT}.max_num_batched_tokens": 512,
    f"{ROLLOUT}.max_num_seqs": 256,
    f"{ACTOR}.ppo_mini_batch_size": 8,
}


def run_with(changes=None, **paths):
    config = OmegaConf.create({})
    for key, value in {**BASE, **(changes or {}), **{k.replace("__", "."): str(v) for k, v in paths.items()}}.items():
        OmegaConf.update(config, key, value)
    return RunSettings.parse(OmegaConf.to_container(config))


def by_name(findings):
    return {finding.name: finding for finding in findings}


def look_at_rows(path, tokenizer, changes=None):
    data = look_at_data(run_with(changes, data__train_files=path, data__val_files=path), tokenizer)
    return data, by_name(data.findings)
