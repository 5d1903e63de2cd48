"""What checks settings: errors that name the key, the value and what is expected, and the reading of a section."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any


class PortableError(ValueError):
    """An error that keeps its message on the way out of a Ray process, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_error, (type(self), str(self))


def _rebuild_error(cls: type[PortableError], message: str) -> PortableError:
    error = cls.__new__(cls)
    error.args = (message,)
    return error


class ConfigError(PortableError):
    """A setting that cannot work: names the full key, the value seen, what is expected and what to do."""

    def __init__(self, key: str, value: Any, expected: str, remedy: str = ""):
        super().__init__(f"{key}={value!r}: expected {expected}." + (f" {remedy}" if remedy else ""))


def require(ok: bool, key: str, value: Any, expected: str, remedy: str = "") -> None:
    """Raise ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(key, value, expected, remedy)


def require_one_of(key: str, value: Any, choices: Collection[str]) -> None:
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require_int(key: str, value: Any, *, minimum: int) -> None:
    require(is_int(value) and value >= minimum, key, value, f"an integer of at least {minimum}")


def require_above_0(key: str, value: Any) -> None:
    require(is_number(value) and value > 0, key, value, "a number above 0")


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, those of sections too."""
    if not dataclasses.is_dataclass(value):
        yield path, value
        return
    for f in dataclasses.fields(value):
        yield from leaves(f"{path}.{f.name}", getattr(value, f.name))


def require_share(key: str, value: Any) -> None:
    require(
        is_number(value) and 0 <= value <= 1,
        key,
        value,
        "a number from 0 to 1",
        "It is the share of each prompt's responses that start with a historical prefix; 0 is plain GRPO.",
    )


def parse_section(cls: Any, section: Any, path: str) -> Any:
    if not isinstance(section, Mapping):
        raise ConfigError(path, section, "a section of keys")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in section:
        if key not in known:
            raise ConfigError(f"{path}.{key}", section[key], f"no such key; {path} has {', '.join(sorted(known))}")
    values = {}
    for key, value in section.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = parse_section(hint, value, f"{path}.{key}")
        else:
            if isinstance(value, Sequence) and not isinstance(value, str):
                value = list(value)  # OmegaConf has a list class of its own
            _check_type(f"{path}.{key}", value, hint)
            values[key] = value
    return cls(**values)


def _check_type(key: str, value: Any, hint: Any) -> None:
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
    ok = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
    require(ok, key, value, f"a value of type {names}")
