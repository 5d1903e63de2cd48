"""`python -m soup_verl.export`: see soup_verl/exporting."""

import sys

from soup_verl.exporting.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
