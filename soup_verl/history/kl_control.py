"""What the prefix KL says about the history: too close to the present, and how it grows with age. Plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SMOOTHING = 0.3  # weight of the newest step in a running mean


@dataclass
class CollapseWatch:
    """Whether the historical policies have become too similar to the current one.

    Args:
        min_kl: prefix KL (k3, nats a token) below which a step counts as too similar; None: never.
        patience: steps in a row until it is called a collapse.
        low_steps: steps in a row so far.
    """

    min_kl: float | None
    patience: int
    low_steps: int = 0

    def observe(self, prefix_kl: float) -> None:
        """Count a step with prefixes."""
        if self.min_kl is not None:
            self.low_steps = self.low_steps + 1 if prefix_kl < self.min_kl else 0

    @property
    def collapsed(self) -> bool:
        """True from the `patience`-th step in a row."""
        return self.low_steps >= self.patience


@dataclass
class KlByAge:
    """Running mean of the prefix KL for each policy age that was seen, and a guess for the others.

    Args:
        means: age in steps -> nats a token.
    """

    means: dict[int, float] = field(default_factory=dict)

    def observe(self, kl_by_age: Mapping[int, float]) -> None:
        """Take in one step's means."""
        for age, kl in kl_by_age.items():
            known = self.means.get(age)
            self.means[age] = kl if known is None else known + SMOOTHING * (kl - known)

    def predict(self, age: int) -> float | None:
        """Linear between the nearest ages seen (0 at age 0), and on along the line through the origin beyond the
        oldest; None before anything was seen."""
        if not self.means:
            return None
        points = {0: 0.0} | self.means
        below = max(a for a in points if a <= age)
        above = min((a for a in points if a >= age), default=None)
        if above is None:
            return points[below] * age / below if below else None
        if above == below:
            return points[age]
        return points[below] + (points[above] - points[below]) * (age - below) / (above - below)

    def nearest(self, ages: list[int], target: float) -> int:
        """The age whose predicted KL is nearest to `target`; the youngest while nothing is known."""
        assert ages and all(age > 0 for age in ages), ages
        if not self.means:
            return min(ages)
        return min(ages, key=lambda age: (abs((self.predict(age) or 0.0) - target), age))
