"""One hypothesis profile for all tests: repeatable, no time limit an example, nothing written to disk."""

import logging

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "soup",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("soup")


@pytest.fixture(autouse=True)
def log_levels():
    """What a test imports may silence the root logger, as verl's vLLM replica does, and so the log of later tests."""
    levels = {logger: logger.level for logger in (logging.root, *logging.root.handlers)}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)
