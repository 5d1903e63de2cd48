"""From a response to a line of samples.jsonl: verl's reward functions, loaded and called as verl does."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.checkpoints import fingerprint
from soup_verl.evaluation.problems import Problem, digest
from soup_verl.tasks.domains import check_keywords
from soup_verl.tasks.reward_function import FUNCTION, PACKAGE, Reward, call, is_ours, load_module

DEFAULT = f"pkg://soup_verl.reward:{FUNCTION}"


def load_reward(spec: str, keywords: Mapping[str, Any]) -> tuple[Reward, str]:
    """The function that `FILE.py[:NAME]` or `pkg://MODULE[:NAME]` names, which takes `keywords` besides, and what
    identifies it, without them, in settings.json.

    Raises:
        EvaluationError: there is no such function, it is a coroutine, or it is ours and has no such keyword.
    """
    path, _, name = spec.rpartition(":")
    if not (path and name.isidentifier()):  # no function is named: the colon, if any, is the one of pkg://
        path, name = spec, FUNCTION
    try:
        module = load_module(path)
        if path.startswith(PACKAGE):
            identity = f"{path}:{name}:{fingerprint(_sources(module))}"
        else:
            file = Path(path).expanduser()
            identity = f"{file.name}:{name}:{digest(file)}"
    except Exception as error:  # a module may raise whatever it likes while it is imported
        raise EvaluationError(
            f"--reward={spec!r}: {type(error).__name__}: {error}. Expected FILE.py or pkg://MODULE, with :FUNCTION "
            f"behind it if that is not {FUNCTION}."
        ) from None
    function = getattr(module, name, None)
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise EvaluationError(f"--reward={spec!r}: expected {name} to be a function that is not a coroutine")
    if is_ours(path, name):
        try:
            check_keywords(keywords)
        except ValueError as error:
            raise EvaluationError(f"--reward-kwargs: {error}") from None
    return partial(function, **keywords), identity


def _sources(module: ModuleType) -> set[Path]:
    """The module's file, and all below the folders of the subpackages of its package that it takes something from."""
    package = module.__name__.partition(".")[0]
    files = {Path(str(module.__file__))}
    for value in vars(module).values():
        owner = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
        if owner is None or owner.__name__.partition(".")[0] != package or not owner.__file__:
            continue
        file = Path(owner.__file__)
        files |= set(file.parent.rglob("*.py")) if owner.__name__.count(".") > 1 else {file}
    return files


def score(reward: Reward, problem: Problem, response: str) -> dict[str, Any]:
    """What the reward function says of a response.

    Returns:
        `score`; `acc`, which is `score` where the function reports none; `correct`, by
        `is_solved`; whatever else the function reports (`pred`, `format`, `timeout`, `error`, ..).

    Raises:
        EvaluationError: the function raised or gave no finite number; names the problem.
    """
    where = f"the reward function, problem {problem.index} of {problem.file}"
    try:
        fields = call(
            reward,
            data_source=problem.data_source,
            response=response,
            gold=problem.ground_truth,
            extra=problem.extra_info,
            keywords={},
        )
    except Exception as error:  # it is the user's: it may raise anything
        raise EvaluationError(f"{where}: {type(error).__name__}: {error}") from error
    return {"acc": fields["score"], **{k: _plain(v) for k, v in fields.items()}}


def try_out(reward: Reward, problems: Sequence[Problem]) -> None:
    """Score an empty response to every problem: what cannot be scored is told before hours of sampling.

    Raises:
        EvaluationError: as `score`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda problem: score(reward, problem, ""), problems):
            pass


def _plain(value: Any) -> Any:
    """As JSON can hold it: numpy's scalars as Python's, what is not finite as null, anything else as text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
