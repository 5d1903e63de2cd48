"""`python -m soup_verl.compare`: see soup_verl/evaluation/comparison.py."""

import sys

from soup_verl.evaluation.comparison import main

if __name__ == "__main__":
    sys.exit(main())
