"""How the rows of a data set read: which column holds which field, and what its values are turned into."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from soup_verl.method.checks import PortableError
from soup_verl.tasks.data.row_index import NO_INDEX, index_text
from soup_verl.tasks.grading.boxes import last_box

Convert = Callable[[Any], Any]


class DataError(PortableError):
    """Data or arguments that cannot be used: one line that says what was found, what is expected and what to do."""


def as_text(value: Any) -> str:
    """Text as it is, a whole number without its `.0`, None and the NaN that a table has for it as the empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise DataError(f"{type(value).__name__} ({str(value)[:60]!r}), expected text or a number")


def as_optional_text(value: Any) -> str | None:
    return as_text(value).strip() or None


def as_texts(value: Any) -> tuple[str, ...]:
    """A list of texts; one text is a list of one."""
    if value is None:
        return ()
    return tuple(as_text(v) for v in value) if isinstance(value, list | tuple) else (as_text(value),)


def as_tolerance(value: Any) -> float | None:
    """A finite number of at least 0, or None."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise DataError(f"{value!r}, expected a tolerance: a finite number of at least 0")
    return number


def as_bool(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise DataError(f"{value!r}, expected true or false")


def as_level(value: Any) -> int | None:
    """The number in 5, 5.0, "5" or "Level 5"; None where there is none ("Level ?")."""
    digits = re.search(r"\d+", as_text(value))
    return int(digits.group()) if digits else None


def last_boxed(text: Any) -> str:
    r"""What the last `\boxed{...}` holds, braces matched; empty where there is none or it never closes."""
    text = as_text(text)
    return last_box(text, max_chars=len(text))[0] or ""


def after_hashes(text: Any) -> str:
    """GSM8K's answer: what follows the last `####`, without thousands separators; empty where there is none."""
    _, mark, answer = as_text(text).rpartition("####")
    return answer.strip().replace(",", "") if mark else ""


def last_user_turn(messages: Any) -> str:
    """The content of the last message whose role is `user`."""
    turns = [m for m in messages if m.get("role") == "user"] if isinstance(messages, list) else []
    if not turns:
        raise DataError(f"{str(messages)[:60]!r}, expected chat messages with a user turn")
    return as_text(turns[-1].get("content"))


def member(key: str) -> Convert:
    """The value under `key` of a column that holds a mapping, or the JSON text of one."""

    def get(value: Any) -> Any:
        found = _mapping(value)
        if key not in found:
            raise DataError(f"{str(value)[:60]!r}, expected a mapping with {key!r}")
        return found[key]

    return get


def own_index(value: Any) -> str:
    """`extra_info.index` as text, of whatever kind it is; "" where there is none."""
    text = index_text(_mapping(value).get("index"))
    return "" if text == NO_INDEX else text


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or what JSON text says it is; empty for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


_CONVERT: dict[str, Convert] = {
    "id": as_text,
    "question": as_text,
    "gold": as_text,
    "alt_answers": as_texts,
    "tolerance": as_tolerance,
    "is_multiple_answer": as_bool,
    "unit": as_optional_text,
    "level": as_level,
    "subject": as_optional_text,
    "options": as_texts,
    "labels": as_texts,
}
"""Of every other field: text."""


@dataclass(frozen=True)
class Layout:
    """How rows read.

    Args:
        columns: field of `Problem`, or of a domain's own -> column. Those of `required` must be there; of the others, a
            missing one leaves the field's default.
        convert: field -> function of the column's value, applied before the field's usual conversion.
    """

    columns: Mapping[str, str]
    convert: Mapping[str, Convert] = field(default_factory=dict)
    required: tuple[str, ...] = ("question", "gold")

    @property
    def required_columns(self) -> list[str]:
        return [self.columns[name] for name in self.required]

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that this row has.

        Raises:
            DataError: names the column.
        """
        missing = [c for c in self.required_columns if c not in row]
        if missing:
            raise DataError(f"no column {missing[0]!r}; columns found: {', '.join(row)}")
        return {name: self._value(name, row[c]) for name, c in self.columns.items() if c in row}

    def _value(self, name: str, value: Any) -> Any:
        try:
            return _CONVERT.get(name, as_text)(self.convert[name](value) if name in self.convert else value)
        except DataError as error:
            raise DataError(f"column {self.columns[name]!r} is {error}") from None
