"""The loggers of a run: verl knows them, and what they need can be imported here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from soup_verl.launch.preflight.report import Finding, judged, refused
from soup_verl.launch.preflight.run_settings import RunSettings

TOPIC, KEY = "metrics", "trainer.logger"
MODULES = {"tensorboard": "torch.utils.tensorboard", "vemlp_wandb": "volcengine_ml_platform"}
"""What verl imports for a logger, where it is not the logger's own name."""
BUILT_IN = {"console", "file"}


def logger_findings(run: RunSettings) -> Iterator[Finding]:
    """A line for all of `trainer.logger`, or one for each that cannot work."""
    from verl.utils.tracking import Tracking

    given = run.get(KEY, [])
    names = [given] if isinstance(given, str) else list(given)
    wrong = [finding for name in names if (finding := _refusal(name, names, Tracking.supported_backend))]
    if wrong:
        yield from wrong
    else:
        yield judged(TOPIC, "loggers", True, need="known to verl, and importable", have=", ".join(names) or "none")


def _refusal(name: str, names: list[str], known: list[str]) -> Finding | None:
    if name not in known:
        return refused(TOPIC, name, KEY, names, f"verl's loggers, which {name!r} is none of: {', '.join(known)}")
    if name in BUILT_IN:
        return None
    module = MODULES.get(name, name)
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package does when it is imported
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        remedy = f"Install it, or leave {name!r} out: docs/metrics.md has the versions that were tried."
        return refused(TOPIC, name, KEY, names, f"loggers that can be imported, which {module} cannot ({said})", remedy)
    return None
