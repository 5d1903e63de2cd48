"""Ends a run when a process of it has died: what waits for a dead process may wait for ever.

verl's workers, agent loops, servers and storage units are Ray actors, and Ray's table of actors says which have died. A
thread of the task runner reads it; a death interrupts the main thread, whatever that is waiting for, and the run ends
with an error that names the process. vLLM's engine is no actor: the thread asks its server. To wait for the server to
report it is not enough, for a worker that sends weights to a dead engine waits for ever and asks nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private import state  # `ray.util.state` needs the dashboard

from soup_verl.method.checks import PortableError

logger = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks."""
GRACE = 30.0
"""Seconds Ray may take to call a node of several dead, and a busy server to say that its engine is."""
INTERRUPTIONS = 10
"""How often the main thread is interrupted, once a period, before the process is ended."""
OWNER_DIED, OUT_OF_MEMORY = "OWNER_DIED", "oom_context"
UNWANTED = ("WORKER_DIED", "NODE_DIED", OWNER_DIED, OUT_OF_MEMORY)
"""Ray's names for deaths that nobody asked for, unless the worker's, or owner's, exit is of a type `INTENDED_..`."""
INTENDED = "exit type: INTENDED"
LOST = (ray.exceptions.ActorUnavailableError, ray.exceptions.OutOfMemoryError)
"""Errors that come of a death which the table may not tell."""
SERVER = "vLLMHttpServer"
"""verl's class of the actors that hold an engine, in their attribute `engine`."""


class ProcessDied(PortableError):
    """A process of the run died."""


@contextmanager
def end_when_a_process_dies() -> Iterator[None]:
    """In the main thread of a Ray worker: raise `ProcessDied` when an actor of this job, or its engine, dies meanwhile.

    An error of the block that comes of a death says so, too.

    Raises:
        ProcessDied: names the actor, its process and its node.
    """
    ended, died, earlier = threading.Event(), list[str](), frozenset(deaths())

    def interrupt(signum: int, frame: Any) -> None:
        if not ended.is_set():
            raise KeyboardInterrupt(died[0])  # the only error of a signal handler that gets out of `ray.get`

    handler = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=_watch, args=(ended, died, earlier), name="soup-actor-watch", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:  # whatever is done with an error is not interrupted: Ray would take that for a cancelled task
            ended.set()
            thread.join(2 * PERIOD)
            signal.signal(signal.SIGUSR1, handler)
    except KeyboardInterrupt:
        if died:
            raise ProcessDied(died[0]) from None
        raise
    except Exception as error:
        if died:
            raise ProcessDied(died[0]) from error
        raise named(error, earlier)  # noqa: B904  its cause is set, or it is the error itself


def named(error: Exception, earlier: frozenset[str] = frozenset()) -> Exception:
    """`ProcessDied` if the table tells of a death within a little while, else the error as it is.

    A process that was lost is known at once, a lost node when it has missed its checks. Where the raylet of an only
    node is lost, the error may come before the table tells: it is one of `LOST` then.
    """
    try:
        found = _found(earlier)
    except ray.exceptions.RayError as no_answer:
        found = [f"Ray does not say what died ({no_answer})"]
    if not found and any(isinstance(cause, LOST) for cause in _causes(error)):
        found = [f"a process of the run is lost: it, its node, or the raylet there, has died ({error})"]
    if not found:
        return error
    died = ProcessDied(found[0])
    died.__cause__ = error
    return died


def _found(earlier: frozenset[str]) -> list[str]:
    began, grace, engines = time.monotonic(), GRACE if len(ray.nodes()) > 1 else PERIOD, Engines()
    while not (found := _since(earlier) or engines.deaths()):
        waited = time.monotonic() - began
        if waited > GRACE or (waited > grace and not engines.asked):
            break
        time.sleep(PERIOD / 4)
    return found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it comes of, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _since(earlier: frozenset[str]) -> list[str]:
    return [death for death in deaths() if death not in earlier]


def _watch(ended: threading.Event, died: list[str], earlier: frozenset[str]) -> None:
    engines = Engines()
    while not died and not ended.wait(PERIOD):
        try:
            died += _since(earlier) or engines.deaths()
        except ray.exceptions.RayError:
            logger.warning("Ray does not say which processes have died", exc_info=True)
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
    """What to say of each actor of this job whose death nobody asked for, the first to die first, owners before what
    they owned."""
    found = []
    for actor in _actors("DEAD"):
        reason, message = _reason(actor["DeathCause"])
        if reason in UNWANTED and INTENDED not in message:
            died = f"{_title(actor)} died: {' '.join(message.split())}"
            found.append((reason == OWNER_DIED, actor["EndTime"], died))
    return [died for *_, died in sorted(found)]


def _reason(cause: Any) -> tuple[str, str]:
    """Ray's name for why an actor died, and what it says of it."""
    if cause.HasField(OUT_OF_MEMORY):
        return OUT_OF_MEMORY, cause.oom_context.error_message
    context = cause.actor_died_error_context
    reasons = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_number
    return reasons[context.reason].name, context.error_message


class Engines:
    """The engines of this job's vLLM servers."""

    def __init__(self) -> None:
        self.asked: dict[str, ray.ObjectRef] = {}  # by the server's name, not answered yet

    def deaths(self) -> list[str]:
        """What to say of each engine that has died. A server that does not answer within a period is busy: it keeps the
        question, and is not asked again before it has answered."""
        servers = {actor["Name"]: actor for actor in _actors("ALIVE") if _class(actor) == SERVER}
        for name in servers.keys() - self.asked.keys():
            with suppress(ValueError):  # it has died since
                self.asked[name] = ray.get_actor(name).__ray_call__.remote(_engine_died)
        questions = list(self.asked.values())
        answered = ray.wait(questions, num_returns=len(questions), timeout=PERIOD)[0] if questions else []
        answers = {name: _answer(self.asked.pop(name)) for name, ref in list(self.asked.items()) if ref in answered}
        lost = [name for name, died in answers.items() if died and name in servers]
        return [f"the engine of {_title(servers[name])} died" for name in lost]


def _engine_died(server: Any) -> bool:
    """In the server: whether it has an engine (the first node of a replica does, once it has started) that is lost."""
    return bool(getattr(getattr(server, "engine", None), "errored", False))


def _answer(asked: ray.ObjectRef) -> bool:
    try:
        return ray.get(asked)
    except ray.exceptions.RayError:
        return False  # the server is gone: the table tells


def _actors(state_name: str) -> list[dict[str, Any]]:
    job = ray.get_runtime_context().get_job_id()
    return [actor for actor in state.actors(actor_state_name=state_name).values() if actor["JobID"] == job]


def _class(actor: dict[str, Any]) -> str:
    return actor["ActorClassName"].rpartition(".")[2]


def _title(actor: dict[str, Any]) -> str:
    name = " ".join(filter(None, [_class(actor), actor["Name"]]))
    return f"{name} (process {actor['Pid']} on {actor['Address']['IPAddress']})"
