"""Makes puzzles of reasoning-gym without end: python -m soup_verl.tasks.data.puzzle_maker FAMILY SEED CONFIG

Writes JSON lines with `question`, `answer` (null where several are right and none is given) and `metadata` until it is
ended. `puzzles.py` starts it in a process of its own, with Python's hashes fixed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

SEED_STRIDE = 10_000_000
"""reasoning-gym makes entry i of most families from seed + i: seeds have to lie further apart than any file is long."""
PARTS = ("question", "answer", "metadata")
BATCH = 1000
"""Entries of one of its data sets; some make all of them at once."""


def entries(family: str, seed: int, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What reasoning-gym makes of this seed: data sets of `BATCH` entries, one after the other."""
    import reasoning_gym

    first = seed * SEED_STRIDE
    while True:
        for entry in reasoning_gym.create_dataset(family, size=BATCH, seed=first, **config):
            # Fractions and the like stand in metadata that no scorer reads.
            yield json.loads(json.dumps({name: entry[name] for name in PARTS}, default=str))
        first += BATCH


def main(family: str, seed: str, config: str) -> None:
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # some families print
    for entry in entries(family, int(seed), json.loads(config)):
        lines.write(json.dumps(entry) + "\n")
        lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
