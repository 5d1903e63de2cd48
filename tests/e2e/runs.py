"""The runs that the end-to-end tests look at, in `LAUNCHES`: each is made once, if a collected test asks for one of its
runs."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests.e2e import domains, examples, rehearsals, vision
from tests.e2e.cluster import TwoNodes
from tests.e2e.launch import LIMIT, PREFIXES, ROOT, Run, launch, launch_series, launch_sweep
from tests.faults.kills import Fault, Faults, killed_run


@dataclass(frozen=True)
class Launch:
    """One start of processes: the names of the runs it makes, and how."""

    names: tuple[str, ...]
    make: Callable[[Path, Path], dict[str, Run | None]]
    """(assets, folder) -> the finished runs by name, each in the subfolder of its name; None: not possible here."""
    long: bool = False
    """Tests that look at these runs are marked `long`: several starts for one run."""


def _single(name: str, make: Callable[[Path, Path], Run], *, long: bool = False) -> Launch:
    return Launch((name,), lambda assets, folder: {name: make(assets, folder / name)}, long)


def _alone(name: str, *overrides: str) -> Launch:
    return _single(name, lambda assets, folder: launch(assets, folder, *overrides))


def _kill(assets: Path, folder: Path, kill: Fault, *overrides: str, before: Sequence[Fault] = ()) -> None:
    """Run until the kill has ended it; `killed.json` says how it ended."""
    killed = killed_run(assets, folder, kill, *overrides, before=before)
    (folder / KILLED).write_text(json.dumps(killed))


KILLED = "killed.json"
STEPS = "trainer.total_training_steps="

# The conscience: verl's own trainer, estimator and manager, against ours with nothing mixed.
_SAME = (f"{STEPS}3", "trainer.save_freq=3", "soup.mixed_fraction=0", "trainer.test_freq=3")
_VERL_GRPO = _alone(
    "verl_grpo",
    *_SAME,
    "trainer.v1.trainer_mode=probed_sync_cpu",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    "actor_rollout_ref.model.external_lib=tests.e2e.seeded",
    "actor_rollout_ref.rollout.agent.default_agent_loop=seeded_agent",
)

# Six steps of eight of 24 prompts: step 3 ends an epoch. The engine's log-probs differ in their last bit with the
# requests that share a batch, the actor's do not: with these, equal tokens make equal parameters.
_SIX = (
    f"{STEPS}6",
    "trainer.save_freq=3",
    "trainer.test_freq=3",
    "soup.keep_best=-val-aux/sums/reward/mean@1",
    "soup.log_samples.every=3",
    "soup.behavior_log_probs=actor",
)


# It has another reward manager, which needs processes of its own; and a series ends with the first run that fails.
_APART = ("neighbors/dapo", "neighbors/dapo_soup")


# Learning rate 0: the historical policy is the current one, so every log-prob can be compared.
_FROZEN = (
    *PREFIXES,
    f"{STEPS}3",
    "actor_rollout_ref.actor.optim.lr=0",
    "soup.lookahead.age=1",
    "soup.mixed_fraction=1",
)


def _series(assets: Path, folder: Path) -> dict[str, Run]:
    """Every example but two, and the runs with one FSDP2 rank, on one set of processes."""
    return launch_series(assets, folder, {name: o for name, o in _series_runs(assets).items() if name not in _APART})


def _apart(assets: Path, folder: Path) -> dict[str, Run]:
    """Dynamic sampling: without and with mixing, the latter killed after its checkpoint and resumed, and with
    `replay`."""
    dapo, mixed = (_series_runs(assets)[name] for name in _APART)
    runs = {
        _APART[0]: dapo,
        _APART[1]: (*mixed, "trainer.save_freq=3"),
        "dapo_replay": (*mixed, "soup.source=replay", "soup.replay.choice=latest", f"{STEPS}5"),
    }
    own = folder / _APART[1]
    same = (*runs[_APART[1]], "soup.prefix_length.low=null", "soup.prefix_length.high=null")
    _kill(assets, own, Fault("driver", step=5, stage="rollout"), *same)
    shutil.copytree(own / "steps", own / "before_kill" / "steps")
    return launch_series(assets, folder, runs)


def _series_runs(assets: Path | None) -> dict[str, tuple[str, ...]]:
    small = (
        "data.train_batch_size=4",
        "actor_rollout_ref.actor.optim.lr=3e-5",  # without a collapse
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    )
    return {
        "six_steps": (*PREFIXES, *_SIX),
        "soup_without_mixing": _SAME,
        "all_trained": (*_SAME, "soup.down_sampling.train_on=4"),  # of four
        "frozen_warm": (*_FROZEN, "trainer.logger=[console,file,tensorboard,wandb]"),
        "truncated_actor": (
            *_FROZEN,
            "actor_rollout_ref.rollout.top_p=0.8",
            "actor_rollout_ref.rollout.top_k=20",
            "soup.behavior_log_probs=actor",
        ),
        **{
            name: (
                *examples.overrides(name),
                *small,
                f"data.train_files={assets}/{examples.data(name)}.parquet",
                f"{STEPS}{examples.steps(name)}",
            )
            for name in examples.names()
        },
        "gradient_overflow": (  # the last: it fails
            f"{STEPS}3",
            "trainer.save_freq=1",
            f"data.train_files={assets}/huge.parquet",
            "algorithm.norm_adv_by_std_in_grpo=false",
            "soup.mixed_fraction=0",
            "soup.max_skipped_steps=2",
        ),
    }


# Snapshots: kept policies are real copies, and prefixes come from them.
_SNAPSHOT = (*PREFIXES, "soup.source=snapshot", "soup.snapshot.capacity=2", "trainer.save_freq=1", f"{STEPS}4")


def _offload(assets: Path, folder: Path) -> dict[str, Run | None]:
    """FSDP2 with offloading and validation, one that keeps its best checkpoint besides the newest, one whose second
    checkpoint does not fit on its disk."""
    validation = (
        f"data.val_files={assets}/even.parquet",
        *(f"actor_rollout_ref.rollout.val_kwargs.{setting}" for setting in ("n=4", "do_sample=true", "temperature=1")),
    )
    runs = {
        "snapshot_fsdp2": (
            *_SNAPSHOT,
            *validation,
            "trainer.test_freq=2",
            "trainer.val_before_train=true",
            f"trainer.validation_data_dir={folder}/snapshot_fsdp2/validation",
        ),
        "best_kept": (
            *validation,
            f"{STEPS}5",
            "trainer.save_freq=1",
            "trainer.test_freq=1",
            "trainer.max_actor_ckpt_to_keep=1",
            "soup.mixed_fraction=0",
            "soup.keep_best=val-soup/even/pass@2",
        ),
    }
    offload = [f"actor_rollout_ref.actor.fsdp_config.{what}_offload=true" for what in ("param", "optimizer")]
    with small_disk(folder / "disk_full", kilobytes=2500) as mounted:
        if mounted:
            runs["disk_full"] = (*PREFIXES, f"{STEPS}3", "trainer.save_freq=1")
        made = launch_series(assets, folder, runs, *offload)
        if mounted:
            made["disk_full"].folder = Path(shutil.copytree(folder / "disk_full", folder / "disk_full_after"))
    return {"disk_full": None} | made


@contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[bool]:
    """A file system of this size at `folder`; false where none may be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _fsdp(assets: Path, folder: Path) -> dict[str, Run]:
    """FSDP1, and the engine's log-probs raw: a run, the same resumed from its second step, one that truncates sampling,
    one on a file of other people's whose epochs end early, and one whose reward function raises."""
    runs = {
        "snapshot_fsdp": _SNAPSHOT,
        "snapshot_resumed": (
            *_SNAPSHOT,
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={folder}/snapshot_fsdp/global_step_2",
        ),
        "truncated_raw": (*_FROZEN, "actor_rollout_ref.rollout.top_p=0.8"),
        "any_index": (
            *PREFIXES,
            f"{STEPS}10",
            "trainer.total_epochs=2",
            "trainer.save_freq=100",
            "trainer.test_freq=100",
            "soup.source=replay",
            "soup.log_samples.every=1",
            f"data.train_files={assets}/uuids.jsonl",
        ),
        "reward_raises": (*PREFIXES, f"{STEPS}3", f"data.train_files={assets}/raising.parquet"),
    }
    raw = "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs"
    return launch_series(assets, folder, runs, "actor_rollout_ref.actor.strategy=fsdp", raw)


