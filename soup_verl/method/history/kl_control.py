"""What the prefix KL says about the history: too close to the present, how it grows with age, and when it is noise.
Plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soup_verl.method.config import SoupConfig

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

    def observe(self, prefix_kl: float) -> str | None:
        """Count a step with prefixes; returns what to tell the user at the first step of a collapse."""
        if self.min_kl is None:
            return None
        self.low_steps = self.low_steps + 1 if prefix_kl < self.min_kl else 0
        if self.low_steps != self.patience:
            return None
        return (
            f"prefix KL has been under soup.kl_control.min_prefix_kl={self.min_kl} for {self.patience} steps: the "
            "history is no different from the present. Raise the age of the history, or soup.forget.lr; a buffer of "
            "snapshots samples from its oldest policy for now."
        )

    @property
    def collapsed(self) -> bool:
        """True from the `patience`-th step in a row."""
        return self.low_steps >= self.patience


class NoiseWatch:
    """Warns, once a run, that a KL control reads noise: more than half of the prefix KL is the engine's rounding.

    The rollout engine's log-prob of a token differs a little from the trainer's, even with equal weights
    (`soup/noise_floor_kl_k3`). With `soup.behavior_log_probs=rollout` the prefix KL compares the engine's log-probs of
    the prefix with the trainer's, so it is about that noise floor plus the KL between the two policies. With `actor`
    both sides are the trainer's, and the engine's rounding is in neither.
    """

    def __init__(self, soup: SoupConfig):
        controls = {
            "soup.kl_control.min_prefix_kl": soup.kl_control.min_prefix_kl is not None,
            "soup.snapshot.choice=auto": soup.source == "snapshot" and soup.snapshot.choice == "auto",
        }
        self._remedy = "Raise the limit." if soup.source == "inflight" else "Set soup.behavior_log_probs=actor."
        self._readers = [name for name, on in controls.items() if on and soup.behavior_log_probs == "rollout"]

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """The warning, after the first step whose metrics call for it; None after every other step."""
        key = "soup/prefix_kl_k3" if "soup/prefix_kl_k3" in metrics else "soup/stale_kl_k3"
        prefix_kl, floor = metrics.get(key), metrics.get("soup/noise_floor_kl_k3")
        if not self._readers or prefix_kl is None or floor is None or floor <= prefix_kl / 2:
            return None
        readers, self._readers = " and ".join(self._readers), []
        return (
            f"soup/noise_floor_kl_k3={floor:.2g} is more than half of {key}={prefix_kl:.2g}: {readers} "
            f"would go by the rollout engine's rounding. {self._remedy}"
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
