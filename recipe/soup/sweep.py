"""Methods x settings x seeds from one file, and a table of what came of it: docs/sweep.md

python -m recipe.soup.sweep examples/sweeps/quickstart.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipe.soup.main_series import compose
from soup_verl.sweeping.command import Recipe, main

HERE = Path(__file__).parent
RECIPE = Recipe(compose, scripts=(HERE / "slurm.sh", HERE / "main_soup.sh"))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], RECIPE))
