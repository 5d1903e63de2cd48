"""Keep the raw results of finished points beside the code: every `result.json`, without logs and checkpoints.

python -m benchmarks.keep --results runs/evidence --published benchmarks/raw
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.simulate import RESULT


def keep(results: Path, published: Path) -> int:
    """Copy every result to the same place below `published`; returns how many."""
    files = sorted(results.rglob(RESULT))
    for file in files:
        copy = published / file.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep raw results beside the code.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    arguments = parser.parse_args()
    print(f"kept {keep(arguments.results, arguments.published)} results in {arguments.published}")
