"""The command lines of this package: one line for what cannot be read."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """What cannot be read is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")
