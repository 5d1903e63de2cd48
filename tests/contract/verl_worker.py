"""Our FSDP worker on verl's own engines, on one or two ranks of a process each, with a small model."""

import json
import os
import socket
from pathlib import Path

import torch

from soup_verl.acceptance.models import small_qwen2
from soup_verl.stack import cpu
from tests.unit import preflight_files as files


def wrong_on(ranks: int, find, folder: Path, monkeypatch) -> list[str]:
    """The lines that `find(rank, ranks, folder)` returns on each rank, all together."""
    for name, value in cpu.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    model = small_qwen2(vocab_size=301, hidden_size=64, intermediate_size=128, num_key_value_heads=1)
    model.save_pretrained(folder / "model")
    files.byte_tokenizer().save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, args=(ranks, port, folder, find), nprocs=ranks)
    return [line for rank in range(ranks) for line in json.loads((folder / f"{rank}.json").read_text())]


def _one_rank(rank: int, ranks: int, port: int, folder: Path, find) -> None:
    """What it found is written to the folder as `RANK.json`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    wrong = find(rank, ranks, folder)
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(wrong))


def worker_of(strategy: str, folder: Path, *settings: str):
    from soup_verl.stack.cpu.training import CpuSoupActorWorker

    optim = "actor_rollout_ref.actor.optim"
    config = files.configure(
        f"actor_rollout_ref.actor.strategy={strategy}",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.n=4",
        *(f"{optim}.{setting}" for setting in ("lr=0.01", "lr_scheduler_type=cosine", "total_training_steps=10")),
        *settings,
        platform="cpu",
    )
    worker = CpuSoupActorWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def exported(engine) -> dict[str, torch.Tensor]:
    """As the rollout engine gets them."""
    return {name: weight.detach().cpu().clone() for name, weight in engine.get_per_tensor_param()[0]}
