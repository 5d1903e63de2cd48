"""Runs are slow and each is looked at by several tests: make those that the collected tests ask for, two launches at a
time."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e import assets
from tests.e2e.runs import LAUNCHES

TOGETHER = 2
LONG = {name for launch in LAUNCHES if launch.long for name in launch.names}
SECONDS: dict[str, float] = {}
"""By the names of a launch: how long it took, beside another one."""


def pytest_terminal_summary(terminalreporter):
    for names, seconds in sorted(SECONDS.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{seconds:6.0f} s  {names}")


def made(launch, assets, folder):
    """The launch's runs; keeps its time."""
    started = time.monotonic()
    try:
        return launch.make(assets, folder)
    finally:
        SECONDS[" ".join(launch.names[:4]) + (" .." if len(launch.names) > 4 else "")] = time.monotonic() - started


def named_runs(item):
    """The runs that a test looks at."""
    return {name for mark in item.iter_markers("runs") for name in mark.args}


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
        if named_runs(item) & LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def made_assets(folder):
    assets.make(folder / "assets")
    return folder / "assets"


@pytest.fixture(scope="session")
def futures(request, folder, made_assets):
    """By name: all runs of the launches that the collected tests need, under way."""
    wanted = {name for item in request.session.items for name in named_runs(item)}
    assert wanted <= {name for launch in LAUNCHES for name in launch.names}, wanted
    pool = ThreadPoolExecutor(TOGETHER)
    under_way = {}
    for number, launch in enumerate(LAUNCHES):
        if wanted & set(launch.names):
            future = pool.submit(made, launch, made_assets, folder / str(number))
            under_way |= dict.fromkeys(launch.names, future)
    yield under_way
    pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def run(request, futures: dict[str, Future]):
    """`run(name)`: the finished run; the test's `runs` mark must name it."""

    def finished(name: str):
        assert name in named_runs(request.node), f"add {name!r} to the test's runs mark"
        return futures[name].result()[name]

    return finished
