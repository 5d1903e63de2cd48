"""What the prefix KL says about the history: too close to the present, how it grows with age, and when it is noise.
Plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soup_verl.config import SoupConfig

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


class NoiseWatch:
    """Tells once if a control goes by a prefix KL more than half of which is the rollout engine's rounding.

    Two small independent differences of log-probs add up in k3, so the engine's log-probs put the whole noise floor
    into the prefix KL. The trainer's own put none of it there.
    """

    def __init__(self, soup: SoupConfig):
        controls = {
            "soup.kl_control.min_prefix_kl": soup.kl_control.min_prefix_kl is not None,
            "soup.snapshot.choice=auto": soup.source == "snapshot" and soup.snapshot.choice == "auto",
        }
        self._readers = [name for name, on in controls.items() if on and soup.behavior_log_probs == "rollout"]

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """What to tell the user after a step with these metrics; None before there is anything to tell, and after."""
        prefix_kl, floor = (metrics.get(f"soup/{name}_kl_k3") for name in ("prefix", "noise_floor"))
        if not self._readers or prefix_kl is None or floor is None or floor <= prefix_kl / 2:
            return None
        readers, self._readers = " and ".join(self._readers), []
        return (
            f"soup/noise_floor_kl_k3={floor:.2g} is more than half of soup/prefix_kl_k3={prefix_kl:.2g}: {readers} "
            "would go by the rollout engine's rounding. Set soup.behavior_log_probs=actor."
        )


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
