"""`python -m soup_verl.report`: see soup_verl/reporting."""

import sys

from soup_verl.reporting.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
