"""The numbers of a card: which evaluations are of the exported model, and what they and the run's validation found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from soup_verl.reporting.runs import RESULTS_FILE, Evaluation, Run

AT_K = re.compile(r"(avg|pass|maj)@\d+")
VALIDATION = re.compile(r"val-(core|soup)/.+")


def those_of(evaluations: Sequence[Evaluation], checkpoint: Path, digest: str | None) -> list[Evaluation]:
    """Those that are of this model, each folder once; arguments as `is_of`."""
    found = {evaluation.folder.resolve(): evaluation for evaluation in evaluations}.values()
    return [evaluation for evaluation in found if is_of(evaluation, checkpoint, digest)]


def is_of(evaluation: Evaluation, checkpoint: Path, digest: str | None) -> bool:
    """Whether this model was evaluated, without prefixes of others.

    Args:
        checkpoint: that was exported.
        digest: of the exported files; None where they were not merged: then the checkpoint's path decides.
    """
    path, its = evaluation.settings.get("model", ("", ""))
    same = its == digest if digest is not None else Path(path).resolve() in (checkpoint, checkpoint / "actor")
    return same and not evaluation.settings.get("historical")


def scores(evaluation: Evaluation) -> Iterator[tuple[str, str, float]]:
    """(data file's stem, metric, mean) of every avg@n, pass@k and maj@k."""
    for file, metrics in _metrics(evaluation).items():
        for metric, value in metrics.items():
            if AT_K.fullmatch(metric):
                yield Path(file).stem, metric, value["mean"]


def of_evaluation(evaluation: Evaluation) -> str:
    """A metric a row, a data file a column."""
    said = evaluation.settings
    how = ", ".join(f"{key} {said[key]}" for key in ("n", "temperature", "top_p", "max_tokens", "dtype") if key in said)
    files = _metrics(evaluation)
    rows = [
        f"| {name} | " + " | ".join(_cell(metrics.get(name)) for metrics in files.values()) + " |"
        for name in dict.fromkeys(name for metrics in files.values() for name in metrics)
    ]
    header = ["| | " + " | ".join(files) + " |", "|---" * (len(files) + 1) + "|"]
    return f"`soup_verl.evaluate`: {how}. Mean [95% interval over problems].\n\n" + "\n".join([*header, *rows])


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.4g}" + ("" if value["low"] is None else f" [{value['low']:.4g}, {value['high']:.4g}]")


def of_validation(run: Run, step: int) -> str:
    """What the run's own validation found at a step."""
    found = {key: at[step] for key, at in run.metrics.items() if VALIDATION.fullmatch(key) and step in at}
    if not found:
        return f"No validation was logged at step {step}."
    rows = [f"| {key} | {value:.4g} |" for key, value in sorted(found.items())]
    return "\n".join([f"Validation of the run at step {step}:\n", "| metric | |", "|---|---|", *rows])


def _metrics(evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """Data file -> metric -> mean, low, high; without the mean over all files."""
    results = json.loads((evaluation.folder / RESULTS_FILE).read_text())
    return {file: results["files"][file]["metrics"] for file in evaluation.files}
