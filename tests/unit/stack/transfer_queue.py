"""TransferQueue in a dict. It refuses and leaves out what the real one (`transfer_queue.interface`) does, and refuses
what the real one would only log: a key that is not there, whose row would be missing from the answer, and a field of
another dtype than before, which the controller would take no note of."""

import copy

import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from transfer_queue.storage.managers.simple_storage_manager import AsyncSimpleStorageManager

FUNCTIONS = ("kv_batch_get", "kv_batch_put", "kv_clear", "kv_list")


class Queue:
    """Keys of one partition.

    Args:
        rows: key -> field -> value; tensors without a batch dimension.
        partition_id: its name.
    """

    def __init__(self, rows=None, partition_id="train"):
        self.rows, self.tags, self.partition_id = rows or {}, {}, partition_id
        self._dtypes = {}  # of each field since there is a queue, whichever rows are gone
        for row in self.rows.values():
            for name, value in row.items():
                self._check_dtype(name, value)

    def stand_in(self, monkeypatch):
        """Take the place of `transfer_queue` wherever it is imported as a module."""
        for name in FUNCTIONS:
            monkeypatch.setattr(tq, name, getattr(self, name))
        return self

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        rows = [self.rows[key] for key in self._checked(keys, partition_id, there=True)]
        known = [name for name in rows[0] if all(name in row for row in rows)]  # others are left out
        names = known if select_fields is None else [name for name in select_fields if name in known]
        if not names:
            return TensorDict({}, batch_size=0)
        values = {name: copy.deepcopy([row[name] for row in rows]) for name in names}
        return TensorDict({n: AsyncSimpleStorageManager._pack_field_values(v) for n, v in values.items()}, len(rows))

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        if fields is None and tags is None:
            raise ValueError("Please provide at least one parameter of `fields` or `tags`.")
        if fields is not None and fields.batch_size[0] != len(keys):
            raise ValueError(f"`keys` with length {len(keys)} does not match batch_size {fields.batch_size[0]}")
        if tags is not None and len(tags) != len(keys):
            raise ValueError(f"keys with length {len(keys)} does not match length of tags {len(tags)}")
        for key in self._checked(keys, partition_id):
            self.rows.setdefault(key, {})
        for name, column in fields.items() if fields is not None else ():
            for key, value in zip(keys, _unpacked(column), strict=True):
                self._check_dtype(name, value)
                self.rows[key][name] = value
        for key, tag in zip(keys, tags or [], strict=tags is not None):
            self.tags.setdefault(key, {}).update(tag)
        stored = [self.tags.get(key, {}) for key in keys]
        return KVBatchMeta(keys=list(keys), tags=stored, partition_id=partition_id)

    def kv_clear(self, keys, partition_id):
        for key in self._checked(keys, partition_id, there=True):
            del self.rows[key]
            self.tags.pop(key, None)

    def kv_list(self, partition_id=None):
        return {self.partition_id: {key: dict(self.tags.get(key, {})) for key in self.rows}}

    def _checked(self, keys, partition_id, *, there=False):
        assert isinstance(keys, list) and all(isinstance(key, str) for key in keys), "only a list of strings is taken"
        if not keys:
            raise ValueError("Received an empty list as keys.")
        assert partition_id == self.partition_id, f"no partition {partition_id!r} here"
        assert len(set(keys)) == len(keys), "a key is there twice"
        absent = [key for key in keys if there and key not in self.rows]
        assert not absent, f"not in the queue: {absent}"
        return keys

    def _check_dtype(self, name, value):
        if isinstance(value, torch.Tensor):
            before = self._dtypes.setdefault(name, value.dtype)
            assert value.dtype == before, f"{name} is {value.dtype}, it was {before}"


def _unpacked(column):
    if isinstance(column, NonTensorStack):
        return copy.deepcopy(column.tolist())
    assert isinstance(column, torch.Tensor), f"one value a row is stored, not a {type(column).__name__}"
    return [value.clone() for value in column.unbind()]
