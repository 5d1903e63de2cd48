"""The acceptance check's three steps, on the CPU platform."""

import pytest

from soup_verl.acceptance import stack
from tests.e2e.launch import LIMIT


@pytest.mark.long
def test_lookahead_and_snapshot_train_with_the_settings_of_the_acceptance_check():
    told = stack.train("cpu", limit=LIMIT)
    assert told.count("nats apart") == len(stack.RUNS)
