"""Runs are slow and each is looked at by several tests: make those that the collected tests ask for, two launches at a
time."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e import assets
from tests.e2e.runs import LAUNCHES

TOGETHER = 2
LONG = {name for launch in LAUNCHES if launch.long for name in launch.names}
UNTIL = float(os.environ.get("SOUP_CHECK_UNTIL", "inf"))
"""Seconds since the epoch after which no long launch begins; check.sh makes it of SOUP_CHECK_MINUTES."""


class NotBegun(Exception):
    """A long launch whose turn came too late."""


def made(launch, assets, folder, out):
    """The launch's runs. Tells `out` when it began and ended: a session that is cut off shows what it was at."""
    names, started = " ".join(launch.names[:4]) + (" .." if len(launch.names) > 4 else ""), time.time()
    if launch.long and started > UNTIL:
        print(f"\n{time.strftime('%H:%M:%S')} not made, the time is over: {names}", file=out)
        raise NotBegun("its runs were not made: SOUP_CHECK_MINUTES were over before their turn came")
    print(f"\n{time.strftime('%H:%M:%S')} begun: {names}", file=out)
    try:
        return launch.make(assets, folder)
    finally:
        print(f"\n{time.strftime('%H:%M:%S')} ended after {time.time() - started:.0f} s: {names}", file=out)


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
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        out = os.fdopen(os.dup(1), "w", buffering=1)  # what pytest captures is of the test that happens to run
    under_way = {}
    for number, launch in enumerate(LAUNCHES):
        if wanted & set(launch.names):
            future = pool.submit(made, launch, made_assets, folder / str(number), out)
            under_way |= dict.fromkeys(launch.names, future)
    yield under_way
    pool.shutdown(wait=True, cancel_futures=True)
    out.close()


@pytest.fixture
def run(request, futures: dict[str, Future]):
    """`run(name)`: the finished run; the test's `runs` mark must name it. A run that was not begun skips the test."""

    def finished(name: str):
        assert name in named_runs(request.node), f"add {name!r} to the test's runs mark"
        try:
            return futures[name].result()[name]
        except NotBegun as late:
            pytest.skip(str(late))

    return finished
