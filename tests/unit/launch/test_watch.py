"""A real Ray cluster of a few processes, and actors that die."""

import asyncio
import os
import re
import signal
import time

import pytest
import ray
from ray.core.generated import common_pb2

from soup_verl.launch import watch
from soup_verl.launch.watch import PERIOD, Engines, ProcessDied, deaths, end_when_a_process_dies, named

pytestmark = [pytest.mark.e2e, pytest.mark.contract]  # of Ray's table of actors


@ray.remote(num_cpus=0)
class Sleeper:
    def pid(self):
        return os.getpid()

    def sleep(self, seconds):
        time.sleep(seconds)

    def leave(self):
        ray.actor.exit_actor()

    def own(self):
        self.owned = Sleeper.remote()
        return ray.get(self.owned.pid.remote())


class Engine:
    errored = False


@ray.remote(num_cpus=0)
class vLLMHttpServer:  # noqa: N801  verl's name
    """As verl's in what is asked: asynchronous, and its `engine` comes late."""

    async def start(self, engine_dies_after):
        self.engine = Engine()
        await asyncio.sleep(engine_dies_after)
        self.engine.errored = True


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture
def sleeper(request):
    actor = Sleeper.options(name=request.node.name).remote()
    return actor, ray.get(actor.pid.remote())


def test_without_a_death_the_block_ends_as_it_would():
    with end_when_a_process_dies():
        time.sleep(0.1)
    with pytest.raises(KeyError, match="own"), end_when_a_process_dies():
        raise KeyError("own")


@pytest.mark.parametrize("end", [ray.kill, lambda actor: actor.leave.remote()], ids=["killed", "left"])
def test_an_actor_that_goes_on_purpose_is_no_death(sleeper, end):
    actor, _ = sleeper
    end(actor)
    time.sleep(1)
    assert deaths() == []


def test_what_a_lost_actor_owned_comes_after_it_and_what_a_killed_one_owned_is_no_death(sleeper):
    (actor, pid), killed = sleeper, Sleeper.remote()
    owned, of_the_killed = ray.get([actor.own.remote(), killed.own.remote()])
    ray.kill(killed)
    os.kill(pid, signal.SIGKILL)
    found = _wait_for_death_of(owned)
    assert found.index(pid) < found.index(owned) and of_the_killed not in found


def _wait_for_death_of(pid):
    """Processes of the deaths so far, in the table's order."""
    for _ in range(300):
        if pid in (found := [int(re.search(r"process (\d+)", line)[1]) for line in deaths()]):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no death of process {pid} among {found}")


def test_an_error_is_named_after_the_death_it_comes_of(request, sleeper):
    actor, pid = sleeper
    earlier, own = frozenset(deaths()), RuntimeError("socket closed")
    assert named(own, earlier) is own
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError) as lost:
        ray.get(actor.pid.remote())
    found = named(lost.value, earlier)
    assert isinstance(found, ProcessDied) and found.__cause__ is lost.value
    assert str(found).startswith(f"Sleeper {request.node.name} (process {pid} on ")


def test_an_error_is_looked_into_without_an_interruption(sleeper, monkeypatch):
    def killed_meanwhile(error, earlier):
        os.kill(sleeper[1], signal.SIGKILL)
        time.sleep(2 * PERIOD)  # the watch would have seen it
        return named(error, earlier)

    monkeypatch.setattr(watch, "named", killed_meanwhile)
    with pytest.raises(ProcessDied), end_when_a_process_dies():
        raise RuntimeError("own")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "lost", [ray.exceptions.ActorUnavailableError("socket closed", None), ray.exceptions.OutOfMemoryError("killed")]
)
def test_a_lost_connection_without_a_death_in_the_table_is_said_to_be_one(lost, wrapped):
    error = RuntimeError("no checkpoint")
    error.__cause__ = lost
    found = named(error if wrapped else lost, frozenset(deaths()))
    assert isinstance(found, ProcessDied) and "its node, or the raylet there, has died" in str(found)


def test_who_was_killed_for_memory_is_among_the_dead(monkeypatch):
    cause = common_pb2.ActorDeathCause(oom_context=common_pb2.OomContext(error_message="used too much"))
    actor = {"ActorClassName": "a.B", "Name": "", "Pid": 7, "Address": {"IPAddress": "here"}, "EndTime": 1}
    monkeypatch.setattr(watch, "_actors", lambda state: [actor | {"DeathCause": cause}])
    assert deaths() == ["B (process 7 on here) died: used too much"]


def test_the_first_to_die_comes_first(sleeper):
    """The others may have died of it."""
    actors = [sleeper[0], *(Sleeper.remote() for _ in range(3))]
    pids = [ray.get(actor.pid.remote()) for actor in actors]
    for pid in (order := [pids[2], pids[0], pids[3], pids[1]]):
        os.kill(pid, signal.SIGKILL)
        found = _wait_for_death_of(pid)
    assert [pid for pid in found if pid in pids] == order


@pytest.mark.parametrize(
    "wait",
    [
        lambda actor: time.sleep(60),
        lambda actor: ray.get(actor.sleep.remote(60)),
        lambda actor: ray.get(Sleeper.remote().sleep.remote(60)),
        lambda actor: asyncio.run(asyncio.sleep(60)),
    ],
    ids=["anything", "the dead", "the living", "a coroutine"],
)
def test_a_wait_is_interrupted_and_the_error_names_what_died(request, sleeper, wait):
    before, started = signal.getsignal(signal.SIGUSR1), time.monotonic()
    with pytest.raises(ProcessDied) as caught, end_when_a_process_dies():
        actor, pid = sleeper
        os.kill(pid, signal.SIGKILL)
        wait(actor)
    assert time.monotonic() - started < 50  # the wait is of 60
    assert str(caught.value).startswith(f"Sleeper {request.node.name} (process {pid} on ")
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_server_whose_engine_dies_ends_a_wait_that_would_not():
    server = vLLMHttpServer.options(name="vllm_server_0_0").remote()
    started = time.monotonic()
    with pytest.raises(ProcessDied) as caught, end_when_a_process_dies():
        time.sleep(2 * PERIOD)  # without an engine there is none to die
        assert Engines().deaths() == []
        server.start.remote(engine_dies_after=1)
        time.sleep(60)
    assert 2 * PERIOD < time.monotonic() - started < 50
    assert str(caught.value).startswith("the engine of vLLMHttpServer vllm_server_0_0 (process ")
    ray.kill(server)


def test_an_error_that_comes_of_a_dead_engine_names_it_when_its_server_is_not_busy_any_more():
    server = vLLMHttpServer.options(name="vllm_server_2_0").remote()
    ray.get(server.start.remote(engine_dies_after=0))
    server.__ray_call__.remote(lambda s: time.sleep(4 * PERIOD))
    found = named(RuntimeError("32 responses failed"), frozenset(deaths()))
    assert isinstance(found, ProcessDied)
    assert str(found).startswith("the engine of vLLMHttpServer vllm_server_2_0 (process ")
    ray.kill(server)


def test_a_busy_server_is_asked_once_and_is_no_death():
    class Busy:
        def __getattr__(self, name):
            time.sleep(2 * PERIOD)
            return False

    server = vLLMHttpServer.options(name="vllm_server_1_0").remote()
    ray.get(server.__ray_call__.remote(lambda s: setattr(s, "engine", Busy())))
    engines = Engines()
    assert engines.deaths() == [] and len(engines.asked) == 1
    asked = dict(engines.asked)
    assert engines.deaths() == [] and engines.asked in (asked, {})
    ray.kill(server)
