"""Which evaluations make one line of the pass@k figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from soup_verl.reporting.at_k import Evaluated
from soup_verl.reporting.compare import Group
from soup_verl.reporting.drawing import COLORS
from soup_verl.reporting.runs import Evaluation, read_evaluation, unique_names

CONDITIONS = ("n", "temperature", "top_p", "max_tokens", "prefix_tokens")
"""Settings of an evaluation that decide about its numbers, besides model and data."""


def lines(groups: Sequence[Group], folders: Sequence[Path]) -> list[Evaluated]:
    """Evaluations within the runs' folders, a line for each place in them, then those of `folders` from elsewhere.

    Raises:
        ReportError: one of `folders` holds no evaluation.
    """
    found = [line for group in groups for line in _of_group(group)]
    known = {e.folder.resolve() for line in found for e in line.evaluations}
    others = [folder for folder in folders if folder.resolve() not in known]
    names = unique_names([folder.resolve() for folder in others])
    found += [
        Evaluated(name, len(groups) + i, (len(groups) + i) // len(COLORS), [read_evaluation(folder)])
        for i, (name, folder) in enumerate(zip(names, others, strict=True))
    ]
    return _told_apart(found)


def conditions_of(evaluation: Evaluation) -> dict[str, Any]:
    """What `CONDITIONS` were; None where it does not say."""
    return {key: evaluation.settings.get(key) for key in CONDITIONS}


def _told_apart(found: Sequence[Evaluated]) -> list[Evaluated]:
    """With the conditions in which the evaluations differ behind their names."""
    conditions = [conditions_of(one.evaluations[0]) for one in found]
    differing = [key for key in CONDITIONS if any(c[key] != conditions[0][key] for c in conditions)]
    return [
        replace(
            one, name=", ".join([one.name, *(f"{key}={given[key]}" for key in differing if given[key] is not None)])
        )
        for one, given in zip(found, conditions, strict=True)
    ]


def _of_group(group: Group) -> list[Evaluated]:
    """A line for each place in the runs' folders; another one where there an evaluation was made differently."""
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for run in group.runs:
        for evaluation in run.evaluations:
            place = evaluation.folder.relative_to(run.folder).as_posix()
            found.setdefault((place, json.dumps(conditions_of(evaluation))), []).append(evaluation)
    places = {place for place, _ in found}
    return [
        Evaluated(f"{group.name}, {place}" if len(places) > 1 else group.name, group.number, style, evaluations)
        for style, ((place, _), evaluations) in enumerate(found.items())
    ]
