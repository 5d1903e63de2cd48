"""Runs are slow and each is looked at by several tests: make those the collected tests ask for, two at a time."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e import assets
from tests.e2e.runs import RUNS

TOGETHER = 2


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def made_assets(folder):
    assets.make(folder / "assets")
    return folder / "assets"


@pytest.fixture(scope="session")
def futures(request, folder, made_assets):
    """All runs that the collected tests name in `@pytest.mark.runs(...)`, under way."""
    marks = [m for item in request.session.items for m in item.iter_markers("runs")]
    wanted = dict.fromkeys(name for mark in marks for name in mark.args)
    pool = ThreadPoolExecutor(TOGETHER)
    under_way = {name: pool.submit(RUNS[name], made_assets, folder / name) for name in wanted}
    yield under_way
    pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def run(request, futures: dict[str, Future]):
    """`run(name)`: the finished run; the test's `runs` mark must name it."""
    named = {name for mark in request.node.iter_markers("runs") for name in mark.args}

    def finished(name: str):
        assert name in named, f"add {name!r} to the test's runs mark"
        return futures[name].result()

    return finished
