import math

import pytest

from soup_verl.method.intervals import interval


def test_interval_by_hand():
    found = interval([1.0, 2.0, 3.0])  # mean 2, standard deviation 1, t with 2 degrees of freedom 4.303
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert (found.verdict, found.seeds) == ("open", 3)
    assert interval([1.0, 1.1, 1.2]).verdict == "above"
    assert interval([-1.0, -1.1, -1.2]).verdict == "below"


def test_one_seed_says_nothing():
    assert interval([5.0]).verdict == "open"
    with pytest.raises(ValueError, match="no seed"):
        interval([])