_LORA = (
    "actor_rollout_ref.model.lora_rank=4",
    "actor_rollout_ref.model.lora_alpha=8",
    "actor_rollout_ref.actor.optim.lr=1e-2",
)


def _lora(strategy: str) -> Launch:
    """Adapters alone are trained and kept: a run, `lora_fsdp2` or `lora_fsdp`, and the same resumed from its second
    step; with FSDP1 as a sweep, which validates."""
    name = f"lora_{strategy}"
    start, end = (launch_sweep, "-s0") if strategy == "fsdp" else (launch_series, "")

    def launch(assets: Path, folder: Path) -> dict[str, Run]:
        same = (*_SNAPSHOT, "soup.behavior_log_probs=actor")
        again = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={folder}/{name}{end}/global_step_2")
        runs = {name: same, f"{name}_resumed": (*same, *again)}
        shared = [*_LORA, f"actor_rollout_ref.actor.strategy={strategy}"]
        if start is launch_sweep:
            shared += [f"data.val_files={assets}/even.parquet", "trainer.test_freq=4"]
        return start(assets, folder, runs, *shared)

    return Launch((name, f"{name}_resumed"), launch)


TOOLS = ROOT / "examples" / "tools"


def _tools(assets: Path, folder: Path) -> dict[str, Run]:
    """verl's tool agent loop with the example's model and calculator, learning rate 0: a prefix in the first turn;
    whole turns and parts of one; and the latter resumed from its second step."""
    made = folder / "assets"
    teach = [sys.executable, str(TOOLS / "teach.py"), "--out", str(made), "--sft-steps", "60"]
    subprocess.run(teach, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pd.read_parquet(made / "train.parquet")[:8].to_parquet(made / "eight.parquet")
    multi_turn = "actor_rollout_ref.rollout.multi_turn"
    shared = (
        f"data.train_files={made}/eight.parquet",
        f"data.val_files={made}/val.parquet",
        f"actor_rollout_ref.model.path={made}/model",
        f"reward.custom_reward_function.path={TOOLS.parent}/quickstart/reward.py",
        "reward.custom_reward_function.name=compute_score",
        "data.max_response_length=96",
        "actor_rollout_ref.rollout.max_model_len=160",
        "actor_rollout_ref.actor.optim.lr=0",
        f"{multi_turn}.enable=true",
        f"{multi_turn}.function_tool_path={TOOLS}/calculator.py",
        f"{multi_turn}.max_assistant_turns=5",
        f"{STEPS}3",
    )
    replay = ("soup.source=replay", "soup.prefix_length.low=4", "soup.prefix_length.high=30", "trainer.save_freq=2")
    again = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={folder}/tools_replay/global_step_2")
    runs = {
        "tools_lookahead": ("soup.lookahead.age=1", "soup.prefix_length.low=2", "soup.prefix_length.high=6"),
        "tools_replay": replay,
        "tools_resumed": (*replay, *again),
    }
    return launch_series(assets, folder, runs, *shared)


def _resumed(assets: Path, folder: Path) -> Run:
    """As `six_steps`: a worker is stopped before a weight sync, and the run starts again by itself; then it is killed,
    left with a newer checkpoint that is torn, and resumed."""
    _kill(
        assets,
        folder,
        Fault("vLLM engine", step=4, stage="rollout"),
        *_SIX,
        "soup.restarts=1",
        "soup.stall_minutes.weight_sync=0.25",
        before=[Fault("FSDP worker", step=2, stage="weights", how="SIGSTOP")],  # before its first checkpoint
    )
    torn = folder / "global_step_4"
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(folder / "global_step_3", torn)
    model = torn / "actor" / "model_world_size_1_rank_0.pt"
    model.write_bytes(model.read_bytes()[:-100])
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    shutil.move(folder / "steps", folder / "steps_before_kill")
    return launch(assets, folder, *_SIX)


# Few sessions at once, of long responses: decoding takes longer than what verl does for each of them and than the 2
# seconds between its looks at what is done, so that updates find some under way. How many, and in which steps, is the
# machine's to say; with 8 at once a quick one had none.
_SLOW_ROLLOUT = (
    "soup.prefix_length.low=null",
    "soup.prefix_length.high=null",
    "data.max_response_length=192",
    "actor_rollout_ref.rollout.max_model_len=240",
    "actor_rollout_ref.rollout.max_num_seqs=3",
)
_INTERRUPTED = (
    "neighbors=partial_rollout",
    "trainer.v1.trainer_mode=probed_soup_colocate_async_cpu",
    *_SLOW_ROLLOUT,
    f"{STEPS}6",
    "trainer.save_freq=2",
)
_ON_TWO_POOLS = (  # every step two updates, between which the engine keeps its weights
    "neighbors=partial_rollout_two_pools",
    "trainer.v1.trainer_mode=probed_soup_separate_async_cpu",
    *_SLOW_ROLLOUT,
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    f"{STEPS}4",
    "trainer.save_freq=2",
)


def _partial_rollout(assets: Path, folder: Path) -> Run:
    """A worker is killed after the first checkpoint; the run starts again by itself."""
    death = Fault("FSDP worker", step=4, stage="update")
    keep = "trainer.max_actor_ckpt_to_keep=1"
    return launch(assets, folder, *_INTERRUPTED, keep, "soup.restarts=1", fault=Faults([death]))


def _two_pools(assets: Path, folder: Path) -> Run:
    """A worker is killed behind a checkpoint."""
    death = Fault("FSDP worker", step=3, stage="update")
    return launch(assets, folder, *_ON_TWO_POOLS, "soup.restarts=1", fault=Faults([death]))


# Nothing is under way when a step begins: then verl's asynchronous trainer repeats a run bit for bit.
_CALM = (*_SAME, "trainer.v1.colocate_async.num_warmup_batches=0")
_VERL_ASYNC = _alone(
    "verl_async",
    *_CALM,
    "trainer.v1.trainer_mode=probed_colocate_async_cpu",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    "actor_rollout_ref.model.external_lib=tests.e2e.seeded",
    "actor_rollout_ref.rollout.agent.default_agent_loop=seeded_agent",
)
_ASYNC_WITHOUT_MIXING = _alone("async_without_mixing", *_CALM, "trainer.v1.trainer_mode=probed_soup_colocate_async_cpu")


_RANKS = "trainer.n_gpus_per_node=2"


def _two_ranks(assets: Path, folder: Path) -> dict[str, Run]:
    """Two FSDP1 ranks over gloo, `STRATEGIES` among them, and a run whose reward is not a number."""
    runs = {
        # With a learning rate of 1e-8 they train, and yet every log-prob can be compared.
        "two_ranks": (
            *PREFIXES,
            f"{STEPS}4",
            "soup.lookahead.age=1",
            "trainer.save_freq=4",
            "soup.prefix_objective=masked",
            "actor_rollout_ref.actor.optim.lr=1e-8",
            "actor_rollout_ref.rollout.temperature=0.7",
            "actor_rollout_ref.model.use_remove_padding=true",
        ),
        **_scored("fsdp", "fp32"),
        "reward_is_nan": (
            *PREFIXES,
            f"{STEPS}3",
            f"data.val_files={assets}/not_a_number.parquet",
            "trainer.val_before_train=true",
        ),
    }
    return launch_series(assets, folder, runs, _RANKS, "actor_rollout_ref.actor.strategy=fsdp")


def _scored(strategy: str, dtype: str) -> dict[str, tuple[str, ...]]:
    """The same run with the prefixes' log-probs from the engine and from the actor, `fsdp_fp32_rollout` and so on; in
    bf16 the engine's weights, and with them the kept policies, are in bf16 too."""
    own = {"fp32": ("trainer.save_freq=4",), "bf16": ("actor_rollout_ref.rollout.dtype=bfloat16",)}
    same = (*_SNAPSHOT, *own[dtype])
    return {f"{strategy}_{dtype}_{by}": (*same, f"soup.behavior_log_probs={by}") for by in ("rollout", "actor")}


def _strategy(strategy: str, dtype: str, engine_ranks: int = 1) -> Launch:
    """`_scored` on two ranks, with processes of its own; two engines of one rank, or one engine of two."""
    runs = _scored(strategy, dtype)
    sharding = (
        f"actor_rollout_ref.actor.strategy={strategy}",
        f"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype={dtype}",
        f"actor_rollout_ref.rollout.tensor_model_parallel_size={engine_ranks}",
    )
    return Launch(tuple(runs), lambda assets, folder: launch_series(assets, folder, runs, _RANKS, *sharding), long=True)


# Two nodes with an FSDP2 rank each: one is lost after a checkpoint, comes back, and the run goes on.
_NODES = (
    "trainer.nnodes=2",
    "soup.source=snapshot",
    "soup.snapshot.capacity=2",
    "soup.prefix_objective=decoupled",
    "soup.baseline=split",
    "soup.behavior_log_probs=actor",
    "trainer.save_freq=2",
    f"{STEPS}4",
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


def _domains(assets: Path, folder: Path) -> Run:
    return launch(assets, folder, *domains.settings(domains.write_rows(folder / "data")))


def _images(assets: Path, folder: Path) -> dict[str, Run]:
    """Prompts of which every two differ in their images alone, learning rate 0: prefixes sampled ahead; those of a kept
    policy, scored by the actor; and those of earlier responses."""
    made = folder / "assets"
    made.mkdir(parents=True)
    vision.make(made)
    shared = (
        f"data.train_files={made}/{vision.ROWS}",
        f"data.val_files={made}/{vision.ROWS}",
        f"data.custom_cls.path={vision.__file__}",
        "data.custom_cls.name=ImageRows",
        "data.max_prompt_length=64",
        f"actor_rollout_ref.model.path={made}/{vision.MODEL}",
        "actor_rollout_ref.model.trust_remote_code=true",
        "actor_rollout_ref.rollout.max_model_len=96",
        # vLLM's own Qwen2-VL imports torchvision.
        "+actor_rollout_ref.rollout.engine_kwargs.vllm.model_impl=transformers",
        "actor_rollout_ref.actor.optim.lr=0",
        f"{STEPS}3",
    )
    runs = {
        "images_lookahead": (*PREFIXES, "soup.lookahead.age=1"),
        "images_snapshot": (*PREFIXES, "soup.source=snapshot", "soup.behavior_log_probs=actor"),
        "images_replay": (*PREFIXES, "soup.source=replay"),
    }
    return launch_series(assets, folder, runs, *shared)


def _rehearsal(name: str) -> Launch:
    return _single(name, lambda _, folder: rehearsals.rehearse(name, folder), long=True)


# First those of every extent of check.sh, the longest first: then both places have work until the end. Then the long
# ones, in the order of what would be missed most where `SOUP_CHECK_MINUTES` are over before all have begun.
LAUNCHES = (
    Launch(tuple(name for name in _series_runs(None) if name not in _APART), _series),
    Launch(("two_ranks", *_scored("fsdp", "fp32"), "reward_is_nan"), _two_ranks),
    Launch(("snapshot_fsdp2", "best_kept", "disk_full"), _offload),
    Launch(("snapshot_fsdp", "snapshot_resumed", "truncated_raw", "any_index", "reward_raises"), _fsdp),
    _VERL_GRPO,
    _lora("fsdp2"),
    _lora("fsdp"),
    Launch(("tools_lookahead", "tools_replay", "tools_resumed"), _tools),
    _single("domains", _domains),
    _VERL_ASYNC,
    _ASYNC_WITHOUT_MIXING,
    _single("resumed", _resumed, long=True),
    _single("partial_rollout", _partial_rollout, long=True),
    Launch((*_APART, "dapo_replay"), _apart, long=True),
    _rehearsal("rehearsed_qwen"),
    _single("two_nodes", _two_nodes, long=True),
    _single("two_pools", _two_pools, long=True),
    _strategy("fsdp2", "bf16", engine_ranks=2),
    Launch(("images_lookahead", "images_snapshot", "images_replay"), _images, long=True),
    _strategy("fsdp2", "fp32"),
    _strategy("fsdp", "bf16"),
    *(_rehearsal(name) for name in rehearsals.SCRIPTS if name != "rehearsed_qwen"),
)
