"""What torch's two FSDPs must do for kept policies: the private names that `kept_weights` uses, by what they do."""

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soup_verl import kept_weights
from soup_verl.acceptance import weights


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


def test_verl_still_does_not_wait():
    """When this fails, see whether ours is needed."""
    from verl.utils.fsdp_utils import fsdp2_sharded_save_to_cpu, offload_fsdp2_model_to_cpu

    assert "non_blocking=True" in inspect.getsource(offload_fsdp2_model_to_cpu)
    assert "synchronize()" not in inspect.getsource(fsdp2_sharded_save_to_cpu)


def test_a_weight_that_was_not_kept_is_an_error():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(KeyError, match="bias"):
        kept_weights.take_back(module, {"weight": module.weight.detach().clone()})
