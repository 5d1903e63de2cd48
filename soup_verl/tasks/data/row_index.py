"""The one place that makes a stable text out of `extra_info.index`, whatever a data set has there."""

from __future__ import annotations

import json
import math
from typing import Any

NO_INDEX = "none"


def index_text(index: Any) -> str:
    """The index of a row as text: equal indexes have equal texts, in every process and run.

    A whole number is its digits, whatever type holds it; text is itself (UUIDs); null and NaN are "none"; lists and
    mappings are JSON with sorted keys.
    """
    if hasattr(index, "tolist"):  # numpy's and torch's numbers and arrays
        index = index.tolist()
    if index is None or (isinstance(index, float) and math.isnan(index)):
        return NO_INDEX
    if isinstance(index, float) and index.is_integer():
        return str(int(index))
    if isinstance(index, (list, tuple, dict)):
        return json.dumps(index, sort_keys=True, ensure_ascii=False, default=str)
    return str(index)


def index_to_show(index: Any) -> int | str:
    """The same for people and JSON: a number where it is one."""
    text = index_text(index)
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and not isinstance(index, str) else text
