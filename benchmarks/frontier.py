"""The frontier of pass@1 against pass@k: plain numbers in, plain numbers out.

A method that trades pass@1 for pass@k along its knob draws a curve; the upper hull of all rivals' points (means over
seeds) is what can be had without SOUP, by choosing a rival, a knob, or a coin flip between two of them. A SOUP point's
*gain* is its pass@k minus the hull's at the same pass@1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from soup_verl.method.intervals import Interval, interval

XY = tuple[float, float]
"""(pass@1, pass@k)."""


def upper_hull(points: Sequence[XY]) -> list[int]:
    """Positions of the points that no coin flip between others beats in both coordinates, by falling pass@k.

    From the point of highest pass@k to the one of highest pass@1, bending downwards.
    """
    hull: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        while len(hull) > 1 and _turns_up(points[hull[-2]], points[hull[-1]], points[i]):
            hull.pop()
        hull.append(i)
    peak = max(range(len(hull)), key=lambda j: (points[hull[j]][1], j))
    return hull[peak:]


def _turns_up(a: XY, b: XY, c: XY) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) >= 0


@dataclass(frozen=True)
class Place:
    """Where a pass@1 meets the hull: `share` of the way from one vertex to the other; the same one outside the hull."""

    left: int
    right: int
    share: float
    slope: float

    @property
    def beyond(self) -> bool:
        """No segment: the nearest end of the hull stands for it."""
        return self.left == self.right


def place_on(points: Sequence[XY], hull: Sequence[int], x: float) -> Place:
    """The hull at pass@1 = x: a segment; left of the hull its highest point; right of it its last.

    Giving up pass@1 is free, so the hull goes on level to the left. To its right no rival reaches that pass@1 at all,
    and comparing with the last vertex understates the point.
    """
    for left, right in zip(hull, hull[1:], strict=False):
        (x0, y0), (x1, y1) = points[left], points[right]
        if x0 <= x <= x1:
            return Place(left, right, (x - x0) / (x1 - x0), (y1 - y0) / (x1 - x0))
    end = hull[0] if x < points[hull[0]][0] else hull[-1]
    return Place(end, end, 0.0, 0.0)


def gain(point: Sequence[XY], rivals: Sequence[Sequence[XY]]) -> tuple[Interval, Place]:
    """pass@k of a point above the rivals' hull at the same pass@1, paired over seeds.

    The segment and the place on it come from the means over seeds and are then held fixed; each seed gives the vertical
    distance of its point from its own rivals at that place, its departure in pass@1 carried over along the segment.
    The hull is made of the best of several noisy means, which favours the rivals a little.

    Args:
        point: one (pass@1, pass@k) a seed.
        rivals: for each rival the same, in the same order of seeds.
    """
    means = [_mean(seeds) for seeds in rivals]
    place = place_on(means, upper_hull(means), _mean(point)[0])
    distances = []
    for (x, y), left, right in zip(point, rivals[place.left], rivals[place.right], strict=True):
        hull_x = (1 - place.share) * left[0] + place.share * right[0]
        hull_y = (1 - place.share) * left[1] + place.share * right[1]
        distances.append(y - hull_y - place.slope * (x - hull_x))
    return interval(distances), place


def _mean(seeds: Sequence[XY]) -> XY:
    return mean(x for x, _ in seeds), mean(y for _, y in seeds)
