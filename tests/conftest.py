"""One hypothesis profile for all tests: repeatable, no time limit an example, nothing written to disk."""

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
