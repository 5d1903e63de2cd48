"""Copies of an FSDP1 or FSDP2 module's weights in host memory, and back: each rank its own shards. torch alone.

Frozen parameters are the same in every policy and are left out: of a LoRA run only the adapters are kept.

keep       -> a copy of this rank's shards, in their own dtype or another
holding    -> inside a block the module has a copy's weights; its own are set aside unwritten
take_back  -> a copy's weights are written into the module
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, get_device_module
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import Module


def keep(module: Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A copy of this rank's shard of each trained parameter, by the parameter's name; in its own dtype by default."""
    _settle(module)
    return {name: _local(p).to("cpu", dtype, copy=True) for name, p in _trained(module).items()}


def take_back(module: Module, kept: Mapping[str, Tensor]) -> None:
    """Write what `keep` copied on this rank back into the module.

    Raises:
        KeyError: a parameter is not among them.
    """
    _settle(module)
    for name, parameter in _trained(module).items():
        _local(parameter).copy_(kept[name])


@contextmanager
def holding(module: Module, kept: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Inside the block the module has what `keep` copied on this rank, for forward passes and for reading; its own
    weights are neither copied nor written. Parameters, as optimizers know them, stay the same objects.

    The copy is laid out once more, where the shards are: in its own dtype if FSDP2 computes in that, else in theirs.

    Args:
        module: which has made a forward pass before; FSDP2 then knows what it computes in.
        kept: each trained parameter's name and copy.
    """
    _settle(module)
    trained = _trained(module)
    own = {name: p.detach() for name, p in trained.items()}
    gradients = {name: p.grad for name, p in trained.items()}
    for parameter in trained.values():
        parameter.grad = None  # of another dtype than the weights to come
    _exchange(module, {name: _laid_out(module, trained[name], copy) for name, copy in kept})
    try:
        yield
    finally:
        _exchange(module, own)
        for name, parameter in trained.items():
            parameter.grad = gradients[name]


def _laid_out(module: Module, parameter: Tensor, kept: Tensor) -> Tensor:
    computes_in = module._get_fsdp_state()._mp_policy.param_dtype if isinstance(module, FSDPModule) else None
    dtype = kept.dtype if kept.dtype == computes_in else parameter.dtype
    laid_out = torch.empty_like(parameter.detach(), dtype=dtype)
    _local(laid_out).copy_(kept)
    return laid_out


def _exchange(module: Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the trained parameters these contents, by the way that `Module.to` gives them others."""
    reshard(module)
    names = {id(parameter): name for name, parameter in _trained(module).items()}
    module._apply(lambda tensor: tensors[names[id(tensor)]] if id(tensor) in names else tensor)
    for _, unit in _fsdp1_units(module):
        if (handle := unit._handle) is not None and hasattr(handle.flat_param, "_local_shard"):
            handle.flat_param._local_shard = handle.flat_param.data


def _trained(module: Module) -> dict[str, Tensor]:
    """The trained parameters as they are sharded, by name: those of FSDP1 are flat, one a unit."""
    units = ((f"{name}._fsdp_wrapped_module._flat_param".lstrip("."), unit) for name, unit in _fsdp1_units(module))
    flat = [(name, unit._handle.flat_param) for name, unit in units if unit._handle is not None]
    return {name: p for name, p in flat or module.named_parameters() if p.requires_grad}


def _fsdp1_units(module: Module) -> list[tuple[str, FullyShardedDataParallel]]:
    return [(name, unit) for name, unit in module.named_modules() if isinstance(unit, FullyShardedDataParallel)]


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard, alive."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def _settle(module: Module) -> None:
    """The host may read and write the shards."""
    reshard(module)
    get_device_module().synchronize()  # offloaded shards: their copy from the device may still be under way


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
