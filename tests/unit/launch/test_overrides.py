"""A command line that Hydra does not take, in a series; that of a sweep: `tests/unit/sweeping/test_examples.py`."""

import pytest

from recipe.soup import main_series


@pytest.mark.e2e  # Hydra takes a second a run
def test_a_key_that_there_is_not_is_one_line_with_the_nearest(tmp_path):
    line = r"^error: Could not override 'soup\.lookahed\.age'\..* Did you mean soup\.lookahead\.age\?$"
    with pytest.raises(SystemExit, match=line):
        main_series.main(["--out", str(tmp_path), "--run", "a", "soup.lookahed.age=1", "--", "platform=cpu"])
    assert not list(tmp_path.iterdir())
