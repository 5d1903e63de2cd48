from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.frontier import gain, place_on, upper_hull

HULL = [(0.1, 0.9), (0.2, 0.8), (0.3, 0.4)]
coordinate = st.integers(0, 40).map(lambda i: i / 40)
clouds = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=12)


def test_hull_by_hand():
    inside, below, dominated = (0.15, 0.84), (0.25, 0.5), (0.05, 0.85)
    points = [*HULL, inside, below, dominated, (0.1, 0.2)]
    assert upper_hull(points) == [0, 1, 2]
    assert upper_hull([(0.2, 0.5)]) == [0]
    assert upper_hull([(0.2, 0.5), (0.2, 0.7)]) == [1]
    assert upper_hull([(0.1, 0.5), (0.2, 0.5), (0.3, 0.5)]) == [2]


@given(clouds)
def test_no_point_lies_above_the_hull(points):
    hull = upper_hull(points)
    corners = [points[i] for i in hull]
    assert corners == sorted(corners) and [y for _, y in corners] == sorted((y for _, y in corners), reverse=True)
    assert max(points)[0] == corners[-1][0] and max(y for _, y in points) == corners[0][1]
    for x, y in points:
        place = place_on(points, hull, x)
        (x0, y0) = points[place.left]
        if x <= corners[-1][0]:
            assert y <= y0 + place.slope * (x - x0) + 1e-9


def test_gain_between_two_rivals_by_hand():
    """Half way between (.1, .9) and (.2, .8) the frontier is at .85; .88 and .90 lie .03 and .05 above."""
    rivals = [[corner, corner] for corner in HULL]
    found, place = gain([(0.15, 0.88), (0.15, 0.90)], rivals)
    assert found.mean == pytest.approx(0.04)
    assert (place.left, place.right, place.share) == (0, 1, pytest.approx(0.5)) and not place.beyond


def test_what_a_seed_gives_all_methods_alike_cancels():
    """Every seed shifts the rivals and the point by the same amount: the gain is exact, its interval has no width."""
    shifts = [(0.0, 0.0), (0.02, -0.05), (-0.01, 0.08)]
    rivals = [[(x + dx, y + dy) for dx, dy in shifts] for x, y in HULL]
    found, _ = gain([(0.15 + dx, 0.88 + dy) for dx, dy in shifts], rivals)
    centre = mean(dx for dx, _ in shifts), mean(dy for _, dy in shifts)
    assert abs(centre[0]) < 0.01
    assert found.mean == pytest.approx(0.03) and found.half_width == pytest.approx(0, abs=1e-9)


def test_a_departure_in_pass_1_is_carried_along_the_segment():
    """Slope -1 between the rivals: a seed that is .01 to the right may be .01 lower."""
    rivals = [[corner, corner] for corner in HULL]
    found, _ = gain([(0.14, 0.89), (0.16, 0.87)], rivals)
    assert found.mean == pytest.approx(0.03) and found.half_width == pytest.approx(0, abs=1e-9)


def test_outside_the_hull_its_ends_stand_for_it():
    rivals = [[corner, corner] for corner in HULL]
    left, left_place = gain([(0.05, 0.92)] * 2, rivals)
    right, right_place = gain([(0.35, 0.30)] * 2, rivals)
    assert left.mean == pytest.approx(0.02) and right.mean == pytest.approx(-0.10)
    assert left_place.beyond and right_place.beyond and (left_place.left, right_place.left) == (0, 2)


@given(clouds, st.integers(0, 11))
def test_a_rival_never_gains_on_the_frontier_it_is_part_of(points, i):
    found, _ = gain([points[i % len(points)]], [[p] for p in points])
    assert found.mean <= 1e-9
