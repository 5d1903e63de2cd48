"""Copies of an FSDP1 or FSDP2 module's weights in host memory, and back: each rank its own shards. torch alone.

keep       -> a copy of this rank's shards
take_back  -> the module holds a copy's weights, and its next forward pass uses them
"""

from __future__ import annotations

from torch import Tensor, get_device_module
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import Module


def keep(module: Module) -> dict[str, Tensor]:
    """A copy of this rank's shard of each parameter, by the parameter's name, in its own dtype."""
    return {name: shard.to("cpu", copy=True) for name, shard in _shards(module).items()}


def take_back(module: Module, kept: dict[str, Tensor]) -> None:
    """Write what `keep` copied on this rank back into the module.

    Raises:
        KeyError: a parameter is not among them.
    """
    for name, shard in _shards(module).items():
        shard.copy_(kept[name])


def _shards(module: Module) -> dict[str, Tensor]:
    """The live shards, in a state in which the host may read and write them."""
    reshard(module)
    get_device_module().synchronize()  # offloaded shards: their copy from the device may still be under way
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return {name: p.to_local() if isinstance(p, DTensor) else p for name, p in parameters.items()}


def reshard(module: Module) -> None:
    """Free what FSDP has gathered, so that the next forward pass gathers anew.

    A forward pass without a backward pass leaves units gathered: the root (embedding, last norm, output layer) of FSDP1
    always, every unit with `reshard_after_forward=false`. FSDP1 would go on computing with the gathered copy whatever
    is written to the shards; FSDP2 does not even show its shards meanwhile.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
        elif isinstance(unit, FullyShardedDataParallel) and unit._handle is not None and unit._is_root is not None:
            # `_is_root` is None before the first pass. On one rank nothing is ever gathered and nothing can be freed.
            unit._handle.reshard(unit._handle.uses_sharded_strategy)
