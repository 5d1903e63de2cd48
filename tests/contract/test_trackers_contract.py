"""The metrics of SOUP in the trackers that verl's logger can write to, read back from what each leaves on disk. One
that is not installed is skipped (trackio is in the extra `test`, all are in `trackers`). wandb, tensorboard:
tests/e2e/test_loggers.py."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import defaultdict

import pytest

from benchmarks.run_inputs import parse_settings
from benchmarks.simulation import Simulation
from tests.unit.benchmarks.conftest import assets  # noqa: F401  a fixture

pytestmark = [pytest.mark.contract, pytest.mark.e2e]  # a process that imports verl and a tracker
LOG = """
import json, sys
from verl.utils.tracking import Tracking

tracker, config, *steps = map(json.loads, sys.stdin)
tracking = Tracking("soup", "run", [tracker], config)
assert set(tracking.logger) == {tracker}  # verl goes on without a mlflow that does not answer
for step, data in steps:
    tracking.log(data, step)
tracking.finish()
"""
CONFIG = {"soup": {"mixed_fraction": 0.5, "lookahead": {"age": [2, 8]}}, "trainer": {"logger": ["file"]}}


@pytest.fixture
def steps(assets):  # noqa: F811
    """Three steps of SOUP, computed by its own code, with a validation after the last."""
    soup = {
        "mixed_fraction": 0.5,
        "source": "lookahead",
        "lookahead": {"age": 1},
        "prefix_length": {"low": 1, "high": 3},
    }
    given = {"prompts": 4, "n": 4, "steps": 3, "lr": 0.02, "samples": 4, "evaluate_every": 3, "soup": soup}
    simulation = Simulation(assets, parse_settings(given))
    found = {step: simulation.step(step) for step in (1, 2, 3)}
    found[3] |= {"val-soup/order/pass@4": 0.25}
    assert {"soup/prefix_kl_k3", "soup/mixed_reward_mean"} <= found[3].keys()
    return found


def by_step(values):
    """(step, key, value) as {step: {key: value}}."""
    found = defaultdict(dict)
    for step, key, value in values:
        found[step][key] = value
    return dict(found)


def mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlruns.db")
    experiment = client.get_experiment_by_name("soup")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.data.params["soup/mixed_fraction"] == "0.5"
    logged = [metric for key in run.data.metrics for metric in client.get_metric_history(run.info.run_id, key)]
    return by_step((m.step, m.key.replace("_at_", "@"), m.value) for m in logged)  # verl's spelling of @ there


def trackio(folder):
    with sqlite3.connect(folder / "soup.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = 'run'").fetchall()
    return {step: json.loads(metrics) for step, metrics in rows}


def swanlab(folder):
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = folder.glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    records = [Record.FromString(content) for content in reader]
    scalars = [record.scalar for record in records if record.HasField("scalar")]
    return by_step((scalar.step, scalar.key, scalar.value.number) for scalar in scalars)


TRACKERS = {
    "mlflow": (mlflow, lambda folder: {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns.db"}),
    "swanlab": (swanlab, lambda folder: {"SWANLAB_MODE": "offline", "SWANLAB_LOG_DIR": str(folder)}),
    "trackio": (trackio, lambda folder: {"TRACKIO_DIR": str(folder)}),
}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_has_every_number_of_every_step(tracker, steps, tmp_path):
    pytest.importorskip(tracker)
    read, environment = TRACKERS[tracker]
    folder = tmp_path / tracker
    folder.mkdir()
    lines = [tracker, CONFIG, *steps.items()]
    subprocess.run(
        [sys.executable, "-c", LOG],
        input="".join(f"{json.dumps(line)}\n" for line in lines),
        env={**os.environ, **environment(folder)},
        cwd=tmp_path,
        text=True,
        check=True,
    )
    found = read(folder)
    assert found.keys() == steps.keys()
    for step, data in steps.items():
        assert found[step] == pytest.approx(data, rel=1e-6)
