"""Reward functions as verl loads and calls them, without importing verl for those that are not its own."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from soup_verl.method.validation import is_solved

Reward = Callable[..., Any]
FUNCTION = "compute_score"
"""verl's name of it where none is given."""
PACKAGE = "pkg://"
OURS = ("soup_verl.reward", "soup_verl.tasks.reward")


def module_name(path: str) -> str:
    """Of verl's `pkg://a/b` or `pkg://a.b`."""
    return path.removeprefix(PACKAGE).replace("/", ".")


def is_ours(path: str | None, name: str | None) -> bool:
    """Whether these settings name this project's reward."""
    if path is None or name != FUNCTION:
        return False
    if path.startswith(PACKAGE):
        return module_name(path) in OURS
    here = Path(__file__).parent
    return Path(path.removeprefix("file://")).expanduser().resolve() in (here / "reward.py", here.parent / "reward.py")


def load_module(path: str) -> ModuleType:
    """The module of `pkg://MODULE`, `file://FILE` or a file. Raises whatever it raises while it is imported."""
    if path.startswith(PACKAGE):
        return importlib.import_module(module_name(path))
    file = Path(path.removeprefix("file://")).expanduser()
    found = importlib.util.spec_from_file_location("custom_reward", file)
    if found is None or found.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def call(
    function: Reward,
    *,
    data_source: Any,
    response: str,
    gold: Any,
    extra: Mapping[str, Any],
    keywords: Mapping[str, Any],
) -> dict[str, Any]:
    """What the function says of a response: all that it reports, with `score`, a float, and `correct` by `is_solved`.

    Raises:
        ValueError: it returned no finite number.
        Exception: whatever it raises itself.
    """
    result = function(
        **{"data_source": data_source, "solution_str": response, "ground_truth": gold, "extra_info": dict(extra)}
        | dict(keywords)
    )
    if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    fields = dict(result) if isinstance(result, Mapping) else {"score": result}
    score: Any = fields.get("score")
    number = score.item() if hasattr(score, "item") else score  # of numpy or torch
    if not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError(f"returned {result!r:.80}: expected a finite number, or a mapping with one as 'score'")
    return {**fields, "score": float(number), "correct": is_solved(fields.get("acc"), float(number))}


async def _awaited(result: Any) -> Any:
    return await result
