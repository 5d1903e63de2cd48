"""What torch's two FSDPs must do for kept policies: the private names that `kept_weights` uses, by what they do."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soup_verl.acceptance import weights
from soup_verl.launch.preflight import sizing
from soup_verl.method.history import SnapshotSource
from soup_verl.method.sections import SnapshotConfig
from soup_verl.stack import kept_weights
from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.kept_policies import KeptPolicies
from soup_verl.stack.policy_engine import TrainerPolicyEngine


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("strategy", weights.STRATEGIES)
def test_after_a_forward_pass_with_a_kept_policy_the_present_one_is_back(strategy, ranks):
    """In both precisions, with and without resharding after the forward pass, with and without offload. FSDP1 holds
    one rank's parameters unsharded, so only two ranks can go wrong there. On a CPU offload moves nothing."""
    weights.check(torch.device("cpu"), strategy, ranks)


class Calls(TorchDispatchMode):
    """Operations on tensors and calls of `synchronize`, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    def synchronize(self):
        self.names.append("synchronize")


@pytest.mark.parametrize(("restores", "copies"), [(False, "_to_copy"), (True, "copy_")])
def test_the_device_has_finished_before_the_host_touches_the_weights(monkeypatch, restores, copies):
    """verl moves offloaded parameters without waiting (`offload_fsdp2_model_to_cpu`), and may still be at it."""
    module = torch.nn.Linear(2, 2)
    kept = kept_weights.keep(module)
    calls = Calls()
    monkeypatch.setattr(kept_weights, "get_device_module", lambda: calls)
    with calls:
        kept_weights.take_back(module, kept) if restores else kept_weights.keep(module)
    assert calls.names.count("synchronize") == 1 and calls.names.count(copies) == 2  # weight and bias
    assert calls.names.index("synchronize") < calls.names.index(copies)


def test_every_device_can_be_waited_for():
    torch.get_device_module().synchronize()
    assert callable(torch.get_device_module("cuda").synchronize)


def test_verl_still_does_not_wait(monkeypatch):
    """When this fails, see whether ours is needed."""
    from verl.utils import fsdp_utils

    moves, calls, unsharded = [], Calls(), torch.nn.Linear(2, 2)
    monkeypatch.setattr(fsdp_utils, "get_torch_device", lambda: calls)
    fsdp_utils.offload_fsdp2_model_to_cpu(SimpleNamespace(to=lambda *to, **how: moves.append((to, how))), False)
    assert moves == [(("cpu",), {"non_blocking": True})]
    with calls, pytest.raises(AssertionError, match="No DTensor"):  # after it has copied what it found
        fsdp_utils.fsdp2_sharded_save_to_cpu(unsharded)
    assert calls.names == ["detach", "detach"]


def test_a_weight_that_was_not_kept_is_an_error():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(KeyError, match="bias"):
        kept_weights.take_back(module, {"weight": module.weight.detach().clone()})


def test_frozen_weights_are_neither_kept_nor_written():
    module = torch.nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    kept = kept_weights.keep(module)
    assert list(kept) == ["bias"]
    frozen = module.weight.clone()
    kept_weights.take_back(module, {"bias": torch.ones(2)})
    assert torch.equal(module.weight, frozen) and module.bias.tolist() == [1, 1]


class Memory(TorchDispatchMode):
    """Bytes of the tensors made inside the block: the most that were alive after an operation."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        made = [storage for storage in storages(result) if storage.data_ptr() not in given]
        self._alive |= {storage.data_ptr(): (StorageWeakRef(storage), storage.nbytes()) for storage in made}
        self._alive = {p: (reference, size) for p, (reference, size) in self._alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def storages(values):
    """Of plain tensors and of DTensors' shards."""
    shards = (t._local_tensor if isinstance(t, DTensor) else t for t in tree_leaves(values))
    return [t.untyped_storage() for t in shards if type(t) in (torch.Tensor, torch.nn.Parameter)]


class WithoutRollout(TrainerPolicyEngine):
    """The engine on one real worker; nothing is sampled, and every weight changes between two policies."""

    def __init__(self, worker):
        super().__init__(loader=None, fetches=1, planner=None, solved=None, workers=worker)

    def wants_prefixes(self, step):
        return True

    def rollout_awake(self, version):
        return self.workers._holding()

    def sample_prefixes(self, step, **how):
        return SimpleNamespace(result=list)

    def rescored(self, step, groups):
        with self.workers._holding():
            return groups

    def keep_policy(self, version):
        super().keep_policy(version)
        for parameter in self.workers.actor.engine.module.parameters():
            parameter.detach().neg_()


@pytest.mark.parametrize(("strategy", "laid_out_bytes"), [("fsdp", 4), ("fsdp2", 2)])
def test_kept_policies_take_the_memory_that_sizing_says(strategy, laid_out_bytes):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        actor = weights.Actor(weights.Sharding(strategy, "bf16", True, "none"), torch.device("cpu"))
        params = sum(t.numel() for t in actor.exported().values())
        worker = SoupActorWorker.__new__(SoupActorWorker)
        worker.actor, worker._kept = SimpleNamespace(engine=SimpleNamespace(module=actor.module)), KeptPolicies()
        worker.config = OmegaConf.create({"model": {}, "rollout": {"dtype": "bfloat16"}})
        source = SnapshotSource(
            WithoutRollout(worker), SnapshotConfig(every=1, capacity=3, choice="uniform"), seed=0, last_step=99
        )
        with Memory() as memory:
            for step in range(1, 8):
                source.after_update(step)
    finally:
        torch.distributed.destroy_process_group()
    assert {name for name, _ in worker._kept.weights(7)} == {name for name, _ in actor.module.named_parameters()}
    layout = {"shards": 1, "gpus_per_node": 1}
    told = sizing.snapshot_buffer(params, capacity=3, element_bytes=2, laid_out_bytes=laid_out_bytes, **layout)
    assert memory.peak == told.bytes
