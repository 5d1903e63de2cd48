"""Methods x settings x seeds from one file, trained, and held against a baseline in one table.

FILE.yaml -> plan.read -> Sweep.runs, seed by seed -> plan.Composed: their configurations, checked
  here.train         in series on this machine (launch/series.py), each in a process apart
  slurm.send         or as one Slurm job each
table.of -> the table, sweep.json        reporting -> report.html
"""

from __future__ import annotations

import sys


class SweepError(ValueError):
    """What keeps a sweep from going on: one line that says what to do."""


def say(line: str) -> None:
    """A line about how far it is, which is no result."""
    sys.stderr.write(f"sweep: {line}\n")
    sys.stderr.flush()
