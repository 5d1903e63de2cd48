"""Lines, bands, axes and colours, as plotly.js wants them."""

from __future__ import annotations

import html
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from soup_verl.reporting.compare import Series

# Okabe and Ito's colours for the colour-blind, less black and yellow, which vanish on dark or on white; then grey.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
DASHES = ("solid", "dash", "dot", "dashdot")  # the next of them each time the colours are used up

FEW = 15  # points up to which each is marked


def color(number: int) -> str:
    """Of the group with this number."""
    return COLORS[number % len(COLORS)]


def dash(number: int) -> str:
    """Of the group with this number."""
    return DASHES[number // len(COLORS) % len(DASHES)]


def line_and_band(
    name: str, number: int, one: Series, *, style: int | None = None, interval: bool = False
) -> list[dict[str, Any]]:
    """Traces of one group: the mean, and a band: the range over its runs where there are several, or an interval.

    Args:
        name, number: of the group.
        one: what to draw.
        style: which of `DASHES`; None: the group's.
        interval: `low` and `high` are an interval's ends, not the range over runs.
    """
    own, name = color(number), html.escape(name)  # plotly.js reads tags in names
    common = {"type": "scatter", "x": list(one.steps), "legendgroup": str(number), "showlegend": False}
    band = []
    if interval or max(one.n, default=0) > 1:
        edge = common | {"mode": "lines", "line": {"width": 0, "color": own}, "hoverinfo": "skip"}
        band = [
            edge | {"y": rounded(one.low)},
            edge | {"y": rounded(one.high), "fill": "tonexty", "fillcolor": _transparent(own)},
        ]
    count = "" if interval else ", n=%{customdata[2]}"
    several = f" (%{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}}{count})" if band else ""
    mean = common | {
        "name": name,
        "y": rounded(one.mean),
        "mode": "lines+markers" if len(one.steps) <= FEW else "lines",
        "marker": {"size": 5, "color": own},
        "line": {"width": 2, "color": own, "dash": dash(number) if style is None else DASHES[style % len(DASHES)]},
        "hovertemplate": f"{name}: %{{y:.4~g}}{several}<extra></extra>",
    }
    if band:
        mean["customdata"] = [list(row) for row in zip(rounded(one.low), rounded(one.high), one.n, strict=True)]
    return [*band, mean]


def with_gaps(one: Series) -> Series:
    """With a point of no value (NaN) wherever steps are missing, so that no line is drawn across: where two follow each
    other at more than one and a half times the usual distance."""
    distances = [b - a for a, b in itertools.pairwise(one.steps)]
    usual = statistics.median(distances) if distances else 0
    breaks = [i + 1 for i, distance in enumerate(distances) if distance > 1.5 * usual]
    if not breaks:
        return one
    halfway = [(one.steps[i - 1] + one.steps[i]) / 2 for i in breaks]
    columns = ((one.steps, halfway), *((column, [math.nan] * len(breaks)) for column in (one.mean, one.low, one.high)))
    steps, mean, low, high = (_inserted(column, breaks, values) for column, values in columns)
    return Series(steps, mean, low, high, _inserted(one.n, breaks, [0] * len(breaks)))


def _inserted(column: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    found = list(column)
    for place, value in zip(reversed(places), reversed(values), strict=True):
        found.insert(place, value)
    return found


def axes(x: str, y: str, x_range: Sequence[float] | None = None) -> dict[str, Any]:
    """Layout with titled axes."""
    return {
        "xaxis": {"title": {"text": x}, "automargin": True} | ({"range": x_range} if x_range else {}),
        "yaxis": {"title": {"text": y}, "automargin": True},
        "hovermode": "x unified",
    }


def rounded(values: Iterable[float]) -> list[float | None]:
    """To five digits: the page holds every point. NaN, a gap, is None: JSON has no other word."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def spans_decades(data: Iterable[Series]) -> bool:
    values = [value for one in data for value in one.low]
    return min(values) > 0 and max(values) > 30 * min(values)


def padded(values: Iterable[float], share: float = 0.06) -> list[float]:
    """Lowest and highest of the values, and a margin."""
    found = list(values)
    low, high = min(found), max(found)
    margin = share * (high - low) or 0.05 * abs(high) or 1.0
    return [low - margin, high + margin]


def _transparent(own: str) -> str:
    red, green, blue = (int(own[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"
