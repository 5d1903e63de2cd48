"""`python -m soup_verl.evaluate`: see soup_verl/evaluation."""

import sys

from soup_verl.evaluation.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
