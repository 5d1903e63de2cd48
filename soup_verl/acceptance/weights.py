"""A policy is kept, trained away from, held again and given back, with FSDP1 and FSDP2 in plain torch.

As `snapshot` does it in every step with `behavior_log_probs=actor`, and with the same functions (`kept_weights`): kept
in the dtype of the forward pass, held for what is sent and scored; then written and restored as `forget` does. All
comparisons are bit for bit: the same kernels on the same numbers.
"""

from __future__ import annotations

import faulthandler
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from soup_verl.acceptance.models import small_qwen2
from soup_verl.acceptance.outcome import Skip
from soup_verl.stack import kept_weights

STRATEGIES = ("fsdp", "fsdp2")
"""verl's names."""


@dataclass(frozen=True)
class Sharding:
    """How verl may shard the actor, in its words.

    Args:
        param_dtype: of the forward pass and of kept policies; the shards are float32.
        offload: `param` (verl moves the shards to host memory between two passes), `policy` (torch does, within a
            pass too; FSDP2 alone) or `none`.
    """

    strategy: str
    param_dtype: str
    reshard_after_forward: bool
    offload: str

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.param_dtype]


def shardings(strategy: str) -> list[Sharding]:
    """All that make sense together."""
    offloads = ("none", "param", "policy") if strategy == "fsdp2" else ("none", "param")
    return [Sharding(strategy, *rest) for rest in product(("fp32", "bf16"), (True, False), offloads)]


def check(device: torch.device, strategy: str, ranks: int) -> str:
    """Every sharding of the strategy. Ranks have a GPU each, over NCCL, or share the device, over gloo.

    Raises:
        AssertionError: says which comparison failed under which sharding.
        Skip: these ranks cannot talk to each other about tensors on this device.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, str(device), strategy, folder)
        torch.multiprocessing.spawn(_one_rank, args=arguments, nprocs=ranks)
        findings = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    if reasons := [f["skip"] for f in findings if "skip" in f]:
        raise Skip(reasons[0])
    wrong = sorted({line for f in findings for line in f["wrong"]})
    assert not wrong, "; ".join(wrong)
    return f"{len(shardings(strategy))} shardings, bit for bit"


def _one_rank(rank: int, ranks: int, device_name: str, strategy: str, folder: str) -> None:
    """What it found is written to the folder as `RANK.json`.

    The process then ends at once. torch keeps gloo's threads for as long as anything refers to the process group, and
    one that lets go of a tensor while Python shuts down takes the process with it: SIGABRT or SIGSEGV, one run in many,
    and after `sys.setswitchinterval(30)` in 3 of 30, always past the last Python frame.
    """
    faulthandler.enable()
    torch.set_num_threads(1)
    device, backend = torch.device(device_name), "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl" if ranks <= torch.cuda.device_count() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        reason = _cannot_gather(device, ranks)
        found = {"skip": reason} if reason else {"wrong": [w for s in shardings(strategy) for w in wrong(s, device)]}
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)


def _cannot_gather(device: torch.device, ranks: int) -> str | None:
    part, whole = torch.ones(2, device=device), torch.ones(2 * ranks, device=device)
    try:
        dist.all_gather_into_tensor(whole, part)
        dist.reduce_scatter_tensor(part, whole)
    except (RuntimeError, NotImplementedError) as error:
        return f"{dist.get_backend()} on {device.type}: {str(error).splitlines()[0]}"
    return None


def wrong(how: Sharding, device: torch.device) -> list[str]:
    """Which comparisons fail, none if all is well."""
    actor, unheld = Actor(how, device), Actor(how, device)
    first, first_logits = actor.exported(), actor.logits()
    kept = kept_weights.keep(actor.module, how.dtype)
    actor.train_a_step()
    trained, _ = actor.exported(), actor.logits()  # which leaves units gathered

    with kept_weights.holding(actor.module, kept.items()):
        sent, held = actor.exported(), actor.logits()
    after, after_logits = actor.exported(), actor.logits()

    current = kept_weights.keep(actor.module)
    kept_weights.take_back(actor.module, kept)
    written = actor.logits()
    kept_weights.take_back(actor.module, current)
    restored, restored_logits = actor.exported(), actor.logits()

    if how.reshard_after_forward:  # half of all shardings are enough
        for trains in (actor, unheld, unheld):
            trains.train_a_step()

    expected = Actor(how, device, trained).logits()
    moved = (first_logits - expected).abs().max().item()
    failed = {
        "training moved next to nothing": not moved > 0.01,
        "what is sent of the kept policy differs": not _equal(_rounded(sent, how), _rounded(first, how)),
        "the kept policy's logits differ while it is held": not torch.equal(held, first_logits),
        "the present policy's logits differ after that": not torch.equal(after_logits, expected),
        "the exported parameters differ after that": not _equal(after, trained),
        "the kept policy's logits differ once it is written": not torch.equal(written, first_logits),
        "the present policy's logits differ after the restore": not torch.equal(restored_logits, expected),
        "the exported parameters differ after the restore": not _equal(restored, trained),
        "the next update differs": how.reshard_after_forward and not _equal(actor.exported(), unheld.exported()),
    }
    return [f"{text} ({_words(how)})" for text, so in failed.items() if so]


def _rounded(weights: dict[str, Tensor], how: Sharding) -> dict[str, Tensor]:
    """As a rollout engine in this dtype takes them."""
    return {name: weight.to(how.dtype) for name, weight in weights.items()}


def _words(how: Sharding) -> str:
    return ", ".join(f"{key}={value}" for key, value in asdict(how).items())


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Actor:
    """A small model sharded over the default process group as verl's engines shard one, with its optimizer.

    Args:
        weights: the full weights by name; random by default, the same every time.
    """

    def __init__(self, how: Sharding, device: torch.device, weights: dict[str, Tensor] | None = None):
        odd = 65  # words, which two ranks share unevenly
        model = small_qwen2(vocab_size=odd, hidden_size=64, intermediate_size=128, num_key_value_heads=1).to(device)
        if weights is not None:
            model.load_state_dict(weights)
        self._how, self._device = how, device
        self.module = _fsdp1(model, how, device) if how.strategy == "fsdp" else _fsdp2(model, how, device)
        self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.01)
        rows = torch.arange(128, device=device).view(4, 32) % 64
        self._tokens = rows if dist.get_rank() == 0 else rows.flip(0)
        self._offloaded = False

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Between two blocks the shards are where verl's `param_offload` has them."""
        if self._offloaded:
            _move(self.module, self._device)
        yield
        if self._how.offload == "param":
            if self._device.type == "cuda":
                torch.cuda._sleep(100_000_000)  # cycles: the copies to the host are certainly late
            _move(self.module, torch.device("cpu"))
            self._offloaded = True

    def logits(self) -> Tensor:
        with self._on_device(), torch.no_grad():
            return self.module(self._tokens).logits.float().cpu()

    def train_a_step(self) -> None:
        with self._on_device():
            logits = self.module(self._tokens).logits.float()
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), self._tokens[:, 1:].flatten()).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()

    def exported(self) -> dict[str, Tensor]:
        """The full parameters by their names, in host memory; every rank takes part."""
        with self._on_device():
            if isinstance(self.module, FullyShardedDataParallel):
                with FullyShardedDataParallel.state_dict_type(self.module, StateDictType.FULL_STATE_DICT):
                    return {name: value.cpu().clone() for name, value in self.module.state_dict().items()}
            shards = self.module.state_dict()
            return {name: value.to(self._device).full_tensor().cpu().clone() for name, value in shards.items()}


