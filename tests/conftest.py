"""One hypothesis profile for all tests: repeatable, no time limit an example, nothing written to disk. And what makes
them quicker: one thread, the order of files, YAML that is parsed once, less for the garbage collector to look at."""

import copy
import functools
import gc
import io
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf

settings.register_profile(
    "soup",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("soup")

# Two workers of two threads each would wait for each other on two cores, spinning, over tensors of a few kilobytes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_levels():
    """What a test imports may silence the root logger, as verl's vLLM replica does, and so the log of later tests."""
    levels = {logger: logger.level for logger in (logging.root, *logging.root.handlers)}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)


TESTS = Path(__file__).parent
LONGEST = [
    "e2e/test_acceptance.py",
    "unit/test_examples.py",
    "e2e/test_distribution.py",
    "unit/launch/test_lost.py",
    "e2e/test_evaluate.py",
    "e2e/test_slurm.py",
    "unit/tasks/test_reward.py",
    "faults/test_hostile_text.py",
    "unit/benchmarks/test_real_stack.py",
    "unit/acceptance/test_gpu_acceptance.py",
    "e2e/test_failures.py",
    "contract/test_priority_contract.py",
]
"""Files that take 20 to 100 seconds, longest first: begun last, one of them would leave a worker with nothing to do.
Tests of shared runs keep their places: with these, they wait for their runs."""


def pytest_collection_modifyitems(items):
    place = {TESTS / file: number for number, file in enumerate(LONGEST)}
    assert all(file.exists() for file in place), place
    last = len(LONGEST)
    items.sort(key=lambda item: last if item.get_closest_marker("runs") else place.get(item.path, last))


read_yaml = OmegaConf.load


@functools.cache
def parsed(text):
    return read_yaml(io.StringIO(text))


def read_yaml_once(file):
    return copy.deepcopy(parsed(file.read())) if hasattr(file, "read") else read_yaml(file)


@pytest.fixture(scope="session", autouse=True)
def yaml_is_parsed_once():
    """For each configuration Hydra opens some thirty files of verl and this recipe; parsing is a third of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(read_yaml_once))
        yield


@pytest.fixture(scope="session", autouse=True)
def imports_are_not_garbage():
    """Nor looked through for it, a third of a second at a time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
