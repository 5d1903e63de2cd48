"""Where a run is, in a file that another process reads: the task runner writes `progress.json`, the supervisor looks
whether it still changes. A process that is stopped, or stuck in C code, cannot watch itself.

    set-up ─► rollout ─► log-probs and update ─► checkpoint ─► end of the step ─► validation ─► .. ─► end of the run
                         within any of them: weight sync

A rollout moves on whenever a prompt has all its responses; the other stages when they end.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from soup_verl.launch import stacks
from soup_verl.method.sections import StallMinutesConfig
from soup_verl.records.files import write_text

FILE = "progress.json"


@dataclass(frozen=True)
class Place:
    """Where a run is.

    Args:
        stage: for people.
        limit: the key of `soup.stall_minutes` that bounds it.
        step: the step under way; 0 before the first.
        waiting: prompts that have not got all responses yet.
    """

    stage: str = "set-up"
    limit: str = "set_up"
    step: int = 0
    waiting: int | None = None


BEFORE = {
    "step": ("rollout", "rollout"),
    "_balance_batch": ("log-probs and update", "update"),
    "_save_checkpoint": ("checkpoint", "update"),
    "on_step_end": ("end of the step", "rollout"),  # history may be sampled here
    "_validate": ("validation", "rollout"),
}
"""Methods of verl's trainer, and the stage that begins with each: its name and the key of its limit."""
SYNCS = ("update_weights", "sleep_replicas")
"""Methods of verl's checkpoint manager that the rollout engines answer."""


class Progress:
    """Writes where the run is, whenever that changes."""

    def __init__(self, folder: Path):
        self._file = folder / FILE
        self.place: Place | None = None

    def enter(self, place: Place) -> None:
        if place != self.place:
            self.place = place
            with suppress(OSError):  # a full disk ends the run elsewhere, with a better line
                write_text(self._file, json.dumps(asdict(place)))


def begin(config: DictConfig) -> None:
    """The processes of this run, or what it needs of those that it shares, are about to be set up; told where somebody
    looks."""
    if stacks.RUN in os.environ:
        Progress(Path(config.trainer.default_local_dir).absolute()).enter(Place())


def read(folder: Path) -> Place | None:
    """What was written last; None if nothing was."""
    try:
        return Place(**json.loads((folder / FILE).read_text()))
    except OSError:
        return None


def report_stages(trainer: Any, folder: Path) -> None:
    """Have verl's trainer, once it is set up, tell in `folder` where it is."""
    progress = Progress(folder)
    progress.enter(Place())

    def tell(stage: str, limit: str, *_: Any) -> None:
        progress.enter(Place(stage, limit, trainer.global_steps))

    for name, stage in BEFORE.items():
        _around(trainer, name, functools.partial(tell, *stage))
    _around(trainer, "fit", after=functools.partial(tell, "end of the run", "set_up"))
    _tell_syncs(trainer, progress)
    buffer = trainer.replay_buffer

    def tell_waiting(partition: str, *_: Any) -> None:
        waiting = len(buffer.pending_keys[partition]) + len(buffer.running_keys[partition])
        progress.enter(replace(progress.place or Place(), waiting=waiting))

    _around(buffer, "_wait_for_next_poll", tell_waiting)


def _tell_syncs(trainer: Any, progress: Progress) -> None:
    outside = [progress.place or Place()]

    def begin(*_: Any) -> None:
        outside[0] = progress.place or Place()
        progress.enter(Place("weight sync", "weight_sync", trainer.global_steps))

    for manager in (
        "checkpoint_manager",
        "standalone_checkpoint_manager",
    ):  # the latter's engines have a pool of their own
        for name in SYNCS if hasattr(trainer, manager) else ():
            _around(getattr(trainer, manager), name, begin, after=lambda: progress.enter(outside[0]))


def _around(
    owner: Any, name: str, before: Callable[..., None] = lambda *_: None, after: Callable[[], None] = lambda: None
) -> None:
    """Have the object's method call `before` with its arguments, and `after` when it has returned; in place of what it
    was told to call for an earlier run of a series."""
    method = getattr(owner, name)
    method = getattr(method, "untold", method)

    @functools.wraps(method)
    def told(*arguments: Any, **named: Any) -> Any:
        before(*arguments)
        result = method(*arguments, **named)
        after()
        return result

    told.untold = method  # type: ignore[attr-defined]
    setattr(owner, name, told)


class StallWatch:
    """Looks whether a run moves on; by this machine's own clock, whatever the file's says."""

    def __init__(self, folder: Path):
        self._folder, self._since = folder, time.monotonic()
        self._place: Place | None = None
        self.stepped = False  # the run has begun a step

    def stalled(self, minutes: Callable[[], StallMinutesConfig]) -> str | None:
        """What to say of a run that does not move on; `minutes` is asked for once there is something to bound."""
        place = read(self._folder)
        if place is None or place != self._place:
            self._place, self._since = place, time.monotonic()
            self.stepped |= place is not None and place.step > 0 and place.limit != "set_up"
            return None
        limit = getattr(minutes(), place.limit)
        if limit is None or time.monotonic() - self._since < limit * 60:
            return None
        waiting = "" if place.waiting is None else f" ({place.waiting} prompts wait for responses)"
        return (
            f"no progress in the {place.stage} of step {place.step}{waiting} for {limit:g} minutes "
            f"(soup.stall_minutes.{place.limit})"
        )
