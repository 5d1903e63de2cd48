"""What runs reasoning-gym's scorers: a script whose forks (`fork_server.py`) say what an answer to a puzzle scores.

A request has `family`, `config` (what differs from the family's own settings), `answer` (text) and `entry` (`answer`
and `metadata`, as reasoning-gym made them, through JSON); the verdict is the number that its `score_answer` returns.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import reasoning_gym

from soup_verl.tasks.grading.fork_server import run_as_script

GRIDS_OF_TUPLES = ("arc_agi", "rearc")
"""Their scorers compare with a grid of tuples, which JSON makes lists of."""


@functools.lru_cache(maxsize=64)
def scorer(family: str, config: str) -> Any:
    """The family's data set, for its `score_answer`; some read words or boards first, which takes up to a second."""
    return reasoning_gym.create_dataset(family, size=1, seed=0, **json.loads(config))


def answer(request: dict[str, Any]) -> float:
    """The score. Raises whatever the scorer raises on an answer that it cannot read."""
    family, entry = request["family"], request["entry"]
    if family in GRIDS_OF_TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    return float(scorer(family, json.dumps(request["config"])).score_answer(request["answer"], entry))


def warm_up() -> None:
    """The import has done it."""


if __name__ == "__main__":
    run_as_script(answer, warm_up)