def _fsdp1(model: nn.Module, how: Sharding, device: torch.device) -> nn.Module:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Qwen2DecoderLayer}),
        device_id=device,
        sharding_strategy=ShardingStrategy.FULL_SHARD if how.reshard_after_forward else ShardingStrategy.SHARD_GRAD_OP,
        mixed_precision=MixedPrecision(how.dtype, reduce_dtype=torch.float32, buffer_dtype=torch.float32),
    )


def _fsdp2(model: nn.Module, how: Sharding, device: torch.device) -> nn.Module:
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if how.offload == "policy" else OffloadPolicy()
    for unit in (*(m for m in model.modules() if isinstance(m, Qwen2DecoderLayer)), model):
        fully_shard(
            unit,
            mesh=init_device_mesh(device.type, (dist.get_world_size(),)),
            reshard_after_forward=how.reshard_after_forward,
            mp_policy=MixedPrecisionPolicy(how.dtype, reduce_dtype=torch.float32),
            offload_policy=offload,
        )
    return model


def _move(module: nn.Module, device: torch.device) -> None:
    """As verl's `param_offload` moves the shards: without waiting."""
    if isinstance(module, FSDPModule):
        module.to(device, non_blocking=True)
        return
    for unit in FullyShardedDataParallel.fsdp_modules(module):
        assert (handle := unit._handle) is not None  # every unit of ours has parameters
        handle.flat_param_to(device, non_blocking=True)
        handle.flat_param._local_shard = handle.flat_param.data
