"""A command line that Hydra does not take, of a run and in a series; that of a sweep:
`tests/unit/sweeping/test_examples.py`."""

import re
import subprocess
import sys

import pytest

from recipe.soup import main_series

pytestmark = pytest.mark.e2e  # Hydra takes a second a run
LINES = {
    "soup.lookahed.age=1": r"Could not override 'soup\.lookahed\.age'\. .* Did you mean soup\.lookahead\.age\?",
    "neighbors=repoo": r"In 'soup_trainer': Could not find 'neighbors/repoo' Available options .*",
    "soup.mixed_fraction=[": r"soup\.mixed_fraction=\[: no viable alternative at input '\['",
}


@pytest.mark.parametrize("override", LINES)
def test_in_a_series_it_is_one_line_with_the_nearest_key(tmp_path, override):
    with pytest.raises(SystemExit, match=f"^error: {LINES[override]}$"):
        main_series.main(["--out", str(tmp_path), "--run", "a", override, "--", "platform=cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", LINES)
def test_of_a_run_it_is_the_same_line(tmp_path, override):
    command = [sys.executable, "-m", "recipe.soup.main_soup", "platform=cpu", override]
    done = subprocess.run([*command, f"trainer.default_local_dir={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(f"error: {LINES[override]}\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
