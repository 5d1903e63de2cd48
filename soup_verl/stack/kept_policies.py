"""The kept policies of one rank, in host memory and on disk. torch and safetensors alone.

A step of reinforcement learning changes few of the weights in bfloat16. So the newest policy is kept whole, and of each
older one what differs from the next newer, tensor by tensor: places (int32) and values, or the whole tensor where that
is smaller. The oldest can be dropped without touching the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PLACES, VALUES = "@places", "@values"
"""What names of changes end with in a file."""


@dataclass(frozen=True)
class Change:
    """What differs from the same tensor of the next newer policy.

    Args:
        places: in the flattened tensor, int32.
        values: those of the older policy there.
    """

    places: Tensor
    values: Tensor


class KeptPolicies:
    """Policies by version, oldest first. All have the same names and shapes."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, Tensor | Change]] = {}

    @property
    def bytes(self) -> int:
        parts = (part for policy in self._kept.values() for kept in policy.values() for part in _parts(kept).values())
        return sum(part.nbytes for part in parts)

    def keep(self, version: int, weights: dict[str, Tensor]) -> None:
        """Take over `weights`, which nobody else may write to, as the newest policy."""
        if self._kept:
            before = next(reversed(self._kept.values()))
            for name, old in before.items():
                assert isinstance(old, Tensor)  # the newest so far
                before[name] = changed(old, weights[name])
        self._kept[version] = dict(weights)

    def drop(self, version: int) -> None:
        assert version == next(iter(self._kept)), "older policies are kept as changes of newer ones"
        del self._kept[version]

    def clear(self) -> None:
        self._kept.clear()

    def weights(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of a policy with its name, one after the other."""
        policies = [policy for kept, policy in self._kept.items() if kept >= version]
        for name in self._kept[version]:
            yield name, _whole([policy[name] for policy in policies])

    def write(self, path_of: Callable[[int], Path], versions: Sequence[int]) -> None:
        """One file a version."""
        for version in versions:
            kept = self._kept[version]
            save_file({n + end: p for n, k in kept.items() for end, p in _parts(k).items()}, path_of(version))

    def read(self, path_of: Callable[[int], Path], versions: Sequence[int], like: dict[str, Tensor]) -> None:
        """Take up what `write` wrote, or whole weights in another dtype.

        Args:
            path_of: the file of a version.
            versions: oldest first.
            like: names, shapes and dtype of the weights.

        Raises:
            ValueError: names a file that is missing, torn or of another model.
        """
        read = {}
        for version in versions:
            path = path_of(version)
            try:
                stored = load_file(path)
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path}: not a readable snapshot ({error})") from error
            read[version] = {name: _stored(stored, name, expected, path) for name, expected in like.items()}
        self._kept = read


def changed(old: Tensor, new: Tensor) -> Tensor | Change:
    """`old` as a change of `new`, or itself where that is no larger. Numbers are compared bit by bit."""
    bits = {2: torch.int16, 4: torch.int32}[old.itemsize]
    differ = (old.view(bits) != new.view(bits)).flatten()
    size = int(differ.count_nonzero()) * (torch.int32.itemsize + old.itemsize)
    if size >= old.nbytes or old.numel() > torch.iinfo(torch.int32).max:
        return old
    places = differ.nonzero().flatten()
    return Change(places.int(), old.flatten()[places])


def _whole(newer: list[Tensor | Change]) -> Tensor:
    """The first of these, of which each change is one of the next."""
    changes: list[Change] = []
    for kept in newer:
        if isinstance(kept, Tensor):
            break
        changes.append(kept)
    assert isinstance(kept, Tensor)  # the newest is whole
    found = kept.clone() if changes else kept
    for change in reversed(changes):
        found.view(-1)[change.places.long()] = change.values
    return found


def _parts(kept: Tensor | Change) -> dict[str, Tensor]:
    return {"": kept} if isinstance(kept, Tensor) else {PLACES: kept.places, VALUES: kept.values}


def _stored(stored: dict[str, Tensor], name: str, like: Tensor, path: Path) -> Tensor | Change:
    places, values, whole = (stored.get(name + end) for end in (PLACES, VALUES, ""))
    if places is not None and values is not None and _fits(places, values, like.numel()):
        return Change(places.clone(), values.to(like.dtype, copy=True))
    if whole is None or whole.shape != like.shape:
        raise ValueError(f"{path}: {name} is missing or of another shape than {tuple(like.shape)}")
    return whole.to(like.dtype, copy=True)  # safetensors may leave it in the file


def _fits(places: Tensor, values: Tensor, size: int) -> bool:
    """Whether these can be a change of a tensor of so many numbers."""
    return places.dim() == 1 and places.shape == values.shape and bool(((places >= 0) & (places < size)).all())
