import pytest


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory):
    """A model that takes images and its rows, which tests only read."""
    from tests.e2e import vision  # here: with another verl the tests of anything else are to run still

    made = tmp_path_factory.mktemp("vision")
    vision.make(made)
    return made
