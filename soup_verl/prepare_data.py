"""`python -m soup_verl.prepare_data`: see soup_verl/tasks/prepare_data.py."""

import sys

from soup_verl.tasks.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
