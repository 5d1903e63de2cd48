"""The report as one HTML page that loads nothing: figures, tables, styles, scripts and plotly.js are inside."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from soup_verl.reporting import compare, drawing, evaluated, figures, samples
from soup_verl.reporting.compare import Group, Standing
from soup_verl.reporting.runs import Run, total_steps


def render(
    runs: Sequence[Run], *, baseline: Path | None = None, evaluations: Sequence[Path] = (), refresh: int | None = None
) -> str:
    """The page.

    Args:
        runs: at least one.
        baseline: folder of the run whose group comes first and that the others are held against; None: the first run.
        evaluations: folders of further evaluations.
        refresh: seconds after which the page loads itself again; None: never.

    Raises:
        ReportError: one of `evaluations` holds no evaluation.
    """
    groups = compare.group_by_seed(runs, baseline)
    standings = [compare.standing(group) for group in groups]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            groups=groups,
            differences=compare.differences(groups),
            seeds=[compare.seeds(group) for group in groups],
            standings=[_standing_row(one, standings[0]) for one in standings],
            total_steps=total_steps(runs),
            figures=figures.all_figures(groups, evaluated.lines(groups, evaluations)),
            samples=[(group, found) for group in groups if (found := samples.of_group(group))],
            state_of=_state,
            near_1=samples.NEAR_1,
            legend=[(_label(group), drawing.color(group.number), drawing.dash(group.number)) for group in groups],
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
            refresh=refresh,
            nonce=secrets.token_urlsafe(16),
            plotlyjs=Markup(get_plotlyjs()),
            script=_file("page.js"),
            style=_file("page.css"),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("soup_verl.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _file(name: str) -> Markup:
    """A file of this package, which may stand in the page as it is."""
    return Markup(resources.files("soup_verl.reporting").joinpath(name).read_text(encoding="utf-8"))


def _label(group: Group) -> str:
    return group.name if len(group.runs) == 1 else f"{group.name} (n={len(group.runs)})"


def _state(run: Run) -> str:
    """How far the run is, when it was started and from which code, as far as it is recorded."""
    parts = ["no step yet" if run.last_step is None else f"step {run.last_step}"]
    if run.facts.get("started"):
        parts.append(f"started {run.facts['started']}")
    if commit := compare.commit_of(run):
        parts.append(f"commit {commit}")
    return ", ".join(parts) + ("; it recorded no settings" if run.settings is None else "")


def _standing_row(one: Standing, first: Standing) -> dict[str, Any]:
    low, high = one.steps
    return {
        "steps": str(high) if low == high else f"{low} to {high}",
        "cells": [
            ("reward", *_difference(one.reward, first.reward, ".3f")),
            ("validation", *_difference(one.validation, first.validation, ".3f")),
            ("seconds a step", *_percent(one.step_seconds, first.step_seconds, ".3g")),
            ("decoded tokens", *_percent(one.decode_tokens, first.decode_tokens, ",.0f")),
        ],
    }


def _difference(value: float | None, first: float | None, form: str) -> tuple[str, str]:
    """A number, and by how much it differs from the first group's; "" where it does not."""
    if value is None:
        return "not logged", ""
    return format(value, form), "" if first is None or value == first else f"{value - first:+.3f}"


def _percent(value: float | None, first: float | None, form: str) -> tuple[str, str]:
    """A number, and by how many percent it differs from the first group's; "" where it does not."""
    if value is None:
        return "not logged", ""
    return format(value, form), "" if not first or value == first else f"{value / first - 1:+.0%}"
