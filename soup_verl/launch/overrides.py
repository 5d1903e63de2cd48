"""What is said of a command line that Hydra does not take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from soup_verl.records.settings import flatten

Compose = Callable[[Sequence[str]], DictConfig]
"""Overrides as on the command line -> the configuration of the run that has them."""

REFUSED = (HydraException, OmegaConfBaseException)
"""What composing raises where an override cannot be taken."""


def reason(error: Exception, compose: Compose) -> str:
    """Hydra's reason in one line, without its advice to add what is not there; of a key the nearest that there is."""
    said = re.split(r"\n(?:See https|Config search path|To append)", str(error))[0]
    said = " ".join(said.split())
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {said}"
    if (missing := re.match(r"Could not override '([^']+)'", said)) is None:
        return said
    plain: Any = OmegaConf.to_container(compose([]))
    nearest = difflib.get_close_matches(missing[1], list(flatten(plain)), 1)
    return f"{said} There is no such key." + (f" Did you mean {nearest[0]}?" if nearest else "")
