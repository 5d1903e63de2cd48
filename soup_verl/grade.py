"""`python -m soup_verl.grade`: see soup_verl/tasks/grade.py."""

import sys

from soup_verl.tasks.grade import main

if __name__ == "__main__":
    sys.exit(main())
