"""A check and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"


class Skip(Exception):
    """The check cannot be made here; its text says why."""


@dataclass(frozen=True)
class Check:
    """Something to find out.

    Args:
        name: what is checked.
        function: makes the check on a device and tells in a line what it measured; raises AssertionError if that is not
            what it must be, `Skip` if it cannot be made here.
    """

    name: str
    function: Callable[[torch.device], str]


@dataclass(frozen=True)
class Outcome:
    """Args:
    check: its name.
    result: PASS, FAIL or SKIP.
    device: `cpu` or `cuda`, where it ran.
    told: what was measured, what was wrong, or why it was skipped.
    """

    check: str
    result: str
    device: str
    seconds: float
    told: str


def carry_out(check: Check, device: torch.device) -> Outcome:
    """An error of whatever kind is a failed check, and the next one can be made."""
    started = time.monotonic()
    try:
        result, told = PASS, check.function(device)
    except Skip as reason:
        result, told = SKIP, str(reason)
    except Exception as error:
        result, told = FAIL, str(error).strip() or type(error).__name__
    return Outcome(check.name, result, device.type, round(time.monotonic() - started, 1), told)
