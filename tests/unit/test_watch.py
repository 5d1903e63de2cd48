"""A real Ray cluster of a few processes, and actors that die."""

import os
import re
import signal
import time

import pytest
import ray

from soup_verl.watch import ActorDied, deaths, end_when_an_actor_dies, named

pytestmark = [pytest.mark.e2e, pytest.mark.contract]  # of Ray's table of actors


@ray.remote(num_cpus=0)
class Sleeper:
    def pid(self):
        return os.getpid()

    def sleep(self, seconds):
        time.sleep(seconds)

    def leave(self):
        ray.actor.exit_actor()


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
    with end_when_an_actor_dies():
        time.sleep(0.1)
    with pytest.raises(KeyError, match="own"), end_when_an_actor_dies():
        raise KeyError("own")


@pytest.mark.parametrize("end", [ray.kill, lambda actor: actor.leave.remote()], ids=["killed", "left"])
def test_an_actor_that_goes_on_purpose_is_no_death(sleeper, end):
    actor, _ = sleeper
    end(actor)
    time.sleep(1)
    assert deaths() == []


def test_an_error_is_named_after_the_death_it_comes_of(request, sleeper):
    actor, pid = sleeper
    earlier, own = frozenset(deaths()), RuntimeError("socket closed")
    assert named(own, earlier) is own
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError) as lost:
        ray.get(actor.pid.remote())
    found = named(lost.value, earlier)
    assert isinstance(found, ActorDied) and found.__cause__ is lost.value
    assert str(found).startswith(f"Sleeper {request.node.name} (process {pid} on ")


def test_a_lost_connection_without_a_death_in_the_table_is_said_to_be_the_nodes():
    lost = ray.exceptions.ActorUnavailableError("socket closed", None)
    found = named(lost, frozenset(deaths()))
    assert isinstance(found, ActorDied) and "its node, or the raylet there, has died" in str(found)


def test_the_first_to_die_comes_first(sleeper):
    """The others may have died of it."""
    actors = [sleeper[0], *(Sleeper.remote() for _ in range(3))]
    pids = [ray.get(actor.pid.remote()) for actor in actors]
    for pid in (order := [pids[2], pids[0], pids[3], pids[1]]):
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    time.sleep(1)
    found = [int(re.search(r"process (\d+)", line)[1]) for line in deaths()]
    assert [pid for pid in found if pid in pids] == order


@pytest.mark.parametrize(
    "wait", [lambda actor: time.sleep(60), lambda actor: ray.get(actor.sleep.remote(60))], ids=["anything", "the dead"]
)
def test_a_wait_is_interrupted_and_the_error_names_what_died(request, sleeper, wait):
    before, started = signal.getsignal(signal.SIGUSR1), time.monotonic()
    with pytest.raises(ActorDied) as caught, end_when_an_actor_dies():
        actor, pid = sleeper
        os.kill(pid, signal.SIGKILL)
        wait(actor)
    assert time.monotonic() - started < 20
    assert str(caught.value).startswith(f"Sleeper {request.node.name} (process {pid} on ")
    assert signal.getsignal(signal.SIGUSR1) is before
