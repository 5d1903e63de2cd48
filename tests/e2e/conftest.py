"""Runs are slow and each is looked at by several tests: make those that the collected tests ask for, two launches at a
time. Meanwhile come the tests that look at none; those that assert a time limit wait until all runs are made."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e import assets
from tests.e2e.runs import LAUNCHES

TOGETHER = 2


def pytest_collection_modifyitems(items):
    here = {item for item in items if "tests/e2e" in str(item.path)}
    for item in here:
        item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: _turn(item, item in here))


def _turn(item, is_here):
    """Sorts tests: the first one here starts the launches, as `futures` is there for every test of this folder."""
    has = [item.get_closest_marker(name) is not None for name in ("timed", "runs")]
    return *has, not is_here


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def made_assets(folder):
    assets.make(folder / "assets")
    return folder / "assets"


@pytest.fixture(scope="session", autouse=True)
def futures(request, folder, made_assets):
    """By name: all runs of the launches that the collected tests need, under way."""
    marks = [m for item in request.session.items for m in item.iter_markers("runs")]
    wanted = {name for mark in marks for name in mark.args}
    assert wanted <= {name for launch in LAUNCHES for name in launch.names}, wanted
    pool = ThreadPoolExecutor(TOGETHER)
    under_way = {}
    for number, launch in enumerate(LAUNCHES):
        if wanted & set(launch.names):
            future = pool.submit(launch.make, made_assets, folder / str(number))
            under_way |= dict.fromkeys(launch.names, future)
    yield under_way
    pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def run(request, futures: dict[str, Future]):
    """`run(name)`: the finished run; the test's `runs` mark must name it."""
    named = {name for mark in request.node.iter_markers("runs") for name in mark.args}

    def finished(name: str):
        assert name in named, f"add {name!r} to the test's runs mark"
        return futures[name].result()[name]

    return finished
