"""Commands that answer as told and write down how they were called, for tests of shell scripts."""

import os
from pathlib import Path


class FakeCommands:
    """A folder to put first on PATH, and `calls()`, what was called in it: `NAME ARGUMENTS`, oldest first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "calls.txt"
        folder.mkdir()
        self.log.touch()

    def add(self, name: str, body: str = "") -> Path:
        """A bash script, which first writes down its name and arguments as one line."""
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.log}"\n{body}\n')
        path.chmod(0o755)
        return path

    def calls(self, name: str = "") -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(name)]

    def environment(self, **more: str) -> dict[str, str]:
        """These commands first, then the system's; nothing else of this process's environment."""
        return {"PATH": f"{self.folder}:/usr/bin:/bin", "HOME": os.environ["HOME"], **more}
