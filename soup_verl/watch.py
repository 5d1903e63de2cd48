"""Ends a run when a process of it has died: what waits for a dead process may wait for ever.

verl's workers, agent loops, servers and storage units are Ray actors, and Ray's table of actors says which have died. A
thread of the task runner reads it; a death interrupts the main thread, whatever that is waiting for, and the run ends
with an error that names the process. What is no actor is watched by the actor that started it: vLLM's server reports
the death of its engine.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import state  # `ray.util.state` needs the dashboard

from soup_verl.config import PortableError

logger = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks."""
NODE_GRACE = 30.0
"""Seconds Ray may take to call a node of several dead."""
INTERRUPTIONS = 10
"""How often the main thread is interrupted, once a period, before the process is ended."""
UNWANTED = ("WORKER_DIED", "NODE_DIED")
"""Ray's names for the deaths that nobody asked for, unless the worker's exit is of a type `INTENDED_..`."""
INTENDED = "Worker exit type: INTENDED"


class ActorDied(PortableError):
    """A process of the run died."""


@contextmanager
def end_when_an_actor_dies() -> Iterator[None]:
    """In the main thread of a Ray worker: raise `ActorDied` when an actor of this job dies while the block runs.

    An error of the block that comes of a death says so, too.

    Raises:
        ActorDied: names the actor, its process and its node.
    """
    ended, died, earlier = threading.Event(), list[str](), frozenset(deaths())

    def interrupt(signum: int, frame: Any) -> None:
        if not ended.is_set():
            raise ActorDied(died[0])

    handler = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=_watch, args=(ended, died, earlier), name="soup-actor-watch", daemon=True)
    thread.start()
    try:
        yield
    except ActorDied:
        raise
    except Exception as error:
        if died:
            raise ActorDied(died[0]) from error
        raise named(error, earlier)  # noqa: B904  its cause is set, or it is the error itself
    finally:
        ended.set()
        signal.signal(signal.SIGUSR1, handler)


def named(error: Exception, earlier: frozenset[str] = frozenset()) -> Exception:
    """`ActorDied` if the table tells of a death within a little while, else the error as it is.

    A process that was lost is known at once, a lost node when it has missed its checks, and of the raylet of an only
    node the table never tells: that shows in Ray's `ActorUnavailableError` alone.
    """
    deadline = time.monotonic() + (NODE_GRACE if len(ray.nodes()) > 1 else PERIOD)
    while not (found := _since(earlier)) and time.monotonic() < deadline:
        time.sleep(PERIOD / 4)
    if not found and isinstance(error, ray.exceptions.ActorUnavailableError):
        found = [f"the connection to a process of the run is lost: its node, or the raylet there, has died ({error})"]
    if not found:
        return error
    died = ActorDied(found[0])
    died.__cause__ = error
    return died


def _since(earlier: frozenset[str]) -> list[str]:
    return [death for death in deaths() if death not in earlier]


def _watch(ended: threading.Event, died: list[str], earlier: frozenset[str]) -> None:
    while not died and not ended.wait(PERIOD):
        died += _since(earlier)
    for _ in range(INTERRUPTIONS):
        if ended.is_set():
            return
        logger.error("%s: ending the run", died[0])
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        ended.wait(PERIOD)
    if not ended.is_set():
        sys.stderr.write(f"error: {died[0]}; the task runner could not be interrupted\n")
        os._exit(1)


def deaths() -> list[str]:
    """What to say of each actor of this job whose death nobody asked for, the first to die first."""
    job = ray.get_runtime_context().get_job_id()
    found = []
    for actor in sorted(state.actors(actor_state_name="DEAD").values(), key=lambda actor: actor["EndTime"]):
        cause = actor["DeathCause"].actor_died_error_context
        reason = cause.DESCRIPTOR.enum_types_by_name["Reason"].values_by_number[cause.reason].name
        if actor["JobID"] == job and reason in UNWANTED and INTENDED not in cause.error_message:
            found.append(_line(actor, cause.error_message))
    return found


def _line(actor: dict[str, Any], message: str) -> str:
    name = " ".join(filter(None, [actor["ActorClassName"].rpartition(".")[2], actor["Name"]]))
    address = actor["Address"]["IPAddress"]
    return f"{name} (process {actor['Pid']} on {address}) died: {' '.join(message.split())}"
