"""The reward on the rows' own golds: whether it can be loaded and called as verl will, and how many verify.

A process of its own does it (`soup_verl.tasks.golds`): a function that hangs, exits or crashes ends that process alone.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight.files import Split
from soup_verl.launch.preflight.report import Finding, judged, refused
from soup_verl.launch.preflight.rows import managers_read_rows
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.tasks.golds import Request

TOPIC = "reward"
FUNCTION = "reward.custom_reward_function"
BUDGET_S = 10.0
"""For all rows together."""
LOAD_LIMIT_S = 60.0
"""To import the function's module."""
GRACE_S = 2.0
SLOW_S = 5.0
"""A row that takes longer is told."""
SAMPLED_ROWS = 1000
"""Of the training files; of the validation files every row is looked at."""
SEED = 0
SHOWN = 3


@dataclass(frozen=True)
class Place:
    """A row: of which files, and its number from 0."""

    split: str
    row: int
    gold: Any

    def __str__(self) -> str:
        return f"data.{self.split}_files, row {self.row} from 0 (gold {str(self.gold)[:40]!r})"


@dataclass
class Outcome:
    """What the process said: `right` and `error` of the rows that were done, and when rows were `begun`, in seconds, by
    their place in the request; `seconds` is when it ended."""

    loaded: bool = False
    failed: str | None = None
    missing: bool = False
    right: dict[int, bool] = field(default_factory=dict)
    error: dict[int, str] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0


def gold_findings(run: RunSettings, splits: Mapping[str, Split]) -> list[Finding]:
    """Load the reward function, and call it on golds for at most `BUDGET_S`."""
    if reason := _not_tried(run):
        return [judged(TOPIC, "golds", False, need="a function of the answer", have=reason, how="not tried")]
    rows = list(_chosen(run, splits))
    places = [place for place, _ in rows]
    path, name = run.get(f"{FUNCTION}.path"), run.get(f"{FUNCTION}.name", "compute_score")
    request = Request(path, name, run.get(f"{FUNCTION}.reward_kwargs", {}), BUDGET_S, [row for _, row in rows])
    return list(_findings(path, name, places, splits, graded(request)))


def _not_tried(run: RunSettings) -> str:
    if run.get("reward.reward_model.enable", False):
        return "reward.reward_model.enable=True: a model takes part"
    return "" if managers_read_rows(run) else "a reward manager or an agent loop of one's own"


def _chosen(run: RunSettings, splits: Mapping[str, Split]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of both splits in turn: a seeded sample of training, all of validation."""
    numbers: dict[str, Sequence[int]] = {split: range(found.rows) for split, found in splits.items()}
    if "train" in numbers:
        count = min(SAMPLED_ROWS, len(numbers["train"]))
        numbers["train"] = random.Random(SEED).sample(numbers["train"], count)
    source = run.get("data.reward_fn_key", "data_source")
    rows = {split: list(splits[split].rewarded(numbers[split], source)) for split in numbers}
    for group in itertools.zip_longest(*([(s, i) for i in range(len(n))] for s, n in numbers.items())):
        for split, i in filter(None, group):
            data_source, reward_model, extra = rows[split][i]
            if isinstance(reward_model, Mapping):  # others are refused by the checks of rows
                gold, extra = reward_model.get("ground_truth"), extra if isinstance(extra, Mapping) else {}
                fields = {"data_source": data_source, "gold": gold, "extra": extra}
                yield Place(split, numbers[split][i], gold), fields


def graded(request: Request) -> Outcome:
    """What the process of `soup_verl.tasks.golds` said until it ended, or was ended."""
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder) / "request.json", Path(folder) / "results.jsonl"
        said.touch()
        request.write(asked)
        command = [sys.executable, "-m", "soup_verl.tasks.golds", str(asked), str(said)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))},
            start_new_session=True,
        )
        try:
            seconds = _wait(process, said, request.seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return _outcome(said.read_text(), seconds)


def _wait(process: subprocess.Popen, said: Path, limit_s: float) -> float:
    """Until the process ends or its time is over; returns the seconds since the function was loaded."""
    started, loaded = time.monotonic(), None
    while process.poll() is None:
        now = time.monotonic()
        if loaded is None and said.stat().st_size:
            loaded = now
        if now - (loaded or started) > (LOAD_LIMIT_S if loaded is None else limit_s + GRACE_S):
            break
        time.sleep(0.02)
    return time.monotonic() - (loaded or started)


def _outcome(said: str, seconds: float) -> Outcome:
    found = Outcome(seconds=seconds)
    for line in said.split("\n")[:-1]:  # the last may be torn
        fields = json.loads(line)
        found.loaded |= "loaded" in fields
        if "failed" in fields:
            found.failed, found.missing = fields["failed"], fields["missing"]
        elif "begun" in fields:
            found.begun[fields["begun"]] = fields["at"]
        elif "done" in fields:
            found.right[fields["done"]] = fields["right"]
            if fields["error"]:
                found.error[fields["done"]] = fields["error"]
    return found


def _findings(
    path: str | None, name: str, places: Sequence[Place], splits: Mapping[str, Split], found: Outcome
) -> Iterator[Finding]:
    if found.missing:
        yield refused(TOPIC, "function", f"{FUNCTION}.name", name, str(found.failed))
    elif found.failed is not None:
        yield refused(TOPIC, "function", f"{FUNCTION}.path", path, f"a module that can be imported; {found.failed}")
    elif not found.loaded:
        have = f"{found.seconds:.0f} s and not imported yet, or its process ended"
        yield judged(TOPIC, "function", False, need=f"{path} imported", have=have, how=f"limit {LOAD_LIMIT_S:g} s")
    else:
        yield from _of_golds(path, places, splits, found)


def _of_golds(
    path: str | None, places: Sequence[Place], splits: Mapping[str, Split], found: Outcome
) -> Iterator[Finding]:
    if found.error:
        first = min(found.error)
        expected = f"a function with a finite number for every right answer; {places[first]}: {found.error[first]}"
        remedy = f"So in {len(found.error)} of {len(found.right)} rows: mend the function, or drop the rows."
        yield refused(TOPIC, "reward of a gold", f"{FUNCTION}.path", path, expected, remedy)
    yield from _of_rows_without_an_end(places, found)
    wrong = sorted(i for i, right in found.right.items() if not right and i not in found.error)
    looked_at = ", ".join(_count(split, places, found, total.rows) for split, total in splits.items())
    over = "" if len(found.right) == len(places) else f"; {BUDGET_S:g} s were over before the rest"
    yield judged(
        TOPIC,
        "golds",
        not wrong,
        need="right by the reward itself",
        have=f"{len(wrong)} of {len(found.right)} golds are not" + "".join(f"\n{places[i]}" for i in wrong[:SHOWN]),
        how=f"{looked_at}, {found.seconds:.1f} s{over}",
    )


def _of_rows_without_an_end(places: Sequence[Place], found: Outcome) -> Iterator[Finding]:
    died = len(found.right) < len(places) and found.seconds < BUDGET_S
    for i, at in found.begun.items():
        if i not in found.right and (died or found.seconds - at > SLOW_S):
            have = "its process ended" if died else f"still at work after {found.seconds - at:.1f} s"
            yield judged(
                TOPIC, "reward in time", False, need=f"a number within {SLOW_S:g} s", have=f"{have}: {places[i]}"
            )
            return


def _count(split: str, places: Sequence[Place], found: Outcome, rows: int) -> str:
    done = sum(places[i].split == split for i in found.right)
    return f"{done} of {rows} {split} rows" + (" (a seeded sample)" if done < rows and split == "train" else "")
