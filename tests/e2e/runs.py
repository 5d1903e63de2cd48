"""The runs that the end-to-end tests look at. Each is made once, when a test first asks for it."""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e import examples
from tests.e2e.cluster import TwoNodes
from tests.e2e.launch import LIMIT, ROOT, Run, command, launch, survivors

RUNS: dict[str, Callable[[Path, Path], Run]] = {}


def _add(name: str, *overrides: str) -> None:
    RUNS[name] = lambda assets, folder: launch(assets, folder, *overrides)


_STEPS = "trainer.total_training_steps="

# The conscience: verl's own trainer, estimator and manager, against ours with nothing mixed.
_SAME = (f"{_STEPS}3", "trainer.save_freq=3", "soup.mixed_fraction=0", "trainer.test_freq=3")
_add(
    "verl_grpo",
    *_SAME,
    "trainer.v1.trainer_mode=probed_sync_cpu",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    "actor_rollout_ref.model.external_lib=soup_verl.rollout",  # for the seeds of `soup_agent` in verl's own worker
)
_add("soup_without_mixing", *_SAME)

# Learning rate 0: the historical policy is the current one, so every log-prob can be compared.
_add(
    "frozen_warm",
    f"{_STEPS}3",
    "actor_rollout_ref.actor.optim.lr=0",
    "soup.lookahead.age=1",
    "soup.mixed_fraction=1",
    "trainer.logger=[console,file,tensorboard,wandb]",
)

# Snapshots: kept policies are real copies, and prefixes come from them.
_SNAPSHOT = ("soup.source=snapshot", "soup.snapshot.capacity=2", "trainer.save_freq=1", f"{_STEPS}4")
_add(
    "snapshot_fsdp2",
    *_SNAPSHOT,
    "actor_rollout_ref.actor.fsdp_config.param_offload=true",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true",
    "trainer.test_freq=2",
)
_add("snapshot_fsdp", *_SNAPSHOT, "actor_rollout_ref.actor.strategy=fsdp")


def _resumed_snapshot(assets: Path, folder: Path) -> Run:
    """`snapshot_fsdp` as it was after step 2, resumed in another folder."""
    whole = folder.parent / "snapshot_fsdp"
    deadline = time.monotonic() + 2 * LIMIT
    while not (whole / "finished").exists() and time.monotonic() < deadline:
        time.sleep(1)
    shutil.copytree(whole / "global_step_2", folder / "global_step_2")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    return launch(assets, folder, *_SNAPSHOT, "actor_rollout_ref.actor.strategy=fsdp")


RUNS["snapshot_resumed"] = _resumed_snapshot

# Six steps of eight of 24 prompts: step 3 ends an epoch.
_SIX = (f"{_STEPS}6", "trainer.save_freq=3", "trainer.test_freq=2")
_add("six_steps", *_SIX)


def _resumed(assets: Path, folder: Path) -> Run:
    """SIGKILLed in the middle of step 4, left with a newer checkpoint that is torn, and resumed."""
    killed = launch(assets, folder, *_SIX, kill_when=folder / "global_step_3/soup/manifest.json", kill_after=0.2)
    (folder / "killed.json").write_text(json.dumps({"code": killed.code, "survivors": survivors(folder)}))
    torn = folder / "global_step_4"
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(folder / "global_step_3", torn)
    model = torn / "actor" / "model_world_size_1_rank_0.pt"
    model.write_bytes(model.read_bytes()[:-100])
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    shutil.move(folder / "steps", folder / "steps_before_kill")
    return launch(assets, folder, *_SIX)


RUNS["resumed"] = _resumed

# Every example: one run for all that a running stack can change, one for dynamic sampling.
SWEEP = (
    "trainer.v1.trainer_mode=sweep_soup_cpu",
    f"{_STEPS}{examples.STEPS * len(examples.in_one_run())}",
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.optim.lr=3e-5",  # a hundred steps without a collapse
    "reward.custom_reward_function.name=varied",
)


def _examples(assets: Path, folder: Path) -> Run:
    folder.mkdir(parents=True)
    overrides = (*SWEEP, f"data.train_files={assets}/two_batches.parquet")
    given = command(assets, folder, *overrides)[3:]
    given = [o for o in given if not o.startswith("soup.prefix_length")]  # the examples' own, and the defaults
    settings = {
        "base": examples.compose(None, given),
        "examples": [
            {"name": name, "config": examples.compose(name, examples.for_cpu(name, given))}
            for name in examples.in_one_run()
        ],
    }
    (folder / "sweep.json").write_text(json.dumps(settings))
    return launch(assets, folder, *overrides, modules="tests.e2e.probe,tests.e2e.sweep")


RUNS["examples"] = _examples
_add("dapo", "--config-dir=examples", "neighbors=dapo", f"{_STEPS}2")

# Two ranks over gloo. With a learning rate of 1e-8 they train, and yet every log-prob can be compared.
_TWO = ("trainer.n_gpus_per_node=2", f"{_STEPS}4", "soup.lookahead.age=1", "trainer.save_freq=4")
_add(
    "two_ranks_fsdp2",
    *_TWO,
    "soup.prefix_objective=decoupled",
    "soup.baseline=split",
    "soup.behavior_log_probs=actor",
)
_add(
    "two_ranks_fsdp",
    *_TWO,
    "soup.prefix_objective=masked",
    "actor_rollout_ref.actor.strategy=fsdp",
    "actor_rollout_ref.actor.optim.lr=1e-8",
    "actor_rollout_ref.rollout.temperature=0.7",
)

# Two nodes: a worker node is lost after a checkpoint, comes back, and the run goes on.
_NODES = (
    "trainer.nnodes=2",
    "soup.source=snapshot",
    "soup.snapshot.capacity=2",
    "trainer.save_freq=2",
    f"{_STEPS}4",
)


def _two_nodes(assets: Path, folder: Path) -> Run:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with TwoNodes(folder / "cluster", {"PYTHONPATH": str(ROOT), **token}) as cluster:
        here = {"RAY_ADDRESS": cluster.address, **token}
        manifest = folder / "global_step_2/soup/manifest.json"
        with ThreadPoolExecutor(1) as watcher:
            watcher.submit(_when, manifest, cluster.lose_worker_node)
            lost = launch(assets, folder, *_NODES, environment=here)
        (folder / "lost.json").write_text(json.dumps({"code": lost.code, "output": lost.output}))
        cluster.add_worker_node()
        return launch(assets, folder, *_NODES, environment=here)


def _when(file: Path, action: Callable[[], None]) -> None:
    deadline = time.monotonic() + LIMIT
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    action()


RUNS["two_nodes"] = _two_nodes

# Failures that only the running system can see.
_add("reward_raises", f"{_STEPS}3", "reward.custom_reward_function.name=raising")
_add("reward_is_nan", f"{_STEPS}3", "reward.custom_reward_function.name=not_a_number", "trainer.val_before_train=true")
