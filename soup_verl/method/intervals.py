"""Means over seeds with their intervals, paired differences among them: plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

# Two-sided 95% quantiles of Student's t for 1, 2, 3 .. degrees of freedom; beyond the table its last.
T_95: tuple[float, ...] = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
T_95 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% t interval; infinitely wide for a single seed."""

    mean: float
    half_width: float
    seeds: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def verdict(self) -> str:
        """Where 0 lies: `above` (the interval is above 0), `below`, or `open`."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "open"


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value a seed.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("no seed has this point")
    if len(values) == 1:
        return Interval(values[0], math.inf, 1)
    freedom = len(values) - 1
    quantile = T_95[min(freedom, len(T_95)) - 1]
    return Interval(mean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))
