"""From a response to a line of samples.jsonl: verl's reward functions, loaded and called as verl does."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.checkpoints import fingerprint
from soup_verl.evaluation.problems import Problem, digest
from soup_verl.validation import is_solved

FUNCTION = "compute_score"
"""Of a reward file, where none is named: verl's default too."""
DEFAULT = f"pkg://soup_verl.reward:{FUNCTION}"
Reward = Callable[..., Any]


def load_reward(spec: str) -> tuple[Reward, str]:
    """The function that `FILE.py[:NAME]` or `pkg://MODULE[:NAME]` names, and what identifies it in settings.json.

    Raises:
        EvaluationError: there is no such function, or it is a coroutine.
    """
    path, _, name = spec.rpartition(":")
    if not (path and name.isidentifier()):  # no function is named: the colon, if any, is the one of pkg://
        path, name = spec, FUNCTION
    try:
        if path.startswith("pkg://"):
            module = importlib.import_module(path.removeprefix("pkg://").replace("/", "."))
            identity = f"{path}:{name}:{fingerprint(_sources(module))}"
        else:
            file = Path(path).expanduser()
            module, identity = _module_of(file), f"{file.name}:{name}:{digest(file)}"
    except Exception as error:  # a module may raise whatever it likes while it is imported
        raise EvaluationError(
            f"--reward={spec!r}: {type(error).__name__}: {error}. Expected FILE.py or pkg://MODULE, with :FUNCTION "
            f"behind it if that is not {FUNCTION}."
        ) from None
    function = getattr(module, name, None)
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise EvaluationError(f"--reward={spec!r}: expected {name} to be a function that is not a coroutine")
    return function, identity


def _sources(module: ModuleType) -> set[Path]:
    """The module's file, and the folders of the subpackages of its package that it takes something from."""
    package = module.__name__.partition(".")[0]
    files = {Path(str(module.__file__))}
    for value in vars(module).values():
        owner = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
        if owner is None or owner.__name__.partition(".")[0] != package or not owner.__file__:
            continue
        file = Path(owner.__file__)
        files |= set(file.parent.glob("*.py")) if owner.__name__.count(".") > 1 else {file}
    return files


def _module_of(path: Path) -> Any:
    found = importlib.util.spec_from_file_location("evaluation_reward", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


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
        result = reward(
            data_source=problem.data_source,
            solution_str=response,
            ground_truth=problem.ground_truth,
            extra_info=dict(problem.extra_info),
        )
        fields = dict(result) if isinstance(result, Mapping) else {"score": result}
        value = float(fields["score"])
        correct = is_solved(fields.get("acc"), value)
    except Exception as error:  # it is the user's: it may raise anything
        raise EvaluationError(f"{where}: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise EvaluationError(f"{where}: score={value}: expected a finite number")
    return {"acc": value, **{k: _plain(v) for k, v in fields.items()}, "score": value, "correct": correct}


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
