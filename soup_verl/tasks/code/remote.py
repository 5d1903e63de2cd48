"""Calls of a program's functions from another process, so that tests never share one with what they test.

    tests (checker)                                      program
    Remote("f")(1, [2])  ──► {"call": ..., "args": ..} ──► f(1, [2])
    plain data           ◄── {"value": ...}            ◄── what it returned
    Remote(handle 3)     ◄── {"value": handle 3}       ◄── an object of a class of the program's

What comes back is rebuilt of plain types alone: no `__eq__`, no subclass, no name of the program's reaches the tests.
Standard library only.
"""

from __future__ import annotations

import builtins
import itertools
import json
import os
import struct
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 1 << 24  # bytes
MAX_ITEMS = 1 << 20  # that are taken out of an iterator
_CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TEXTS: dict[str, Callable[[Any], str]] = {
    "int": hex, "float": float.__repr__, "complex": complex.__repr__, "str": str.__str__, "bytes": bytes.hex,
}  # fmt: skip


class Gone(Exception):
    """The other side has ended."""


def send(fd: int, message: Any) -> None:
    data = json.dumps(message).encode()
    data = struct.pack("I", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> Any:
    """A message. Raises Gone where there is no whole one."""
    size = struct.unpack("I", _read(fd, 4))[0]
    if size > MAX_MESSAGE:
        raise Gone(f"a message of {size} bytes, expected at most {MAX_MESSAGE}")
    return json.loads(_read(fd, size))


def exchange(socket: Any, message: Any) -> Any:
    """Send and receive on a socket with its timeout. Raises OSError or Gone."""
    data = json.dumps(message).encode()
    socket.sendall(struct.pack("I", len(data)) + data)
    size = struct.unpack("I", _take(socket, 4))[0]
    return json.loads(_take(socket, size))


def _take(socket: Any, size: int) -> bytes:
    parts = []
    while size:
        part = socket.recv(min(size, 1 << 16))
        if not part:
            raise Gone("the other side has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 16))
        if not part:
            raise Gone("the other side has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any, handle: Callable[[Any], int]) -> Any:
    """As JSON: [type, value]; what is not plain data becomes a handle."""
    if value is None or isinstance(value, bool):
        return ["plain", value]
    for name, text in _TEXTS.items():
        if isinstance(value, getattr(builtins, name)):
            return [name, text(value)]
    if isinstance(value, dict):
        return ["dict", [[encode(k, handle), encode(v, handle)] for k, v in value.items()]]
    for name in ("list", "tuple", "set", "frozenset"):
        if isinstance(value, _CONTAINERS[name]):
            return [name, [encode(v, handle) for v in value]]
    if hasattr(value, "__next__") or isinstance(value, range | type({}.keys()) | type({}.values()) | type({}.items())):
        return ["list", [encode(v, handle) for v in itertools.islice(value, MAX_ITEMS)]]
    return ["handle", value._handle if isinstance(value, Remote) else handle(value)]


def decode(message: Any, handle: Callable[[Any], Any]) -> Any:
    """The value of `encode`'s message."""
    kind, value = message
    if kind == "plain":
        return value
    if kind == "int":
        return int(value, 16)
    if kind in ("float", "complex"):
        return {"float": float, "complex": complex}[kind](value)
    if kind == "str":
        return str(value)
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "handle":
        return handle(value)
    if kind == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in value}
    return _CONTAINERS[kind](decode(v, handle) for v in value)


def serve(names: dict[str, Any], requests: int, replies: int) -> None:
    """Answer requests about a program's `names` until there are no more."""
    objects: list[Any] = [names]

    def handle(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def answer(request: dict[str, Any]) -> Any:
        owner, name = objects[request["of"]], request["name"]
        target = owner if name is None else owner[name] if owner is names else getattr(owner, name)
        if request["do"] == "get":
            return target
        args = decode(request["args"], objects.__getitem__)
        if request["do"] == "set":
            return setattr(owner, request["attribute"], args)
        return target(*args, **decode(request["keywords"], objects.__getitem__))

    while True:
        request = receive(requests)
        try:
            reply = {"value": encode(answer(request), handle)}
        except BaseException as error:  # the program's, whatever it is: told to the tests
            reply = {"error": type(error).__name__, "said": f"{error}"[:200]}
        send(replies, reply)


class Remote:
    """An object of the program's, seen from the tests. It has no truth value, and equals itself alone."""

    def __init__(self, ask: Callable[[dict[str, Any]], Any], handle: int, name: str | None = None):
        self.__dict__.update(_ask=ask, _handle=handle, _name=name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        told = {"do": "call", "of": self._handle, "name": self._name}
        return self._ask(told | {"args": encode(args, _no_handle), "keywords": encode(keywords, _no_handle)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        owner = self if self._name is None else self._ask({"do": "get", "of": self._handle, "name": self._name})
        if not isinstance(owner, Remote):
            return getattr(owner, name)
        found = owner._ask({"do": "get", "of": owner._handle, "name": name})
        return Remote(owner._ask, owner._handle, name) if isinstance(found, Remote) else found

    def __setattr__(self, name: str, value: Any) -> None:
        told = {"do": "set", "of": self._handle, "name": None, "attribute": name}
        self._ask(told | {"args": encode(value, _no_handle)})

    def __bool__(self) -> bool:
        raise TypeError("an object of the program's own class, expected plain data")


def _no_handle(value: Any) -> int:
    raise TypeError(f"{type(value).__name__}: expected plain data, or an object of the program's own")


def asker(requests: int, replies: int) -> Callable[[dict[str, Any]], Any]:
    """What a Remote asks with; raises the built-in exception that the program raised, or Gone."""

    def ask(request: dict[str, Any]) -> Any:
        try:
            send(requests, request)
            reply = receive(replies)
        except OSError as error:
            raise Gone(f"the program has ended ({error})") from None
        if "value" in reply:
            return decode(reply["value"], lambda number: Remote(ask, number))
        kind = getattr(builtins, str(reply["error"]), None)
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        if is_error and kind is not None:
            raise kind(reply["said"])
        raise RuntimeError(reply["said"])

    return ask


class Names(dict):
    """Globals of tests, in which an unknown name is the program's."""

    def __init__(self, ask: Callable[[dict[str, Any]], Any]):
        super().__init__(__name__="tests", __builtins__=builtins)
        self._ask = ask

    def add(self, code: Any) -> None:
        """Make the names that compiled tests use known."""
        for name in code.co_names:
            if name not in self and not hasattr(builtins, name):
                self[name] = Remote(self._ask, 0, name)
        for constant in code.co_consts:
            if hasattr(constant, "co_names"):
                self.add(constant)
