"""Folders of runs as tests need them."""

import json

import yaml

from soup_verl.records import run_log, sample_log

BASE = {"data": {"seed": 1, "files": "a.parquet"}, "soup": {"mixed_fraction": 0.5, "seed": 0}, "trainer": {}}

# One response: a prefix of two tokens, the second of them far from ratio 1.
SAMPLE = {
    "step": 2,
    "sample": 0,
    "index": 7,
    "session": 3,
    "reward": 1.0,
    "policy_version": 1,
    "prompt": "2+2?",
    "response_tokens": 3,
    "left_out": {"after": 3, "tokens": 0},
    "tokens": ["It", " is", " 4"],
    "prefix_mask": [1, 1, 0],
    "behavior_log_probs": [-1.0, -2.0, -0.5],
    "current_log_probs": [-1.0, -1.0, -0.5],
    "ratio": [1.0, 2.71828, 1.0],
}


def settings(folder, **changes):
    """`BASE` with the changes section__key=value, and the folder's name where the trainer has it."""
    made = {section: dict(keys) for section, keys in BASE.items()}
    made["trainer"]["default_local_dir"] = str(folder)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        made[section][name] = value
    return made


def results_of(metrics):
    """`results.json` of an evaluation of one data file: metric -> mean, low, high."""
    return {"files": {"val.parquet": {"problems": 2, "metrics": metrics}}}


def write_run(folder, *, metrics=None, facts=None, samples=(), config=True, evaluation=None, **changes):
    """A run whose metrics are key -> values of steps 1, 2, ..."""
    folder.mkdir(parents=True)
    metrics = {"critic/rewards/mean": [0.25, 0.5]} if metrics is None else metrics
    steps = max(map(len, metrics.values()), default=0)
    with (folder / run_log.FILE).open("w") as file:
        for i in range(steps):
            data = {key: values[i] for key, values in metrics.items() if i < len(values)}
            file.write(json.dumps({"step": i + 1, "data": data}) + "\n")
    (folder / "run.json").write_text(json.dumps(facts or {}))
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder, **changes)))
    if samples:
        sample_log.append(folder, samples)
    if evaluation is not None:
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "results.json").write_text(json.dumps(evaluation))
    return folder
